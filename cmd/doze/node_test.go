package main

import (
	"strings"
	"testing"
)

// What a node is told is checked before anything is opened.
func TestNodeSettings(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		says string // "" when it is accepted
	}{
		{"one of three", []string{"--bootstrap-expect", "3"}, ""},
		{"joins", []string{"--join", "198.18.0.1:9002"}, ""},
		{"alone", []string{"--bootstrap"}, ""},
		{"nothing to take part in", nil, "no cluster to take part in"},
		{"alone with others", []string{"--bootstrap", "--bootstrap-expect", "3"}, "choose one"},
		{"no port", []string{"--join", "198.18.0.1"}, "HOST:PORT"},
		{"remote", []string{"--bootstrap", "--bind", "198.18.0.1"}, "--allow-remote"},
		{"remote, wanted", []string{"--bootstrap", "--bind", "198.18.0.1", "--allow-remote"}, ""},
		{"every address", []string{"--bootstrap", "--bind", "0.0.0.0", "--allow-remote"}, "--advertise"},
		{"a name with a dot", []string{"--bootstrap", "--name", "a.b"}, "a name of letters"},
		{"a short key", []string{"--bootstrap", "--gossip-key", "AAAA"}, "32 bytes in base64"},
		{"too many", []string{"--bootstrap-expect", "99"}, "between 1 and 7"},
		{"a port out of range", []string{"--bootstrap", "--raft-port", "70000"}, "not a port"},
		{"keys without a cluster key", []string{"--bootstrap", "--auth"}, "--cluster-key-file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &devSettings{}
			flags := s.controlFlagSet(func(string) string { return "" })
			err := flags.Parse(test.args)
			if err == nil {
				err = s.checkControl()
			}
			switch {
			case test.says == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
				t.Errorf("says %v, want something about %q", err, test.says)
			}
		})
	}
}
