package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// region is what requests are signed for; Doze accepts any.
const region = "us-east-1"

// echoCredentials sign what nobody checks.
var echoCredentials aws.CredentialsProvider = credentials.NewStaticCredentialsProvider("doze", "doze-bench", "")

// echoPayload and sleepPayload are the events of all warm rows.
var echoPayload = []byte(`{"message":"hello from doze bench","number":42}`)

func sleepPayload(d time.Duration) []byte {
	return fmt.Appendf(nil, `{"sleepMs":%d}`, d.Milliseconds())
}

// invokePath is where a function is called.
func invokePath(function string) string {
	return "/2015-03-31/functions/" + url.PathEscape(function) + "/invocations"
}

// buildRequest is the bytes of one signed request: what an AWS SDK sends, made once and sent many
// times, so that the generator spends nothing on it. A signature is good for minutes: each load
// gets a fresh one. The echo server gets the same bytes but for the path.
func buildRequest(ctx context.Context, host, path string, payload []byte, credentials aws.CredentialsProvider) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+path, bytes.NewReader(payload))
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("User-Agent", "doze-bench")
	req.Header.Set("Content-Type", "application/json")
	c, err := credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	sum := sha256.Sum256(payload)
	if err := v4.NewSigner().SignHTTP(ctx, c, req, hex.EncodeToString(sum[:]), "lambda", region, time.Now()); err != nil {
		return nil, fmt.Errorf("sign request: %w", err)
	}
	var b bytes.Buffer
	if err := req.Write(&b); err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	return b.Bytes(), nil
}
