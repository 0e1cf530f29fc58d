package main

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/doze-run/doze/bus/nodetls"
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
		{"remote, with a certificate", []string{"--bootstrap", "--bind", "198.18.0.1", "--tls-dir", "tls"}, ""},
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

// A node is called as its certificate says, and has one of its role; without one its log says what that means.
func TestNodeCertificate(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	for _, args := range [][]string{
		{"ca", "init", "--dir", ca},
		{"ca", "issue", "w1", "--role", "worker", "--dir", ca},
		{"ca", "issue", "a.b", "--role", "worker", "--dir", ca},
		{"ca", "issue", "old", "--role", "worker", "--dir", ca, "--days", "7"},
	} {
		var out bytes.Buffer
		if code := run(t.Context(), args, strings.NewReader(""), &out, &out); code != exitOK {
			t.Fatalf("doze %q: %s", args, out.String())
		}
	}
	for _, test := range []struct {
		name, tls, is string
		role          nodetls.Role
		says          string
	}{
		{"", "w1", "w1", nodetls.Worker, ""},
		{"w1", "w1", "w1", nodetls.Worker, ""},
		{"w2", "w1", "", nodetls.Worker, "leave out --name"},
		{"", "w1", "", nodetls.Control, "--role control"},
		{"", "a.b", "", nodetls.Worker, "cannot be called"},
		{"", "none", "", nodetls.Worker, "doze ca issue NAME"},
	} {
		s := &devSettings{}
		s.Name, s.TLSDir = test.name, filepath.Join(ca, test.tls)
		err := s.takeCertificate(test.role, slog.New(slog.DiscardHandler))
		switch {
		case test.says == "" && (err != nil || s.Name != test.is || s.TLS == nil || len(s.GossipKey) != 32):
			t.Errorf("%+v: %v, called %q", test, err, s.Name)
		case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
			t.Errorf("%+v: says %v", test, err)
		}
	}
	for _, test := range []struct{ tls, bind, says string }{
		{"", "198.18.0.1", "IN CLEAR"}, {"", "127.0.0.1", ""}, {"w1", "198.18.0.1", ""}, {"old", "127.0.0.1", "ends soon"},
	} {
		s := &devSettings{}
		s.Bind = test.bind
		if test.tls != "" {
			s.TLSDir = filepath.Join(ca, test.tls)
		}
		if err := s.takeCertificate(nodetls.Worker, nil); err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		s.sayHowSafe(slog.New(slog.NewTextHandler(&text, nil)))
		if (test.says == "") != (text.Len() == 0) || !strings.Contains(text.String(), test.says) {
			t.Errorf("%+v: the log says %q", test, text.String())
		}
	}
}
