package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/knadh/koanf/parsers/toml/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

const (
	envPrefix = "DOZE_"
	// maxConfigBytes bounds a config file; ours would fill a page.
	maxConfigBytes = 1 << 20
	configFlag     = "config"
)

// fillFromElsewhere sets every flag that the command line left alone: from its DOZE_* variable, else
// from the config file. So a flag is stronger than a variable, a variable than the file, and the
// file than the default. It answers the DOZE_* variables that mean nothing here.
func fillFromElsewhere(flags *pflag.FlagSet, environ []string) (unknown []string, err error) {
	env := map[string]string{}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, envPrefix) && value != "" {
			env[name] = value
		}
	}
	config := flags.Lookup(configFlag)
	if value, ok := env[envName(configFlag)]; ok && !config.Changed {
		if err := config.Value.Set(value); err != nil {
			return nil, err
		}
	}
	path := config.Value.String()
	var file map[string]any
	if path != "" {
		if file, err = loadConfig(path); err != nil {
			return nil, err
		}
		if err := knownKeys(path, file, flags); err != nil {
			return nil, err
		}
	}
	flags.VisitAll(func(f *pflag.Flag) {
		name := envName(f.Name)
		fromEnv, inEnv := env[name]
		delete(env, name)
		if err != nil || f.Changed || f.Name == configFlag {
			return
		}
		if inEnv {
			err = setFrom(f, fromEnv, name)
		} else if value, ok := file[f.Name]; ok {
			origin, text := path+": "+f.Name, ""
			if text, err = flagText(value); err != nil {
				err = usagef("%s: %w", origin, err)
				return
			}
			err = setFrom(f, text, origin)
		}
	})
	for _, name := range []string{endpointEnv, keyIDEnv, secretEnv, rootKeyIDEnv, rootSecretEnv} {
		delete(env, name) // of the clients, and what no file or command line should hold
	}
	return slices.Sorted(maps.Keys(env)), err
}

// envName is the variable that stands for a flag: idle-timeout is DOZE_IDLE_TIMEOUT.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func setFrom(f *pflag.Flag, value, origin string) error {
	if err := f.Value.Set(value); err != nil {
		return usagef("%s: %w", origin, err)
	}
	return nil
}

// knownKeys refuses a file with keys that no flag has: a mistyped one would be lost in silence.
func knownKeys(path string, file map[string]any, flags *pflag.FlagSet) error {
	var unknown, known []string
	for key := range file {
		if key == configFlag || flags.Lookup(key) == nil {
			unknown = append(unknown, strconv.Quote(key))
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != configFlag {
			known = append(known, f.Name)
		}
	})
	slices.Sort(unknown)
	slices.Sort(known)
	noun := "key"
	if len(unknown) > 1 {
		noun = "keys"
	}
	return usagef("%s: unknown %s %s (known are %s)", path, noun, strings.Join(unknown, ", "), strings.Join(known, ", "))
}

// loadConfig reads a config file: values by key.
func loadConfig(path string) (map[string]any, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("config file: %w", err)
	}
	if len(data) > maxConfigBytes {
		return nil, fmt.Errorf("config file %s is longer than %d bytes", path, maxConfigBytes)
	}
	values, err := parseConfig(data, filepath.Ext(path))
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	return values, nil
}

// parseConfig reads a config file's bytes in the format its extension names.
func parseConfig(data []byte, extension string) (map[string]any, error) {
	var parser koanf.Parser
	switch strings.ToLower(extension) {
	case ".yaml", ".yml":
		parser = yaml.Parser()
	case ".toml":
		parser = toml.Parser()
	case ".json":
		parser = jsonParser{}
	default:
		return nil, fmt.Errorf("the name of a config file ends in .yaml, .toml or .json, not %q", extension)
	}
	// Keys have no dots; a delimiter that no key can have keeps one with a dot in one piece, to be
	// refused by the name it was written with.
	k := koanf.New("\x00")
	if err := k.Load(bytesProvider(data), parser); err != nil {
		return nil, err
	}
	return k.Raw(), nil
}

// flagText writes a value as it would stand on the command line.
func flagText(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case uint64:
		return strconv.FormatUint(v, 10), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case json.Number:
		return v.String(), nil
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			if _, nested := item.([]any); nested {
				return "", errors.New("a list in a list")
			}
			text, err := flagText(item)
			if err != nil {
				return "", err
			}
			items[i] = text
		}
		return strings.Join(items, ","), nil
	}
	return "", errors.New("is neither text, a number, true or false, nor a list of these")
}

// bytesProvider hands koanf what has been read already, within its bound.
type bytesProvider []byte

func (p bytesProvider) ReadBytes() ([]byte, error) { return p, nil }

func (p bytesProvider) Read() (map[string]any, error) {
	return nil, errors.New("a config file has bytes to parse")
}

// jsonParser keeps numbers as they were written: koanf's own would make 1e21 of a big one.
type jsonParser struct{}

func (jsonParser) Unmarshal(data []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the JSON object")
	}
	return m, nil
}

func (jsonParser) Marshal(m map[string]any) ([]byte, error) { return json.Marshal(m) }
