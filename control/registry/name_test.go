package registry

import (
	"errors"
	"strings"
	"testing"
)

func TestParseFunctionName(t *testing.T) {
	for in, want := range map[string][4]string{
		"f":                         {"", "", "f", ""},
		"f:1":                       {"", "", "f", "1"},
		"f:$LATEST":                 {"", "", "f", "$LATEST"},
		"function:f":                {"", "", "f", ""},
		"function:f:prod":           {"", "", "f", "prod"},
		"function":                  {"", "", "function", ""},
		"function:function":         {"", "", "function", ""},
		"000000000000:function:f":   {acct, "", "f", ""},
		"000000000000:function:f:1": {acct, "", "f", "1"},
		"000000000000:prod":         {"", "", "000000000000", "prod"},
		"arn:aws:lambda:us-east-1:000000000000:function:f":                    {acct, "us-east-1", "f", ""},
		"arn:aws:lambda:us-east-1:000000000000:function:f:prod":               {acct, "us-east-1", "f", "prod"},
		"arn:aws-us-gov:lambda:us-gov-west-1:000000000000:function:f:$LATEST": {acct, "us-gov-west-1", "f", "$LATEST"},
	} {
		account, region, name, qualifier, err := ParseFunctionName(in)
		if got := [4]string{account, region, name, qualifier}; err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ":", "f:", ":f", "a b", "f.g", "f/g", "../f", "f:a:b", "f:$Latest", "f:$LATEST2",
		strings.Repeat("f", MaxName+1), "f:" + strings.Repeat("q", MaxQualifier+1), strings.Repeat(":", 10_000),
		"00000000000:function:f", "00000000000x:function:f", "000000000000:f:1", "000000000000:function:f:1:2",
		"arn:aws:lambda:us-east-1:000000000000:function", "arn:aws:lambda:us-east-1:000000000000:layer:f",
		"arn:aws:sqs:us-east-1:000000000000:function:f", "arn:xws:lambda:us-east-1:000000000000:function:f",
		"arn:aws:lambda::000000000000:function:f", "arn:aws:lambda:US:000000000000:function:f",
		"arn:aws:lambda:us-east-1:1:function:f", "arn:aws:lambda:us-east-1:000000000000:function:f:1:2",
		"function:000000000000:function:f", "f\x00", "ünï",
	} {
		if account, region, name, qualifier, err := ParseFunctionName(in); !errors.Is(err, ErrName) {
			t.Errorf("%.40q: %q %q %q %q, %v", in, account, region, name, qualifier, err)
		}
	}
}

func TestParseFunctionNameAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		_, _, _, _, _ = ParseFunctionName("arn:aws:lambda:us-east-1:000000000000:function:f:prod")
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func FuzzParseFunctionName(f *testing.F) {
	for _, s := range []string{"f", "f:1", "function:f", "000000000000:function:f:$LATEST", ARN("eu-west-1", acct, "f", "prod"), "::::::::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		account, region, name, qualifier, err := ParseFunctionName(s)
		if err != nil {
			return
		}
		if !IsName(name) || qualifier != "" && !IsQualifier(qualifier) || account != "" && !isAccount(account) || region != "" && account == "" {
			t.Fatalf("%q: %q %q %q %q", s, account, region, name, qualifier)
		}
		if !strings.Contains(s, name) || !strings.HasSuffix(s, qualifier) {
			t.Fatalf("%q: %q %q", s, name, qualifier)
		}
		if region == "" {
			region, account = "us-east-1", acct
		}
		a, r, n, q, err := ParseFunctionName(ARN(region, account, name, qualifier))
		if err != nil || a != account || r != region || n != name || q != qualifier {
			t.Fatalf("%q: its ARN is %q %q %q %q, %v", s, a, r, n, q, err)
		}
	})
}
