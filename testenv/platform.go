package testenv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Instance is one line of `doze ps --json`.
type Instance struct {
	ID        string `json:"id"`
	Function  string `json:"function"`
	Version   string `json:"version"`
	State     string `json:"state"`
	CreatedAt string `json:"createdAt"`
	IdleMs    int64  `json:"idleMs"`
	Memory    int64  `json:"memoryBytes"`
	Calls     int64  `json:"calls"`
	Cold      bool   `json:"cold"`
	Worker    string `json:"worker"`
}

// Bill is `doze bill --json`.
type Bill struct {
	Month     string `json:"month"`
	Functions []struct {
		Function      string `json:"function"`
		Requests      int64  `json:"requests"`
		MBMs          int64  `json:"mbMs"`
		AmountNanoUSD int64  `json:"amountNanoUSD"`
	} `json:"functions"`
	TotalNanoUSD    int64 `json:"totalNanoUSD"`
	AlwaysOnNanoUSD int64 `json:"alwaysOnNanoUSD"`
}

// Get reads one of Doze's own resources into v.
func (d *Dev) Get(ctx context.Context, path string, v any) {
	d.t.Helper()
	if err := d.Ask(ctx, path, v); err != nil {
		d.t.Fatal(err)
	}
}

// Ask is Get of a process that may not answer.
func (d *Dev) Ask(ctx context.Context, path string, v any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.HTTP+path, nil)
	if err != nil {
		return err
	}
	empty := sha256.Sum256(nil)
	key := aws.Credentials{AccessKeyID: d.KeyID, SecretAccessKey: d.Secret}
	if err := v4.NewSigner().SignHTTP(ctx, key, request, hex.EncodeToString(empty[:]), "lambda", "us-east-1", time.Now()); err != nil {
		return err
	}
	transport := d.transport()
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", response.Status)
	}
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		return fmt.Errorf("GET %s: %w\n%s", path, err, raw)
	}
	return nil
}

// Instances are those of one function, or all when name is "".
func (d *Dev) Instances(ctx context.Context, name string) []Instance {
	d.t.Helper()
	var all, some []Instance
	d.Get(ctx, "/doze/v1/instances", &all)
	for _, i := range all {
		if name == "" || i.Function == name {
			some = append(some, i)
		}
	}
	return some
}

// Runtimes are the names of the runtimes there are.
func (d *Dev) Runtimes(ctx context.Context) []string {
	d.t.Helper()
	var all []struct {
		Name string `json:"name"`
	}
	d.Get(ctx, "/doze/v1/runtimes", &all)
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names
}

// Requests is how many requests of a function this month's bill has, and their MB × ms.
func (d *Dev) Requests(ctx context.Context, name string) (requests, mbMs int64) {
	d.t.Helper()
	var bill Bill
	d.Get(ctx, "/doze/v1/bill", &bill)
	for _, f := range bill.Functions {
		if f.Function == name {
			return f.Requests, f.MBMs
		}
	}
	return 0, 0
}

// Eventually asks until the condition holds, for at most limit: for what the product itself
// promises to come about within a time.
func (d *Dev) Eventually(limit time.Duration, what string, holds func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(limit)
	for !holds() {
		if time.Now().After(deadline) {
			d.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
