package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"
)

// noKey is what requests are signed with where nobody named a key: `doze dev` takes any.
const noKey = "doze"

// signerOf is the access key and region to sign with: DOZE_ACCESS_KEY_ID and its secret, the AWS_*
// variables, or the keys in AWS's shared files (AWS_PROFILE, or "default"). Session tokens are left
// out: Doze's own keys have none, and AWS's are nobody else's business. A secret never leaves this
// process, whoever the endpoint is.
func signerOf(ctx context.Context, getenv func(string) string) (key aws.Credentials, region string, err error) {
	profile, err := sharedProfile(ctx, getenv)
	if err != nil {
		return key, "", err
	}
	key = aws.Credentials{AccessKeyID: noKey, SecretAccessKey: noKey}
	for _, pair := range [][2]string{
		{getenv(keyIDEnv), getenv(secretEnv)},
		{getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY")},
		{profile.Credentials.AccessKeyID, profile.Credentials.SecretAccessKey},
	} {
		if pair[0] != "" && pair[1] != "" {
			key.AccessKeyID, key.SecretAccessKey = pair[0], pair[1]
			break
		}
	}
	if (getenv(keyIDEnv) == "") != (getenv(secretEnv) == "") {
		return key, "", fmt.Errorf("%s and %s go together, and one of them is not set", keyIDEnv, secretEnv)
	}
	for _, region := range []string{getenv("AWS_REGION"), getenv("AWS_DEFAULT_REGION"), profile.Region} {
		if region != "" {
			return key, region, nil
		}
	}
	return key, "us-east-1", nil
}

// sharedProfile reads AWS's shared files, and nothing else that the SDK would ask: no service, no
// other program.
func sharedProfile(ctx context.Context, getenv func(string) string) (config.SharedConfig, error) {
	name, chosen := getenv("AWS_PROFILE"), true
	if name == "" {
		name, chosen = "default", false
	}
	path := func(variable, file string) []string {
		if path := getenv(variable); path != "" {
			return []string{path}
		}
		if home := getenv("HOME"); home != "" {
			return []string{filepath.Join(home, ".aws", file)}
		}
		return []string{}
	}
	profile, err := config.LoadSharedConfigProfile(ctx, name, func(o *config.LoadSharedConfigOptions) {
		o.ConfigFiles = path("AWS_CONFIG_FILE", "config")
		o.CredentialsFiles = path("AWS_SHARED_CREDENTIALS_FILE", "credentials")
	})
	if err != nil && chosen {
		return profile, fmt.Errorf("AWS_PROFILE %s: %w", name, err)
	}
	return profile, nil
}

// refused is what to do about an answer that is about the access key, "" when it is not.
func (c *client) refused(err error) string {
	var (
		api           smithy.APIError
		own           *refusal
		code, message string
	)
	switch {
	case errors.As(err, &api):
		code, message = api.ErrorCode(), describe(api)
	case errors.As(err, &own):
		code, message = own.code, own.Error()
	}
	const set = "set " + keyIDEnv + " and " + secretEnv + " to one that `doze key create` gave"
	switch code {
	case "MissingAuthenticationTokenException", "UnrecognizedClientException":
		if c.credentials.AccessKeyID == noKey {
			return fmt.Sprintf("%s takes only requests that are signed with an access key: %s", c.endpoint, set)
		}
		return fmt.Sprintf("%s does not know the access key %s: %s", c.endpoint, c.credentials.AccessKeyID, set)
	case "InvalidSignatureException":
		switch {
		case strings.HasPrefix(message, "Signature expired"), strings.HasPrefix(message, "Signature not yet current"):
			return fmt.Sprintf("%s (is this machine's clock right?)", message)
		case strings.Contains(message, "valid region"):
			return fmt.Sprintf("%s is of another region than %s: set AWS_REGION to the --region it was started with", c.endpoint, c.region)
		}
		return fmt.Sprintf("the secret does not go with the access key %s: look at %s", c.credentials.AccessKeyID, secretEnv)
	case "AccessDeniedException":
		return fmt.Sprintf("%s (a key with another role, or of another account, may: `doze key create --role ...`)", message)
	}
	return ""
}
