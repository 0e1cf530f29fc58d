package gateway

import (
	"errors"
	"net/http/httptest"
	"testing"
)

// TestAnyoneButWebPages: whoever looks at a page while `doze dev` runs has not let the page run code.
func TestAnyoneButWebPages(t *testing.T) {
	for name, c := range map[string]struct {
		method, host string
		header       map[string]string
		remote       bool // the gateway is reached from other machines
		refused      bool
	}{
		"a client":                           {method: "POST", host: "127.0.0.1:9000"},
		"a client by name":                   {method: "POST", host: "localhost:9000"},
		"a client by a name below localhost": {method: "POST", host: "lambda.LOCALHOST:9000"},
		"a client by IPv6":                   {method: "POST", host: "[::1]:9000"},
		"a client by IPv6 without port":      {method: "POST", host: "[::1]"},
		"a client by a name of no domain":    {method: "POST", host: "doze:9000"},
		"a client without a name":            {method: "GET"},
		"a page of another origin":           {method: "POST", host: "127.0.0.1:9000", header: map[string]string{"Origin": "http://evil.example"}, refused: true},
		"a page without an origin":           {method: "POST", host: "127.0.0.1:9000", header: map[string]string{"Origin": "null"}, refused: true},
		"a page of another site":             {method: "DELETE", host: "127.0.0.1:9000", header: map[string]string{"Sec-Fetch-Site": "cross-site"}, refused: true},
		"a page of another port":             {method: "POST", host: "localhost:9000", header: map[string]string{"Sec-Fetch-Site": "same-site"}, refused: true},
		"a page that another origin serves":  {method: "POST", host: "10.0.0.1:9000", header: map[string]string{"Origin": "http://evil.example"}, remote: true, refused: true},
		"a name that leads here":             {method: "GET", host: "evil.example:9000", refused: true},
		"a name that leads here, its origin": {method: "POST", host: "evil.example:9000", header: map[string]string{"Origin": "http://evil.example:9000"}, refused: true},
		"a name like localhost":              {method: "GET", host: "localhost.evil.example", refused: true},
		"another machine, by name":           {method: "POST", host: "doze.example", remote: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, "/2015-03-31/functions", nil)
			r.Host = c.host
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			identity, _, err := Anyone{Account: DevAccount, Loopback: !c.remote}.HTTP(r, serviceLambda)
			var f *Fault
			switch refused := errors.As(err, &f) && f.Status() == 403; {
			case refused != c.refused, !refused && err != nil:
				t.Errorf("%v", err)
			case refused == (identity.Account != ""):
				t.Errorf("%+v", identity)
			}
		})
	}
}
