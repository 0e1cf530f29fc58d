package main

import (
	"reflect"
)

// awsJSON turns an SDK value into what the API itself wrote: members by their PascalCase names, the
// absent ones left out. (The SDK's types have no JSON tags, and encoding/json would print every
// nil.) Names in Go and on the wire are the same for all that doze prints.
func awsJSON(v any) any { return wire(reflect.ValueOf(v)) }

func wire(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return wire(v.Elem())
	case reflect.Struct:
		members := map[string]any{}
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() || field.Name == "ResultMetadata" || absent(v.Field(i)) {
				continue
			}
			members[field.Name] = wire(v.Field(i))
		}
		return members
	case reflect.Slice:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = wire(v.Index(i))
		}
		return list
	case reflect.Map:
		members := make(map[string]any, v.Len())
		for _, key := range v.MapKeys() {
			members[key.String()] = wire(v.MapIndex(key))
		}
		return members
	}
	return v.Interface()
}

// absent tells whether the API left the member out. Numbers and booleans that the SDK does not
// point to are always there.
func absent(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map, reflect.Interface:
		return v.IsNil()
	case reflect.String: // an enum
		return v.Len() == 0
	}
	return false
}
