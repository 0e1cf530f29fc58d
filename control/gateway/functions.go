package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// CreateFunction implements dozev1.LambdaServer.
func (s *service) CreateFunction(ctx context.Context, r *dozev1.CreateFunctionRequest) (*dozev1.FunctionConfiguration, error) {
	t, err := s.target(ctx, r.GetFunctionName(), "")
	if err != nil {
		return nil, err
	}
	if t.qualifier != "" {
		return nil, &Fault{Code: codeInvalidParameter, Message: "The function name of a new function can not have a qualifier."}
	}
	if err := refuseUnofferedCreate(r); err != nil {
		return nil, err
	}
	if r.Runtime == nil || r.Handler == nil {
		return nil, &Fault{Code: codeInvalidParameter, Message: "Runtime and Handler are mandatory parameters for functions created with deployment packages."}
	}
	config, err := s.merge(defaults(t.name), &dozev1.UpdateFunctionConfigurationRequest{
		Role: r.Role, Handler: r.Handler, Description: r.Description, Timeout: r.Timeout, MemorySize: r.MemorySize,
		VpcConfig: r.VpcConfig, Environment: r.Environment, Runtime: r.Runtime, DeadLetterConfig: r.DeadLetterConfig,
		KmsKeyArn: r.KmsKeyArn, TracingConfig: r.TracingConfig, ImageConfig: r.ImageConfig,
		EphemeralStorage: r.EphemeralStorage, SnapStart: r.SnapStart, LoggingConfig: r.LoggingConfig, Network: r.Network,
		CapacityProviderConfig: r.CapacityProviderConfig, DurableConfig: r.DurableConfig,
		Layers:            &dozev1.LayerVersionArnList{Items: r.Layers},
		FileSystemConfigs: &dozev1.FileSystemConfigList{Items: r.FileSystemConfigs},
	})
	if err != nil {
		return nil, err
	}
	if len(r.Architectures) > 0 {
		config.Architectures = r.Architectures
	}
	if err := checkTags(r.Tags); err != nil {
		return nil, err
	}
	if len(r.Tags) > registry.MaxTags {
		return nil, s.refusal(t, registry.ErrTooManyTags)
	}
	// Asked here too, so that nothing is unpacked and stored for a function that cannot be made.
	if _, ok := s.config.Registry.Function(t.account, t.name); ok {
		return nil, s.refusal(t, registry.ErrExists)
	}
	code, err := s.store(ctx, t, r.Code.GetZipFile())
	if err != nil {
		return nil, err
	}
	command := registry.CreateFunction{
		Account: t.account, Name: t.name, Tags: r.Tags,
		Version: registry.Version{RevisionID: newRevision(), LastModified: s.nowMs(), Config: config, Code: code},
	}
	if r.GetPublish() {
		command.PublishRevisionID = newRevision()
	}
	answer, err := s.propose(ctx, t, command)
	if err != nil {
		return nil, err
	}
	return s.answered(t, answer, "")
}

func refuseUnofferedCreate(r *dozev1.CreateFunctionRequest) error {
	code := r.GetCode()
	switch {
	case r.GetPackageType() == "Image" || code.ImageUri != nil:
		return notOffered("ImageUri", "container images")
	case r.CodeSigningConfigArn != nil:
		return notOffered("CodeSigningConfigArn", "code signing")
	case r.TenancyConfig != nil:
		return notOffered("TenancyConfig", "tenant isolation")
	case r.PublishTo != nil:
		return notOffered("PublishTo", "latest published versions")
	case code.S3Bucket != nil || code.S3Key != nil || code.S3ObjectVersion != nil:
		return noS3()
	case code.SourceKmsKeyArn != nil:
		return notOffered("SourceKMSKeyArn", "encrypted code packages")
	}
	return nil
}

func noS3() error {
	return &Fault{Code: codeInvalidParameter, Message: "Code can not be taken from S3: Doze has no S3. Send the zip itself as ZipFile."}
}

// store checks a zip and puts it where workers find it.
func (s *service) store(ctx context.Context, t target, zip []byte) (registry.Code, error) {
	if len(zip) == 0 {
		return registry.Code{}, &Fault{Code: codeInvalidParameter, Message: "Please provide a source for function code."}
	}
	if len(zip) > maxZip {
		return registry.Code{}, faultf(codeInvalidParameter, "Zipped size must be smaller than %d bytes", maxZip)
	}
	if err := checkZip(zip); err != nil {
		return registry.Code{}, err
	}
	if s.config.Registry.Usage(t.account).TotalCodeSize+int64(len(zip)) > maxTotalCode {
		return registry.Code{}, &Fault{Code: codeCodeStorage, Message: "Code storage limit exceeded."}
	}
	code := codeOf(zip)
	if err := s.config.Code.Put(ctx, code.SHA256, zip); err != nil {
		return registry.Code{}, err
	}
	return code, nil
}

func codeOf(zip []byte) registry.Code {
	sum := sha256.Sum256(zip)
	return registry.Code{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(zip))}
}

// answered is the configuration of the *registry.Version that a command answered.
func (s *service) answered(t target, answer any, qualifier string) (*dozev1.FunctionConfiguration, error) {
	v, ok := answer.(*registry.Version)
	if !ok {
		return nil, errors.New("the registry answered something else than a version")
	}
	return s.configuration(&registry.Function{Account: t.account, Name: t.name}, v, qualifier)
}

