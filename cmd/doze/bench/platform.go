package bench

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

const (
	readyLine   = "doze ready http="
	readyWithin = 20 * time.Second
	// stopGrace is how long the platform may take to let calls end and to remove what it made.
	stopGrace = 15 * time.Second
)

// errForeign is why some rows cannot be measured with --endpoint.
var errForeign = errors.New("the platform was not started by this run (--endpoint), so its process is not known")

// platform is the Doze that is measured: a `doze dev` that the bench started, or another one.
type platform struct {
	addr        string // host:port
	child       *child // nil for a foreign one
	readyAt     time.Time
	api         *lambda.Client
	credentials aws.CredentialsProvider
	created     map[string]struct{}
}

// startPlatform runs `doze dev` in a data folder of its own below dir and says how long it took to
// be ready, from exec to its ready line.
func startPlatform(ctx context.Context, l *launcher, program, dir, name string, flags ...string) (*platform, time.Duration, error) {
	start := time.Now()
	argv := append([]string{program, "dev", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--data-dir", filepath.Join(dir, name)}, flags...)
	c, line, err := l.startServer(ctx, name, dir, readyLine, readyWithin, argv...)
	took := time.Since(start)
	if err != nil {
		return nil, 0, err
	}
	addr, _, _ := strings.Cut(line, " ")
	p, err := connectPlatform(addr)
	if err != nil {
		return nil, 0, errors.Join(err, c.stop(stopGrace))
	}
	p.child, p.readyAt = c, start.Add(took)
	return p, took, nil
}

// connectPlatform speaks to a running Doze at http://host:port or host:port.
func connectPlatform(endpoint string) (*platform, error) {
	addr := endpoint
	if strings.Contains(endpoint, "://") {
		u, err := url.Parse(endpoint)
		if err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
		if u.Scheme != "http" {
			return nil, fmt.Errorf("endpoint %s: the load generator speaks plain http only", endpoint)
		}
		if addr = u.Host; u.Port() == "" {
			addr += ":80"
		}
	}
	// Credentials of the environment if there are any; in dev on loopback any will do.
	keys := echoCredentials
	if env, err := config.NewEnvConfig(); err == nil && env.Credentials.HasKeys() {
		keys = credentials.StaticCredentialsProvider{Value: env.Credentials}
	}
	api := lambda.New(lambda.Options{Region: region, BaseEndpoint: aws.String("http://" + addr), Credentials: keys})
	return &platform{addr: addr, api: api, credentials: keys, created: make(map[string]struct{})}, nil
}

// pid is the platform's process, or an error when it is not ours.
func (p *platform) pid() (int, error) {
	if p.child == nil {
		return 0, errForeign
	}
	return p.child.pid(), nil
}

// deploy creates a function and waits until it can be called.
func (p *platform) deploy(ctx context.Context, name string, f *function, zip []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	p.created[name] = struct{}{}
	_, err := p.api.CreateFunction(ctx, &lambda.CreateFunctionInput{
		FunctionName: aws.String(name),
		Runtime:      types.Runtime(f.runtime),
		Handler:      aws.String(f.handler),
		Role:         aws.String("arn:aws:iam::000000000000:role/bench"),
		Code:         &types.FunctionCode{ZipFile: zip},
		MemorySize:   aws.Int32(memorySize),
		Timeout:      aws.Int32(60),
		Description:  aws.String("made by doze bench, which removes it"),
	})
	if err != nil {
		return fmt.Errorf("deploy %s: %w", name, err)
	}
	for {
		c, err := p.api.GetFunctionConfiguration(ctx, &lambda.GetFunctionConfigurationInput{FunctionName: aws.String(name)})
		if err != nil {
			return fmt.Errorf("deploy %s: %w", name, err)
		}
		switch {
		case c.State == types.StateFailed || c.LastUpdateStatus == types.LastUpdateStatusFailed:
			return fmt.Errorf("deploy %s: %s", name, aws.ToString(c.StateReason))
		case c.State == types.StateActive && c.LastUpdateStatus != types.LastUpdateStatusInProgress:
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("deploy %s: still %s: %w", name, c.State, err)
		}
	}
}

// remove deletes functions; their instances end.
func (p *platform) remove(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		if _, ok := p.created[name]; !ok {
			continue
		}
		_, err := p.api.DeleteFunction(ctx, &lambda.DeleteFunctionInput{FunctionName: aws.String(name)})
		if missing := new(types.ResourceNotFoundException); err != nil && !errors.As(err, &missing) {
			errs = append(errs, fmt.Errorf("delete %s: %w", name, err))
			continue
		}
		delete(p.created, name)
	}
	return errors.Join(errs...)
}

// close ends what the bench started, and deletes what it made on a platform that stays.
func (p *platform) close(ctx context.Context) error {
	if p.child != nil {
		return p.child.stop(stopGrace)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	names := make([]string, 0, len(p.created))
	for name := range p.created {
		names = append(names, name)
	}
	return p.remove(ctx, names...)
}

// invoke is the request that calls a function.
func (p *platform) invoke(ctx context.Context, name string, payload []byte) ([]byte, error) {
	return buildRequest(ctx, p.addr, invokePath(name), payload, p.credentials)
}

// try calls a function once and returns its answer.
func (p *platform) try(ctx context.Context, name string, payload []byte) ([]byte, error) {
	c, err := dialCaller(ctx, p.addr)
	if err != nil {
		return nil, err
	}
	defer c.close()
	request, err := p.invoke(ctx, name, payload)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	r, _, err := c.call(ctx, request)
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(r, nil); err != nil {
		return nil, err
	}
	return append([]byte(nil), r.body...), nil
}
