package gateway

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/doze-run/doze/control/registry"
	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

const (
	// maxEnvironment is the most that a function's variables may take, as JSON, in bytes.
	maxEnvironment = 4096
	// maxLayers is how many layers a function may have.
	maxLayers = 5
	// networkDefault as Network is the platform's default, whatever that is when the function runs.
	networkDefault = "default"
)

// reservedVariables are set by the platform and cannot be set by a function's owner.
func reservedVariable(name string) bool {
	switch name {
	case "_HANDLER", "_X_AMZN_TRACE_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_EXECUTION_ENV",
		"AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION",
		"AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME",
		"AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR":
		return true
	}
	return false
}

// defaults is the configuration of a function of which nothing was said.
func defaults(name string) registry.Config {
	return registry.Config{
		Timeout:       3,
		MemorySize:    128,
		EphemeralSize: 512,
		PackageType:   "Zip",
		Architectures: []string{"x86_64"},
		TracingMode:   "PassThrough",
		SnapStart:     "None",
		LogFormat:     "Text",
		LogGroup:      "/aws/lambda/" + name,
	}
}

// merge answers base with what the request gives; base itself stays as it is. CreateFunction is a
// merge into the defaults.
func (s *service) merge(base registry.Config, r *dozev1.UpdateFunctionConfigurationRequest) (registry.Config, error) {
	c := base
	if err := s.refuseUnoffered(r); err != nil {
		return c, err
	}
	set(&c.Role, r.Role)
	set(&c.Handler, r.Handler)
	set(&c.Description, r.Description)
	set(&c.KMSKeyARN, r.KmsKeyArn)
	if r.Runtime != nil {
		if !slices.Contains(s.runtimes, r.GetRuntime()) {
			return c, faultf(codeInvalidParameter, "Value %s at 'runtime' failed to satisfy constraint: %s or be a valid ARN", cut(r.GetRuntime()), enumRule(s.runtimes))
		}
		c.Runtime = r.GetRuntime()
	}
	if r.Timeout != nil {
		c.Timeout = int(r.GetTimeout())
	}
	if r.MemorySize != nil {
		c.MemorySize = int(r.GetMemorySize())
	}
	if r.EphemeralStorage != nil {
		c.EphemeralSize = int(r.EphemeralStorage.GetSize())
	}
	if r.Environment != nil {
		if err := checkEnvironment(r.Environment.GetVariables()); err != nil {
			return c, err
		}
		c.HasEnv, c.Environment = true, r.Environment.GetVariables()
	}
	if r.Network != nil {
		if c.Network = r.GetNetwork(); c.Network == networkDefault {
			c.Network = ""
		}
	}
	if r.DeadLetterConfig != nil {
		c.DeadLetterARN = r.DeadLetterConfig.GetTargetArn()
	}
	if r.TracingConfig.GetMode() != "" {
		c.TracingMode = r.TracingConfig.GetMode()
	}
	if r.SnapStart.GetApplyOn() != "" {
		c.SnapStart = r.SnapStart.GetApplyOn()
	}
	if r.LoggingConfig != nil {
		if err := mergeLogging(&c, r.LoggingConfig); err != nil {
			return c, err
		}
	}
	if r.VpcConfig != nil {
		if err := echo(&c, echoVPC, r.VpcConfig, false); err != nil {
			return c, err
		}
	}
	if r.FileSystemConfigs != nil {
		if err := echo(&c, echoFileSystems, r.FileSystemConfigs, len(r.FileSystemConfigs.Items) == 0); err != nil {
			return c, err
		}
	}
	if r.Layers != nil {
		if err := s.checkLayers(r.Layers.Items); err != nil {
			return c, err
		}
		c.Layers = nil
	}
	return c, nil
}

// refuseUnoffered answers clearly where storing a member would promise what Doze does not do.
func (s *service) refuseUnoffered(r *dozev1.UpdateFunctionConfigurationRequest) error {
	switch {
	case r.CapacityProviderConfig != nil:
		return notOffered("CapacityProviderConfig", "capacity providers")
	case r.DurableConfig != nil:
		return notOffered("DurableConfig", "durable executions")
	case r.ImageConfig != nil:
		return notOffered("ImageConfig", "container images")
	}
	return nil
}

func notOffered(member, what string) error {
	return faultf(codeInvalidParameter, "%s can not be given: Doze does not offer %s yet.", member, what)
}

// checkLayers refuses layers in AWS's words for ones that are not there, since none can be yet.
func (s *service) checkLayers(arns []string) error {
	if len(arns) > maxLayers {
		return faultf(codeInvalidParameter, "Cannot reference more than %d layers.", maxLayers)
	}
	if len(arns) > 0 {
		return faultf(codeInvalidParameter, "Layer version %s does not exist. Doze does not offer layers yet.", cut(arns[0]))
	}
	return nil
}

func checkEnvironment(variables map[string]string) error {
	var reserved []string
	for name := range variables {
		if reservedVariable(name) {
			reserved = append(reserved, name)
		}
	}
	if len(reserved) > 0 {
		slices.Sort(reserved)
		return faultf(codeInvalidParameter, "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: %s", strings.Join(reserved, ", "))
	}
	measured, err := json.Marshal(variables)
	if err != nil {
		return fmt.Errorf("measure environment: %w", err)
	}
	if len(variables) > 0 && len(measured) > maxEnvironment {
		return &Fault{Code: codeInvalidParameter, Message: "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the 4KB limit."}
	}
	for name, value := range variables {
		// An environment ends at the first zero byte: the function would see another value.
		if strings.IndexByte(value, 0) >= 0 {
			return faultf(codeInvalidParameter, "The value of environment variable %s contains a zero byte.", cut(name))
		}
	}
	return nil
}

func mergeLogging(c *registry.Config, l *dozev1.LoggingConfig) error {
	set(&c.LogFormat, l.LogFormat)
	set(&c.LogGroup, l.LogGroup)
	if c.LogFormat == "Text" {
		if l.ApplicationLogLevel != nil || l.SystemLogLevel != nil {
			return &Fault{Code: codeInvalidParameter, Message: "Setting log levels is only supported when LogFormat is set to JSON."}
		}
		c.AppLogLevel, c.SysLogLevel = "", ""
		return nil
	}
	if c.AppLogLevel == "" {
		c.AppLogLevel, c.SysLogLevel = "INFO", "INFO"
	}
	set(&c.AppLogLevel, l.ApplicationLogLevel)
	set(&c.SysLogLevel, l.SystemLogLevel)
	return nil
}

// echo keeps (or removes) a member that is stored and answered only.
func echo(c *registry.Config, name string, m proto.Message, remove bool) error {
	kept := maps.Clone(c.Echo)
	delete(kept, name)
	if !remove {
		// Deterministic, so that a configuration that did not change compares equal.
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		if kept == nil {
			kept = map[string][]byte{}
		}
		kept[name] = raw
	}
	if len(kept) == 0 {
		kept = nil
	}
	c.Echo = kept
	return nil
}

func set(to *string, from *string) {
	if from != nil {
		*to = *from
	}
}
