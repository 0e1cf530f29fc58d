package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/spf13/cobra"
)

const (
	defaultEndpoint = "http://127.0.0.1:9000"
	endpointEnv     = "DOZE_ENDPOINT"
	keyIDEnv        = "DOZE_ACCESS_KEY_ID"
	secretEnv       = "DOZE_SECRET_ACCESS_KEY"
	// maxReplyBytes bounds what is read of an answer that is held in memory.
	maxReplyBytes = 64 << 20
)

// client talks to a Doze endpoint: the AWS Lambda API through AWS's own SDK, and what Doze adds to
// it over plain HTTP, signed the same way.
type client struct {
	*lambda.Client
	endpoint    string
	http        *http.Client
	region      string
	credentials aws.Credentials
}

// addEndpointFlag makes a command one that clientOf can serve.
func addEndpointFlag(cmd *cobra.Command) {
	cmd.Flags().String("endpoint", "", "`URL` where Doze listens (default $"+endpointEnv+", or "+defaultEndpoint+")")
}

// clientOf makes the client that a command's flags and the environment ask for.
func clientOf(cmd *cobra.Command) (*client, error) {
	endpoint, err := cmd.Flags().GetString("endpoint")
	if err != nil {
		return nil, err
	}
	from := "--endpoint"
	if endpoint == "" {
		endpoint, from = os.Getenv(endpointEnv), endpointEnv
	}
	if endpoint == "" {
		endpoint = defaultEndpoint
	}
	c, err := newClient(endpoint, os.Getenv)
	if err != nil {
		return nil, usagef("%s: %w", from, err)
	}
	return c, nil
}

// newClient makes a client of the endpoint: a URL, or host:port. See signerOf for its credentials.
func newClient(endpoint string, getenv func(string) string) (*client, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is not an endpoint: write it like %s", endpoint, defaultEndpoint)
	}
	endpoint = strings.TrimSuffix(u.String(), "/")

	key, region, err := signerOf(context.Background(), getenv)
	if err != nil {
		return nil, err
	}
	c := &client{
		endpoint:    endpoint,
		region:      region,
		credentials: key,
		http: &http.Client{Transport: &http.Transport{
			Proxy:       http.ProxyFromEnvironment,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			// No bound on the answer: a function may run for fifteen minutes.
		}},
	}
	c.Client = lambda.New(lambda.Options{
		BaseEndpoint: &endpoint,
		Region:       region,
		Credentials:  credentials.StaticCredentialsProvider{Value: key},
		HTTPClient:   c.http,
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = 3
			o.MaxBackoff = 500 * time.Millisecond
		}),
	})
	return c, nil
}

// once keeps the SDK from sending a request again whose first copy may have been carried out.
func once(o *lambda.Options) { o.Retryer = aws.NopRetryer{} }

// get asks for one of Doze's own resources and decodes the answer into v.
func (c *client) get(ctx context.Context, path string, query url.Values, v any) error {
	body, err := c.open(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxReplyBytes+1))
	if err != nil {
		return c.explain(err)
	}
	if len(data) > maxReplyBytes {
		return fmt.Errorf("the answer of %s%s is too long", c.endpoint, path)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s%s does not answer as Doze does: %w", c.endpoint, path, err)
	}
	return nil
}

// open asks for one of Doze's own resources; the caller closes the body.
func (c *client) open(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	target := c.endpoint + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	return c.send(ctx, http.MethodGet, target, nil)
}

// do carries out one of Doze's own operations and decodes the answer into answer, if that is not nil.
func (c *client) do(ctx context.Context, method, path string, request, answer any) error {
	var data []byte
	if request != nil {
		var err error
		if data, err = json.Marshal(request); err != nil {
			return err
		}
	}
	body, err := c.send(ctx, method, c.endpoint+path, data)
	if err != nil {
		return err
	}
	defer body.Close()
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(body, maxReplyBytes)).Decode(answer); err != nil {
		return fmt.Errorf("%s%s does not answer as Doze does: %w", c.endpoint, path, err)
	}
	return nil
}

// send sends a signed request; the caller closes the answer's body.
func (c *client) send(ctx context.Context, method, target string, data []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "doze/"+version)
	if err := c.sign(ctx, req, data); err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, c.explain(err)
	}
	return nil, c.explain(refusalOf(resp, text))
}

// sign signs a request as the SDK signs its own.
func (c *client) sign(ctx context.Context, req *http.Request, body []byte) error {
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, c.credentials, req, hex.EncodeToString(sum[:]), "lambda", c.region, time.Now()); err != nil {
		return fmt.Errorf("sign the request: %w", err)
	}
	return nil
}

// isCancelled tells an end that was asked for from a failure.
func isCancelled(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err())
}
