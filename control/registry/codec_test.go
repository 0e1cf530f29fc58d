package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

// TestCommandNumbers is the table of what may stand in a log. Add to it; never change it.
func TestCommandNumbers(t *testing.T) {
	table := map[byte]Command{
		1: &CreateFunction{}, 2: &UpdateCode{}, 3: &UpdateConfig{}, 4: &Settle{}, 5: &PublishVersion{},
		6: &DeleteFunction{}, 7: &PutConcurrency{}, 8: &AddPermission{}, 9: &RemovePermission{}, 10: &Tag{}, 11: &Untag{},
		12: &PutAccessKey{}, 13: &DeleteAccessKey{},
		20: &CreateAlias{}, 21: &UpdateAlias{}, 22: &DeleteAlias{}, 23: &PutEventInvoke{}, 24: &DeleteEventInvoke{},
	}
	for n := range 256 {
		cmd := newCommand(byte(n))
		if want := table[byte(n)]; reflect.TypeOf(cmd) != reflect.TypeOf(want) {
			t.Errorf("number %d is %T, want %T", n, cmd, want)
		} else if cmd != nil && cmd.number() != byte(n) {
			t.Errorf("%T says it is number %d, not %d", cmd, cmd.number(), n)
		}
	}
}

func TestCodecRoundTrip(t *testing.T) {
	reserved, text := 7, "text"
	for _, cmd := range []Command{
		&CreateFunction{Account: acct, Name: "f", Version: version("r"), Tags: map[string]string{"a": "<b>"}},
		&UpdateCode{Account: acct, Name: "f", Code: Code{"aa", 5}, Architectures: []string{"arm64"}, At: 1 << 60},
		&UpdateConfig{Account: acct, Name: "f", Config: Config{Echo: map[string][]byte{"VpcConfig": {0, 255}}}},
		&Settle{Failed: true, Reason: "x"},
		&PublishVersion{Description: &text},
		&DeleteFunction{Version: "1"},
		&PutConcurrency{Reserved: &reserved},
		&AddPermission{Statement: Statement{"a", `{"Sid":"a"}`}},
		&RemovePermission{StatementID: "a"},
		&Tag{Tags: map[string]string{"k": "v"}},
		&Untag{Keys: []string{"k"}},
		&PutAccessKey{Key: accessKey("AKIAIOSFODNN7EXAMPLE"), Replace: true},
		&DeleteAccessKey{Account: acct, ID: "AKIAIOSFODNN7EXAMPLE"},
		&CreateAlias{Alias: Alias{Name: "a", Version: "1", Additional: "2", Weight: 0.1}},
		&UpdateAlias{Alias: "a", Version: &text, Routing: &Routing{"2", 1}},
		&DeleteAlias{Alias: "a"},
		&PutEventInvoke{Qualifier: "1", MaxRetries: &reserved, OnFailure: &text, Merge: true},
		&DeleteEventInvoke{Qualifier: "1"},
	} {
		data, err := Append([]byte{9}, cmd)
		if err != nil || data[0] != 9 {
			t.Fatal(err)
		}
		got, err := Decode(data[1:])
		if err != nil || !reflect.DeepEqual(got, cmd) {
			t.Errorf("%T: %+v, %v", cmd, got, err)
		}
	}
}

func TestCodecRefuses(t *testing.T) {
	if _, err := Append(nil, Tag{Account: string(make([]byte, MaxCommand))}); !errors.Is(err, ErrCommandTooLong) {
		t.Errorf("too long: %v", err)
	}
	for in, want := range map[string]error{
		"":                                ErrBadCommand,
		"\x00{}":                          ErrUnknownCommand,
		"\xff{}":                          ErrUnknownCommand,
		"\x06":                            ErrBadCommand,
		"\x06{} {}":                       ErrBadCommand,
		"\x06{\"Later\":1}":               ErrBadCommand,
		"\x06[]":                          ErrBadCommand,
		string(make([]byte, 1<<20)) + "x": ErrCommandTooLong,
	} {
		if _, err := Decode([]byte(in)); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", in, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, cmd := range []Command{CreateFunction{Account: acct, Name: "f", Version: version("r")}, Tag{Tags: map[string]string{"a": "b"}}, PutAccessKey{Key: accessKey("AKIAIOSFODNN7EXAMPLE")}} {
		data, err := Append(nil, cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\x06{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cmd, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Append(nil, cmd)
		if errors.Is(err, ErrCommandTooLong) {
			return // escapes may be longer than what they stand for
		}
		if err != nil {
			t.Fatal(err)
		}
		cmd2, err := Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(cmd)
		b, _ := json.Marshal(cmd2)
		if !bytes.Equal(a, b) {
			t.Fatalf("%s became %s", a, b)
		}
		// Nothing that decodes may harm the state.
		s := New()
		if _, err := s.Apply(CreateFunction{Account: acct, Name: "f", Version: version("r")}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(cmd); err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v is not an *Error", err)
			}
		}
		check(t, s)
	})
}
