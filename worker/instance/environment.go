package instance

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/doze-run/doze/worker/runtimes"
)

// fullCPUMemoryMB is the memory at which AWS gives one whole CPU.
const fullCPUMemoryMB = 1769

// cpuMilli is an instance's share in thousandths of a CPU, in proportion to its memory.
func cpuMilli(memoryMB uint32) int {
	return max(1, int(memoryMB)*1000/fullCPUMemoryMB)
}

// defaults are the variables that an owner's win over, and that a runtime may read before it has a function.
func defaults(r runtimes.Runtime) map[string]string {
	vars := map[string]string{
		"LANG":            "en_US.UTF-8",
		"TZ":              ":UTC",
		"PATH":            "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
		"LD_LIBRARY_PATH": "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
	}
	maps.Copy(vars, r.Environment())
	return vars
}

// environment is the whole environment of an instance, sorted, without AWS_LAMBDA_RUNTIME_API,
// which the sandbox adds. Names AWS reserves win over the owner's variables; defaults (PATH, TZ,
// LANG, LD_LIBRARY_PATH and what the runtime needs) give way to them, as on AWS.
func environment(o *Options, l *Launch, stream string) []string {
	s := l.Spec
	vars := defaults(l.Runtime)
	if l.Runtime.Native() {
		// A Go program makes a thread per CPU it sees, which is the machine's and not its share.
		vars["GOMAXPROCS"] = strconv.Itoa(max(1, (cpuMilli(s.MemoryMb)+999)/1000))
	}
	for name, value := range s.Environment {
		vars[name] = value
	}
	initType := "on-demand"
	if l.Provisioned {
		initType = "provisioned-concurrency"
	}
	logGroup := s.LogGroup
	if logGroup == "" {
		logGroup = "/aws/lambda/" + s.Function
	}
	reserved := map[string]string{
		"_HANDLER":                        s.Handler,
		"AWS_REGION":                      o.Region,
		"AWS_DEFAULT_REGION":              o.Region,
		"AWS_LAMBDA_FUNCTION_NAME":        s.Function,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.FormatUint(uint64(s.MemoryMb), 10),
		"AWS_LAMBDA_FUNCTION_VERSION":     s.Version,
		"AWS_LAMBDA_INITIALIZATION_TYPE":  initType,
		"AWS_LAMBDA_LOG_GROUP_NAME":       logGroup,
		"AWS_LAMBDA_LOG_STREAM_NAME":      stream,
		"AWS_ACCESS_KEY_ID":               l.Credentials.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY":           l.Credentials.SecretAccessKey,
		"AWS_SESSION_TOKEN":               l.Credentials.SessionToken,
		"LAMBDA_TASK_ROOT":                runtimes.TaskRoot,
		"LAMBDA_RUNTIME_DIR":              runtimes.RuntimeRoot,
	}
	for name, value := range reserved {
		vars[name] = value
	}
	// Set per invocation by the runtime's client, or by the sandbox, or absent.
	delete(vars, "_X_AMZN_TRACE_ID")
	delete(vars, "AWS_LAMBDA_RUNTIME_API")
	delete(vars, "AWS_EXECUTION_ENV")
	if !l.Runtime.Native() {
		vars["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + l.Runtime.Name
	}
	return sorted(vars)
}

// sorted are the variables as a program takes them.
func sorted(vars map[string]string) []string {
	env := make([]string, 0, len(vars))
	for name, value := range vars {
		// The registry admits no such names or values; execve would cut or misread them.
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.IndexByte(value, 0) >= 0 {
			continue
		}
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env
}
