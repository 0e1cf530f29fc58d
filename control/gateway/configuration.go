package gateway

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// timeFormat is how Lambda writes LastModified.
const timeFormat = "2006-01-02T15:04:05.000-0700"

// Names under which Config.Echo keeps members that Doze stores and answers.
const (
	echoVPC         = "VpcConfig"
	echoFileSystems = "FileSystemConfigs"
)

// configuration is a version as AWS shows it. qualifier is what the ARN carries, "" for none.
func (s *service) configuration(f *registry.Function, v *registry.Version, qualifier string) (*dozev1.FunctionConfiguration, error) {
	c := &v.Config
	out := &dozev1.FunctionConfiguration{
		FunctionName:  &f.Name,
		FunctionArn:   ptr(s.arn(f.Account, f.Name, qualifier)),
		Role:          &c.Role,
		Runtime:       optional(c.Runtime),
		Handler:       optional(c.Handler),
		CodeSize:      &v.Code.Size,
		CodeSha256:    ptr(codeSHA256(v.Code)),
		Description:   &c.Description,
		Timeout:       ptr(int32(c.Timeout)),
		MemorySize:    ptr(int32(c.MemorySize)),
		LastModified:  ptr(time.UnixMilli(v.LastModified).UTC().Format(timeFormat)),
		Version:       &v.Version,
		RevisionId:    &v.RevisionID,
		PackageType:   &c.PackageType,
		Architectures: c.Architectures,
		KmsKeyArn:     optional(c.KMSKeyARN),
		Network:       optional(c.Network),

		EphemeralStorage: &dozev1.EphemeralStorage{Size: ptr(int32(c.EphemeralSize))},
		TracingConfig:    &dozev1.TracingConfigResponse{Mode: &c.TracingMode},
		SnapStart:        &dozev1.SnapStartResponse{ApplyOn: &c.SnapStart, OptimizationStatus: ptr("Off")},
		LoggingConfig: &dozev1.LoggingConfig{
			LogFormat:           &c.LogFormat,
			LogGroup:            &c.LogGroup,
			ApplicationLogLevel: optional(c.AppLogLevel),
			SystemLogLevel:      optional(c.SysLogLevel),
		},

		State:                      optional(v.State),
		StateReason:                optional(v.StateReason),
		StateReasonCode:            optional(v.StateReasonCode),
		LastUpdateStatus:           optional(v.UpdateStatus),
		LastUpdateStatusReason:     optional(v.UpdateReason),
		LastUpdateStatusReasonCode: optional(v.UpdateReasonCode),
	}
	if c.Runtime != "" {
		// AWS names a build of the runtime; here the name of the runtime is all there is to name.
		sum := sha256.Sum256([]byte(c.Runtime))
		out.RuntimeVersionConfig = &dozev1.RuntimeVersionConfig{
			RuntimeVersionArn: ptr("arn:aws:lambda:" + s.config.Region + "::runtime:" + hex.EncodeToString(sum[:])),
		}
	}
	if c.HasEnv {
		out.Environment = &dozev1.EnvironmentResponse{Variables: c.Environment}
	}
	if c.DeadLetterARN != "" {
		out.DeadLetterConfig = &dozev1.DeadLetterConfig{TargetArn: &c.DeadLetterARN}
	}
	if raw, ok := c.Echo[echoVPC]; ok {
		var vpc dozev1.VpcConfig
		if err := proto.Unmarshal(raw, &vpc); err != nil {
			return nil, fmt.Errorf("stored %s of %s: %w", echoVPC, f.Name, err)
		}
		out.VpcConfig = &dozev1.VpcConfigResponse{
			SubnetIds: vpc.SubnetIds, SecurityGroupIds: vpc.SecurityGroupIds,
			VpcId: ptr(""), Ipv6AllowedForDualStack: vpc.Ipv6AllowedForDualStack,
		}
	}
	if raw, ok := c.Echo[echoFileSystems]; ok {
		var list dozev1.FileSystemConfigList
		if err := proto.Unmarshal(raw, &list); err != nil {
			return nil, fmt.Errorf("stored %s of %s: %w", echoFileSystems, f.Name, err)
		}
		out.FileSystemConfigs = list.Items
	}
	return out, nil
}

// listed is a configuration as list operations show it: without its states.
func (s *service) listed(f *registry.Function, v *registry.Version, qualifier string) (*dozev1.FunctionConfiguration, error) {
	out, err := s.configuration(f, v, qualifier)
	if err != nil {
		return nil, err
	}
	out.State, out.StateReason, out.StateReasonCode = nil, nil, nil
	out.LastUpdateStatus, out.LastUpdateStatusReason, out.LastUpdateStatusReasonCode = nil, nil, nil
	out.RuntimeVersionConfig = nil
	return out, nil
}

// codeSHA256 is a package's hash as AWS shows it.
func codeSHA256(c registry.Code) string {
	sum, err := hex.DecodeString(c.SHA256)
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(sum)
}

// optional is nil for "".
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
