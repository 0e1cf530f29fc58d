// Package dozeauth signs gRPC calls to Doze with an access key:
//
//	grpc.NewClient(address, grpc.WithPerRPCCredentials(dozeauth.Key{ID: id, Secret: secret}), ...)
//
// A call is signed as a POST of its method's name would be, with Signature Version 4. The secret
// never travels, but the message is not part of what is signed: over networks that are not yours
// alone, use TLS.
package dozeauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"google.golang.org/grpc/credentials"
)

const (
	service  = "lambda"
	unsigned = "UNSIGNED-PAYLOAD"
)

// Key is an access key; it implements credentials.PerRPCCredentials.
type Key struct {
	ID, Secret string
	// Region is the endpoint's; "us-east-1" when empty.
	Region string
	// Now is the wall clock; time.Now when nil.
	Now func() time.Time
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (k Key) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	info, ok := credentials.RequestInfoFromContext(ctx)
	if !ok || len(uri) == 0 {
		return nil, errors.New("dozeauth: not a gRPC call")
	}
	endpoint, err := url.Parse(uri[0])
	if err != nil {
		return nil, fmt.Errorf("dozeauth: %w", err)
	}
	request := (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: endpoint.Scheme, Host: endpoint.Host, Path: info.Method},
		Header: http.Header{"X-Amz-Content-Sha256": {unsigned}},
	}).WithContext(ctx)
	region, now := k.Region, time.Now
	if region == "" {
		region = "us-east-1"
	}
	if k.Now != nil {
		now = k.Now
	}
	err = v4.NewSigner().SignHTTP(ctx, aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}, request, unsigned, service, region, now())
	if err != nil {
		return nil, fmt.Errorf("dozeauth: %w", err)
	}
	metadata := make(map[string]string, len(request.Header))
	for name, values := range request.Header {
		metadata[strings.ToLower(name)] = values[0]
	}
	return metadata, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials: the secret does not travel.
func (k Key) RequireTransportSecurity() bool { return false }