// GetFunction implements dozev1.LambdaServer.
func (s *service) GetFunction(ctx context.Context, r *dozev1.GetFunctionRequest) (*dozev1.GetFunctionResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	f, v, err := s.version(t)
	if err != nil {
		return nil, err
	}
	configuration, err := s.configuration(f, v, t.qualifier)
	if err != nil {
		return nil, err
	}
	out := &dozev1.GetFunctionResponse{
		Configuration: configuration,
		Code:          &dozev1.FunctionCodeLocation{RepositoryType: ptr("S3"), Location: ptr(s.codeLink(ctx, v.Code.SHA256))},
		Tags:          f.Tags,
	}
	if f.Reserved != nil {
		out.Concurrency = &dozev1.Concurrency{ReservedConcurrentExecutions: ptr(int32(*f.Reserved))}
	}
	return out, nil
}

// GetFunctionConfiguration implements dozev1.LambdaServer.
func (s *service) GetFunctionConfiguration(ctx context.Context, r *dozev1.GetFunctionConfigurationRequest) (*dozev1.FunctionConfiguration, error) {
	t, err := s.target(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	f, v, err := s.version(t)
	if err != nil {
		return nil, err
	}
	return s.configuration(f, v, t.qualifier)
}

// UpdateFunctionCode implements dozev1.LambdaServer.
func (s *service) UpdateFunctionCode(ctx context.Context, r *dozev1.UpdateFunctionCodeRequest) (*dozev1.FunctionConfiguration, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	switch {
	case r.ImageUri != nil:
		return nil, notOffered("ImageUri", "container images")
	case r.S3Bucket != nil || r.S3Key != nil || r.S3ObjectVersion != nil:
		return nil, noS3()
	case r.SourceKmsKeyArn != nil:
		return nil, notOffered("SourceKMSKeyArn", "encrypted code packages")
	case r.PublishTo != nil:
		return nil, notOffered("PublishTo", "latest published versions")
	}
	f, err := s.function(t)
	if err != nil {
		return nil, err
	}
	if r.GetRevisionId() != "" && r.GetRevisionId() != f.Latest.RevisionID {
		return nil, s.refusal(t, registry.ErrRevision)
	}
	if r.GetDryRun() {
		return s.dryRunCode(t, f, r)
	}
	code, err := s.store(ctx, t, r.GetZipFile())
	if err != nil {
		return nil, err
	}
	command := registry.UpdateCode{
		Account: t.account, Name: t.name, Code: code,
		RevisionID: newRevision(), At: s.nowMs(), IfRevisionID: r.GetRevisionId(),
	}
	if len(r.Architectures) > 0 {
		command.Architectures = r.Architectures
	}
	if r.GetPublish() {
		command.PublishRevisionID = newRevision()
	}
	answer, err := s.propose(ctx, t, command)
	if err != nil {
		return nil, err
	}
	qualifier := ""
	if v, ok := answer.(*registry.Version); ok && r.GetPublish() {
		qualifier = v.Version
	}
	return s.answered(t, answer, qualifier)
}

// dryRunCode answers what UpdateFunctionCode would, and changes nothing.
func (s *service) dryRunCode(t target, f *registry.Function, r *dozev1.UpdateFunctionCodeRequest) (*dozev1.FunctionConfiguration, error) {
	zip := r.GetZipFile()
	if len(zip) == 0 {
		return nil, &Fault{Code: codeInvalidParameter, Message: "Please provide a source for function code."}
	}
	if err := checkZip(zip); err != nil {
		return nil, err
	}
	v := *f.Latest
	v.Code = codeOf(zip)
	if len(r.Architectures) > 0 {
		v.Config.Architectures = r.Architectures
	}
	return s.answered(t, &v, "")
}

// UpdateFunctionConfiguration implements dozev1.LambdaServer.
func (s *service) UpdateFunctionConfiguration(ctx context.Context, r *dozev1.UpdateFunctionConfigurationRequest) (*dozev1.FunctionConfiguration, error) {
	t, err := s.whole(ctx, r.GetFunctionName())
	if err != nil {
		return nil, err
	}
	// The merge is against the configuration read here. If another update comes between, the
	// registry says so and the merge is made anew; after a few rounds the caller may try again.
	const rounds = 8
	for range rounds {
		f, err := s.function(t)
		if err != nil {
			return nil, err
		}
		config, err := s.merge(f.Latest.Config, r)
		if err != nil {
			return nil, err
		}
		var answer any
		answer, err = s.config.Proposer.Propose(ctx, registry.UpdateConfig{
			Account: t.account, Name: t.name, Config: config, BaseRevisionID: f.Latest.RevisionID,
			RevisionID: newRevision(), At: s.nowMs(), IfRevisionID: r.GetRevisionId(),
		})
		switch {
		case err == nil:
			return s.answered(t, answer, "")
		case !errors.Is(err, registry.ErrStale):
			return nil, s.refusal(t, err)
		}
	}
	return nil, s.refusal(t, registry.ErrStale)
}

// DeleteFunction implements dozev1.LambdaServer.
func (s *service) DeleteFunction(ctx context.Context, r *dozev1.DeleteFunctionRequest) (*dozev1.DeleteFunctionResponse, error) {
	t, err := s.target(ctx, r.GetFunctionName(), r.GetQualifier())
	if err != nil {
		return nil, err
	}
	if _, err := s.function(target{account: t.account, name: t.name, qualifier: t.qualifier}); err != nil {
		return nil, err
	}
	switch {
	case t.qualifier == registry.Latest:
		return nil, &Fault{Code: codeInvalidParameter, Message: "$LATEST version cannot be deleted without deleting the function."}
	case t.qualifier != "" && !registry.IsVersionNumber(t.qualifier):
		return nil, &Fault{Code: codeInvalidParameter, Message: "Deletion of aliases is not currently supported."}
	}
	_, err = s.propose(ctx, t, registry.DeleteFunction{Account: t.account, Name: t.name, Version: t.qualifier})
	if err != nil {
		return nil, err
	}
	return &dozev1.DeleteFunctionResponse{StatusCode: ptr(int32(204))}, nil
}
