package gateway

import (
	"context"
	"encoding/base64"
	"strings"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// maxPage is the most that a list answers at once, whatever MaxItems says (AWS).
const maxPage = 50

// pageSize is how many items a list answers.
func pageSize(maxItems *int32) int {
	if maxItems == nil {
		return maxPage
	}
	return min(int(*maxItems), maxPage)
}

// A marker names the last item that was shown, so that a page begins at the same place whatever
// was created or deleted meanwhile. It is opaque to clients.
func newMarker(name, qualifier string) *string {
	return ptr(base64.RawURLEncoding.EncodeToString([]byte(name + ":" + qualifier)))
}

func readMarker(marker *string) (name, qualifier string, err error) {
	if marker == nil || *marker == "" {
		return "", "", nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(*marker)
	name, qualifier, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || !registry.IsName(name) || qualifier != "" && !registry.IsQualifier(qualifier) {
		return "", "", &Fault{Code: codeInvalidParameter, Message: "Invalid Marker. Use the NextMarker of the answer before, unchanged."}
	}
	return name, qualifier, nil
}

// ListFunctions implements dozev1.LambdaServer.
func (s *service) ListFunctions(ctx context.Context, r *dozev1.ListFunctionsRequest) (*dozev1.ListFunctionsResponse, error) {
	account := exchangeOf(ctx).caller.Account
	name, version, err := readMarker(r.Marker)
	if err != nil {
		return nil, err
	}
	out := &dozev1.ListFunctionsResponse{}
	if r.MasterRegion != nil {
		// It asks for copies of functions of other regions, of which there are none.
		return out, nil
	}
	size := pageSize(r.MaxItems)
	if r.GetFunctionVersion() == "ALL" {
		return s.listAllVersions(account, name, version, size)
	}
	page, more := s.config.Registry.List(account, name, size)
	for _, f := range page {
		c, err := s.listed(f, f.Latest, "")
		if err != nil {
			return nil, err
		}
		out.Functions = append(out.Functions, c)
	}
	if more {
		out.NextMarker = newMarker(page[len(page)-1].Name, "")
	}
	return out, nil
}

// listAllVersions is ListFunctions with FunctionVersion ALL: each function's $LATEST and versions.
func (s *service) listAllVersions(account, name, version string, size int) (*dozev1.ListFunctionsResponse, error) {
	out := &dozev1.ListFunctionsResponse{}
	add := func(f *registry.Function, after string) (full bool, err error) {
		for _, v := range versionsAfter(f, after) {
			if len(out.Functions) == size {
				last := out.Functions[size-1]
				out.NextMarker = newMarker(last.GetFunctionName(), last.GetVersion())
				return true, nil
			}
			c, err := s.listed(f, v, v.Version)
			if err != nil {
				return false, err
			}
			out.Functions = append(out.Functions, c)
		}
		return false, nil
	}
	if version != "" {
		if f, ok := s.config.Registry.Function(account, name); ok {
			if full, err := add(f, version); full || err != nil {
				return out, err
			}
		}
	}
	// Every function has one entry at least, so that this many are enough.
	page, _ := s.config.Registry.List(account, name, size+1)
	for _, f := range page {
		if full, err := add(f, ""); full || err != nil {
			return out, err
		}
	}
	return out, nil
}

// versionsAfter is $LATEST and the published versions, from behind the given one ("" for all).
func versionsAfter(f *registry.Function, after string) []*registry.Version {
	if after == "" {
		return append([]*registry.Version{f.Latest}, f.Versions...)
	}
	if after == registry.Latest {
		return f.Versions
	}
	for i, v := range f.Versions {
		if len(v.Version) > len(after) || len(v.Version) == len(after) && v.Version > after {
			return f.Versions[i:]
		}
	}
	return nil
}

// ListVersionsByFunction implements dozev1.LambdaServer.
func (s *service) ListVersionsByFunction(ctx context.Context, r *dozev1.ListVersionsByFunctionRequest) (*dozev1.ListVersionsByFunctionResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), "")
	if err != nil {
		return nil, err
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	_, after, err := readMarker(r.Marker)
	if err != nil {
		return nil, err
	}
	out := &dozev1.ListVersionsByFunctionResponse{}
	size := pageSize(r.MaxItems)
	for _, v := range versionsAfter(f, after) {
		if len(out.Versions) == size {
			out.NextMarker = newMarker(f.Name, out.Versions[size-1].GetVersion())
			break
		}
		c, err := s.listed(f, v, v.Version)
		if err != nil {
			return nil, err
		}
		out.Versions = append(out.Versions, c)
	}
	return out, nil
}

// PublishVersion implements dozev1.LambdaServer.
func (s *service) PublishVersion(ctx context.Context, r *dozev1.PublishVersionRequest) (*dozev1.FunctionConfiguration, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	if r.PublishTo != nil {
		return nil, notOffered("PublishTo", "latest published versions")
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	if given, current := r.GetCodeSha256(), codeSHA256(f.Latest.Code); given != "" && given != current {
		return nil, faultf(codeInvalidParameter, "CodeSHA256 (%s) is different from current CodeSHA256 in $LATEST (%s). Please try again with the CodeSHA256 in $LATEST.", cut(given), current)
	}
	answer, err := s.propose(ctx, t, registry.PublishVersion{
		Account: t.account, Name: t.name, Description: r.Description,
		RevisionID: newRevision(), At: s.nowMs(),
		IfCodeSHA256: r.GetCodeSha256(), IfRevisionID: r.GetRevisionId(),
	})
	if err != nil {
		return nil, err
	}
	v, ok := answer.(*registry.Version)
	if !ok {
		return s.answered(t, answer, "")
	}
	return s.answered(t, v, v.Version)
}
