package gateway

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

func TestEncode(t *testing.T) {
	tests := []struct {
		m    proto.Message
		want string
	}{
		{&dozev1.FunctionConfiguration{}, `{}`},
		{&dozev1.FunctionConfiguration{Description: ptr(""), CodeSize: ptr(int64(math.MaxInt64)), Timeout: ptr(int32(0))}, `{"CodeSize":9223372036854775807,"Description":"","Timeout":0}`},
		{&dozev1.ListFunctionsResponse{}, `{"Functions":[]}`},
		{&dozev1.ListTagsResponse{}, `{"Tags":{}}`},
		{&dozev1.GetFunctionResponse{}, `{}`},
		{&dozev1.GetFunctionResponse{Tags: map[string]string{"b": "\x01\"\\\u2028", "a": "\xff<&>"}}, `{"Tags":{"a":"\ufffd<&>","b":"\u0001\"\\` + "\u2028" + `"}}`},
		{&dozev1.DeleteFunctionResponse{StatusCode: ptr(int32(204))}, `{}`},
		{&dozev1.FunctionConfiguration{Environment: &dozev1.EnvironmentResponse{}}, `{"Environment":{"Variables":{}}}`},
		{&dozev1.FunctionBill{GbSeconds: 0.0000001, FreeGbSeconds: 1234.5}, `{"function":"","requests":0,"mbMs":0,"gbSeconds":1e-07,"freeRequests":0,"freeGbSeconds":1234.5,"amountNanoUSD":0}`},
		{&dozev1.UpdateFunctionConfigurationRequest{Layers: &dozev1.LayerVersionArnList{}}, `{"Layers":[]}`},
		{&dozev1.UpdateFunctionConfigurationRequest{Layers: &dozev1.LayerVersionArnList{Items: []string{"x"}}}, `{"Layers":["x"]}`},
		{&dozev1.FunctionCode{ZipFile: []byte{0xfb, 0xff}}, `{"ZipFile":"+/8="}`},
	}
	for _, test := range tests {
		got := string(appendMessage(nil, test.m.ProtoReflect()))
		if got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
		if !json.Valid([]byte(got)) {
			t.Errorf("not JSON: %s", got)
		}
	}
}

func TestDecodePresence(t *testing.T) {
	var m dozev1.UpdateFunctionConfigurationRequest
	body := `{"Layers":[],"FileSystemConfigs":null,"Description":"","Environment":{"Variables":{"KEY":"a","GONE":null}},"Timeout":1,"Timeout":2}`
	if err := decodeMessage([]byte(body), m.ProtoReflect()); err != nil {
		t.Fatal(err)
	}
	if m.Layers == nil || m.FileSystemConfigs != nil || m.Description == nil || len(m.Environment.Variables) != 1 || m.GetTimeout() != 2 || m.MemorySize != nil {
		t.Errorf("decoded %v", &m)
	}
}

// FuzzDecode: no input makes the decoder panic; what it takes is JSON in the standard library's eyes
// too, and comes through a round trip unchanged.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{}`, ``, `null`, `{"FunctionName":"f","Code":{"ZipFile":"UEs="},"Timeout":3,"Layers":["a"],"Tags":{"k":"v"},"Publish":true}`,
		`{"CapacityProviderConfig":{"LambdaManagedInstancesCapacityProviderConfig":{"ExecutionEnvironmentMemoryGiBPerVCpu":2.5}}}`,
		`{"Description":"\ud83d\ude00\ud83d\"\\\/\b"}`, `{"x":[[[{}]],-0.1e+5,true,null]}`, `{"a":01}`, "{\"a\":\"\x01\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var m dozev1.CreateFunctionRequest
		err := decodeMessage(body, m.ProtoReflect())
		if err != nil {
			var fault *Fault
			if !errors.As(err, &fault) || fault.Code != codeSerialization {
				t.Fatalf("error %v", err)
			}
			return
		}
		if text := strings.TrimLeft(string(body), " \t\r\n"); text != "" && !json.Valid(body) {
			t.Fatalf("took what is not JSON: %q", body)
		}
		out := appendMessage(nil, m.ProtoReflect())
		if !json.Valid(out) || !utf8.Valid(out) {
			t.Fatalf("wrote what is not JSON: %q", out)
		}
		var again dozev1.CreateFunctionRequest
		if err := decodeMessage(out, again.ProtoReflect()); err != nil {
			t.Fatalf("can not read its own %q: %v", out, err)
		}
		if !proto.Equal(&m, &again) {
			t.Fatalf("%q became %q", body, out)
		}
	})
}

// FuzzPath: no path makes the router panic or answer something that is neither a route nor a Fault.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"/", "", "//", "/2015-03-31/functions/f%2F/invocations", "/2015-03-31/functions/%zz", "/2018-10-31/layers/a/versions/1/policy/s", "/2015-03-31/functions/invocations"} {
		f.Add("GET", seed, "List=ALL")
	}
	r, err := newRouter(dozev1.File_doze_v1_api_proto.Services().ByName("Lambda"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, verb, path, query string) {
		found, params, err := r.match(verb, path, query)
		if err != nil {
			var fault *Fault
			if !errors.As(err, &fault) || fault.Status() >= 500 {
				t.Fatalf("%s %q: %v", verb, path, err)
			}
			return
		}
		if found.verb != verb {
			t.Fatalf("%s %q went to %s", verb, path, found.operation)
		}
		for name, value := range params {
			if value == "" {
				t.Fatalf("%q: empty %s", path, name)
			}
		}
		if strings.HasPrefix(path, invokePrefix) && strings.HasSuffix(path, invokeSuffix) {
			if name, ok := invokeName(path); ok && found.operation == "Invoke" && name != params["FunctionName"] {
				t.Fatalf("%q: the short way has %q, the router %q", path, name, params["FunctionName"])
			}
		}
	})
}
