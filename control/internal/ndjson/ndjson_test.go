package ndjson

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

type row struct {
	A string `json:"a"`
	B int    `json:"b,omitempty"`
}

func TestRoundTripLeavesTheRestUnread(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out)
	rows := []row{{A: "<x>&", B: 1}, {A: strings.Repeat("y", 200_000)}}
	for _, v := range rows {
		if err := w.Write(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	out.WriteString("the rest")

	buf := bufio.NewReader(&out)
	r := NewReader(buf)
	for _, want := range rows {
		var got row
		if err := r.Read(&got); err != nil || got != want {
			t.Fatalf("Read = %.20v, %v", got, err)
		}
	}
	if rest, _ := io.ReadAll(buf); string(rest) != "the rest" {
		t.Fatalf("rest = %q", rest)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"end":            "",
		"cut line":       `{"a":"x"}`,
		"unknown member": `{"a":"x","c":1}` + "\n",
		"two values":     `{"a":"x"}{"a":"y"}` + "\n",
		"not JSON":       "hello\n",
	} {
		t.Run(name, func(t *testing.T) {
			var got row
			err := NewReader(strings.NewReader(in)).Read(&got)
			if err == nil {
				t.Fatal("accepted")
			}
			if (name == "end" || name == "cut line") && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("err = %v, want unexpected EOF", err)
			}
		})
	}
}
