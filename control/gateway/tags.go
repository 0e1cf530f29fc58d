package gateway

import (
	"context"
	"strings"
	"unicode/utf8"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Bounds of tags, in characters (AWS).
const (
	maxTagKey   = 128
	maxTagValue = 256
)

// tagged is the function that a tag operation's ARN names.
func (s *service) tagged(ctx context.Context, resource string) (target, *registry.Function, error) {
	if !strings.Contains(resource, ":function:") {
		return target{}, nil, &Fault{Code: codeNotFound, Message: messageNoSuchResource}
	}
	t, err := s.target(ctx, resource, "")
	if err != nil {
		return t, nil, err
	}
	if t.qualifier != "" {
		return t, nil, &Fault{Code: codeInvalidParameter, Message: "Tags on function aliases and versions are not supported. Please specify a function ARN."}
	}
	f, err := s.function(t)
	return t, f, err
}

// TagResource implements dozev1.LambdaServer.
func (s *service) TagResource(ctx context.Context, r *dozev1.TagResourceRequest) (*dozev1.TagResourceResponse, error) {
	if err := checkTags(r.Tags); err != nil {
		return nil, err
	}
	t, _, err := s.tagged(ctx, r.GetResource())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, t, registry.Tag{Account: t.account, Name: t.name, Tags: r.Tags, RevisionID: newRevision()}); err != nil {
		return nil, err
	}
	return &dozev1.TagResourceResponse{}, nil
}

// UntagResource implements dozev1.LambdaServer.
func (s *service) UntagResource(ctx context.Context, r *dozev1.UntagResourceRequest) (*dozev1.UntagResourceResponse, error) {
	t, _, err := s.tagged(ctx, r.GetResource())
	if err != nil {
		return nil, err
	}
	if _, err := s.propose(ctx, t, registry.Untag{Account: t.account, Name: t.name, Keys: r.TagKeys, RevisionID: newRevision()}); err != nil {
		return nil, err
	}
	return &dozev1.UntagResourceResponse{}, nil
}

// ListTags implements dozev1.LambdaServer.
func (s *service) ListTags(ctx context.Context, r *dozev1.ListTagsRequest) (*dozev1.ListTagsResponse, error) {
	_, f, err := s.tagged(ctx, r.GetResource())
	if err != nil {
		return nil, err
	}
	return &dozev1.ListTagsResponse{Tags: f.Tags}, nil
}

func checkTags(tags map[string]string) error {
	for key, value := range tags {
		switch {
		case key == "" || utf8.RuneCountInString(key) > maxTagKey:
			return faultf(codeInvalidParameter, "Tag keys must have 1 to %d characters.", maxTagKey)
		case utf8.RuneCountInString(value) > maxTagValue:
			return faultf(codeInvalidParameter, "The value of tag %s has more than %d characters.", key, maxTagValue)
		case strings.HasPrefix(strings.ToLower(key), "aws:"):
			return faultf(codeInvalidParameter, "Tag keys starting with aws: are reserved: %s", key)
		}
	}
	return nil
}
