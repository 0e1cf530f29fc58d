package gateway

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/doze-run/doze/control/registry"
)

const role = "arn:aws:iam::000000000000:role/any"

func createInput(name string) *lambda.CreateFunctionInput {
	return &lambda.CreateFunctionInput{
		FunctionName: &name, Role: aws.String(role), Runtime: types.RuntimePython312, Handler: aws.String("app.handler"),
		Code: &types.FunctionCode{ZipFile: onlyZip},
	}
}

// onlyZip is a small package with one file.
var onlyZip = func() []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	f, err := z.Create("app.py")
	if err == nil {
		_, err = f.Write([]byte("def handler(event, context): return event\n"))
	}
	if err := errors.Join(err, z.Close()); err != nil {
		panic(err)
	}
	return b.Bytes()
}()

// wantFault checks that err is AWS's error of that code, with that text in it.
func wantFault(t *testing.T, err error, code, text string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) {
		t.Fatalf("got %v, want %s", err, code)
	}
	if api.ErrorCode() != code || !strings.Contains(api.ErrorMessage(), text) {
		t.Fatalf("got %s: %s\nwant %s: %s", api.ErrorCode(), api.ErrorMessage(), code, text)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestCreateMinimal(t *testing.T) {
	w := newWorld(t)
	out := w.create("f")
	sum := sha256.Sum256(onlyZip)
	want := lambda.CreateFunctionOutput{
		FunctionName: aws.String("f"), FunctionArn: aws.String("arn:aws:lambda:us-east-1:000000000000:function:f"),
		Runtime: types.RuntimePython312, Role: aws.String(role), Handler: aws.String("app.handler"),
		CodeSize: int64(len(onlyZip)), CodeSha256: aws.String(base64.StdEncoding.EncodeToString(sum[:])),
		Description: aws.String(""), Timeout: aws.Int32(3), MemorySize: aws.Int32(128),
		LastModified: aws.String("2024-05-01T12:34:56.789+0000"), Version: aws.String("$LATEST"),
		PackageType: types.PackageTypeZip, Architectures: []types.Architecture{types.ArchitectureX8664},
		EphemeralStorage: &types.EphemeralStorage{Size: aws.Int32(512)},
		TracingConfig:    &types.TracingConfigResponse{Mode: types.TracingModePassThrough},
		SnapStart:        &types.SnapStartResponse{ApplyOn: types.SnapStartApplyOnNone, OptimizationStatus: types.SnapStartOptimizationStatusOff},
		LoggingConfig:    &types.LoggingConfig{LogFormat: types.LogFormatText, LogGroup: aws.String("/aws/lambda/f")},
		State:            types.StatePending, StateReason: aws.String("The function is being created."), StateReasonCode: types.StateReasonCodeCreating,
		RevisionId: out.RevisionId, RuntimeVersionConfig: out.RuntimeVersionConfig, ResultMetadata: out.ResultMetadata,
	}
	if diff := cmp.Diff(asJSON(t, want), asJSON(t, out)); diff != "" {
		t.Error(diff)
	}
	if len(aws.ToString(out.RevisionId)) != 36 || !strings.HasPrefix(aws.ToString(out.RuntimeVersionConfig.RuntimeVersionArn), "arn:aws:lambda:us-east-1::runtime:") {
		t.Errorf("revision %v, runtime version %v", aws.ToString(out.RevisionId), out.RuntimeVersionConfig)
	}
	got := must(w.client().GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")}))(t)
	if got.State != types.StateActive || got.StateReason != nil || got.LastUpdateStatus != types.LastUpdateStatusSuccessful {
		t.Errorf("after settling: %v %v %v", got.State, got.StateReason, got.LastUpdateStatus)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	return string(must(json.MarshalIndent(v, "", " "))(t))
}

func TestCreateEverything(t *testing.T) {
	w := newWorld(t)
	w.create("f", func(in *lambda.CreateFunctionInput) {
		in.Description = aws.String("does things")
		in.Timeout, in.MemorySize = aws.Int32(900), aws.Int32(10240)
		in.Environment = &types.Environment{Variables: map[string]string{"KEY": "välue \"q\""}}
		in.DeadLetterConfig = &types.DeadLetterConfig{TargetArn: aws.String("arn:aws:sqs:us-east-1:000000000000:q")}
		in.KMSKeyArn = aws.String("arn:aws:kms:us-east-1:000000000000:key/k")
		in.TracingConfig = &types.TracingConfig{Mode: types.TracingModeActive}
		in.Tags = map[string]string{"team": "a"}
		in.Architectures = []types.Architecture{types.ArchitectureArm64}
		in.EphemeralStorage = &types.EphemeralStorage{Size: aws.Int32(1024)}
		in.SnapStart = &types.SnapStart{ApplyOn: types.SnapStartApplyOnPublishedVersions}
		in.LoggingConfig = &types.LoggingConfig{LogFormat: types.LogFormatJson, ApplicationLogLevel: types.ApplicationLogLevelDebug, LogGroup: aws.String("/my/group")}
		in.VpcConfig = &types.VpcConfig{SubnetIds: []string{"subnet-1"}, SecurityGroupIds: []string{"sg-1"}}
		in.FileSystemConfigs = []types.FileSystemConfig{{Arn: aws.String("arn:aws:elasticfilesystem:us-east-1:000000000000:access-point/fsap-0123456789abcdef0"), LocalMountPath: aws.String("/mnt/a")}}
		in.Publish = true
	})
	out := must(w.client().GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")}))(t)
	c := out.Configuration
	checks := map[string]bool{
		"description": *c.Description == "does things",
		"sizes":       *c.Timeout == 900 && *c.MemorySize == 10240 && *c.EphemeralStorage.Size == 1024,
		"environment": c.Environment.Variables["KEY"] == "välue \"q\"",
		"dead letter": *c.DeadLetterConfig.TargetArn == "arn:aws:sqs:us-east-1:000000000000:q",
		"key":         *c.KMSKeyArn == "arn:aws:kms:us-east-1:000000000000:key/k",
		"tracing":     c.TracingConfig.Mode == types.TracingModeActive,
		"tags":        out.Tags["team"] == "a",
		"arch":        c.Architectures[0] == types.ArchitectureArm64,
		"snap start":  c.SnapStart.ApplyOn == types.SnapStartApplyOnPublishedVersions,
		"logging":     c.LoggingConfig.LogFormat == types.LogFormatJson && c.LoggingConfig.ApplicationLogLevel == types.ApplicationLogLevelDebug && c.LoggingConfig.SystemLogLevel == types.SystemLogLevelInfo && *c.LoggingConfig.LogGroup == "/my/group",
		"vpc":         c.VpcConfig.SubnetIds[0] == "subnet-1" && c.VpcConfig.SecurityGroupIds[0] == "sg-1",
		"files":       *c.FileSystemConfigs[0].LocalMountPath == "/mnt/a",
		"repository":  *out.Code.RepositoryType == "S3",
	}
	for what, ok := range checks {
		if !ok {
			t.Errorf("%s is not as given", what)
		}
	}
	if _, _, ok := w.state.Resolve(DevAccount, "f", "1"); !ok {
		t.Error("version 1 was not published")
	}
}

func TestCodeLocation(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	out := must(w.client().GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f")}))(t)
	answer := must(http.Get(*out.Code.Location))(t)
	defer answer.Body.Close()
	body := must(io.ReadAll(answer.Body))(t)
	if answer.StatusCode != 200 || !bytes.Equal(body, onlyZip) || answer.Header.Get("Content-Type") != "application/zip" {
		t.Errorf("download: %s, %d bytes", answer.Status, len(body))
	}
	path := strings.TrimPrefix(*out.Code.Location, w.server.URL)
	if answer, text := w.do("GET", path+"0", ""); answer.StatusCode != 403 {
		t.Errorf("forged link: %s %s", answer.Status, text)
	}
	w.clock.advance(linkLife + 1e9)
	if answer, text := w.do("GET", path, ""); answer.StatusCode != 403 || !strings.Contains(text, "expired") {
		t.Errorf("old link: %s %s", answer.Status, text)
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	client := w.client()
	for _, name := range []string{
		"f", "f:$LATEST", "function:f", "000000000000:function:f", "000000000000:function:f:$LATEST",
		"arn:aws:lambda:us-east-1:000000000000:function:f", "arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST",
	} {
		out, err := client.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: &name})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := "arn:aws:lambda:us-east-1:000000000000:function:f"
		if strings.HasSuffix(name, ":$LATEST") {
			want += ":$LATEST"
		}
		if *out.FunctionArn != want {
			t.Errorf("%s: ARN %s", name, *out.FunctionArn)
		}
	}
	refused := []struct{ name, qualifier, code, text string }{
		{"g", "", codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g"},
		{"f", "7", codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:7"},
		{"f", "live", codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:live"},
		{"f:1", "2", codeInvalidParameter, "The derived qualifier from the function name does not match the specified qualifier."},
		{"arn:aws:lambda:eu-west-1:000000000000:function:f", "", codeNotFound, "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')"},
		{"arn:aws:lambda:us-east-1:111111111111:function:f", "", codeNotFound, "Function not found: arn:aws:lambda:us-east-1:111111111111:function:f"},
		{"a.b", "", codeNotFound, "Function not found: "},
		{"..", "", codeNotFound, "Function not found: "},
		{"a/b", "", codeValidation, "1 validation error detected: Value 'a/b' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: "},
		{strings.Repeat("x", 65), "", codeValidation, "Member must have length less than or equal to 64"},
		{"f", "a b", codeValidation, "Value 'a b' at 'qualifier' failed to satisfy constraint: Member must satisfy regular expression pattern: "},
	}
	for _, r := range refused {
		in := &lambda.GetFunctionInput{FunctionName: &r.name}
		if r.qualifier != "" {
			in.Qualifier = &r.qualifier
		}
		_, err := client.GetFunction(t.Context(), in)
		t.Run(r.name+"/"+r.qualifier, func(t *testing.T) { wantFault(t, err, r.code, r.text) })
	}
}

func TestCreateRefusals(t *testing.T) {
	w := newWorld(t)
	w.create("there")
	tests := []struct {
		what, code, text string
		change           func(*lambda.CreateFunctionInput)
	}{
		{"exists", codeConflict, "Function already exist: there", func(in *lambda.CreateFunctionInput) { in.FunctionName = aws.String("there") }},
		{"runtime", codeInvalidParameter, "Value python9 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [nodejs, ", func(in *lambda.CreateFunctionInput) { in.Runtime = "python9" }},
		{"no runtime", codeInvalidParameter, "Runtime and Handler are mandatory parameters", func(in *lambda.CreateFunctionInput) { in.Runtime = "" }},
		{"no handler", codeInvalidParameter, "Runtime and Handler are mandatory parameters", func(in *lambda.CreateFunctionInput) { in.Handler = nil }},
		{"role", codeValidation, "1 validation error detected: Value 'me' at 'role' failed to satisfy constraint: Member must satisfy regular expression pattern: arn:(aws[a-zA-Z-]*)?:iam::", func(in *lambda.CreateFunctionInput) { in.Role = aws.String("me") }},
		{"two", codeValidation, "2 validation errors detected: Value '0' at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1; Value '10241' at 'memorySize' failed to satisfy constraint: Member must have value less than or equal to 10240", func(in *lambda.CreateFunctionInput) {
			in.Timeout, in.MemorySize = aws.Int32(0), aws.Int32(10241)
		}},
		{"timeout", codeValidation, "Value '901' at 'timeout' failed to satisfy constraint: Member must have value less than or equal to 900", func(in *lambda.CreateFunctionInput) { in.Timeout = aws.Int32(901) }},
		{"nested", codeValidation, "Value '511' at 'ephemeralStorage.size' failed to satisfy constraint: Member must have value greater than or equal to 512", func(in *lambda.CreateFunctionInput) {
			in.EphemeralStorage = &types.EphemeralStorage{Size: aws.Int32(511)}
		}},
		{"arch", codeValidation, "Value '[sparc]' at 'architectures' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64]]", func(in *lambda.CreateFunctionInput) {
			in.Architectures = []types.Architecture{"sparc"}
		}},
		{"arches", codeValidation, "at 'architectures' failed to satisfy constraint: Member must have length less than or equal to 1", func(in *lambda.CreateFunctionInput) {
			in.Architectures = []types.Architecture{"arm64", "x86_64"}
		}},
		{"secret key", codeValidation, "Value at 'environment.variables' failed to satisfy constraint: Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]", func(in *lambda.CreateFunctionInput) {
			in.Environment = &types.Environment{Variables: map[string]string{"1": "secret"}}
		}},
		{"reserved key", codeInvalidParameter, "Reserved keys used in this request: AWS_REGION", func(in *lambda.CreateFunctionInput) {
			in.Environment = &types.Environment{Variables: map[string]string{"AWS_REGION": "x"}}
		}},
		{"large environment", codeInvalidParameter, "exceeded the 4KB limit", func(in *lambda.CreateFunctionInput) {
			in.Environment = &types.Environment{Variables: map[string]string{"KEY": strings.Repeat("x", 4097)}}
		}},
		{"not a zip", codeInvalidParameter, "Could not unzip uploaded file. Please check your file, then try to upload again.", func(in *lambda.CreateFunctionInput) {
			in.Code = &types.FunctionCode{ZipFile: []byte("no zip")}
		}},
		{"no code", codeInvalidParameter, "Please provide a source for function code.", func(in *lambda.CreateFunctionInput) { in.Code = &types.FunctionCode{} }},
		{"s3", codeInvalidParameter, "Doze has no S3", func(in *lambda.CreateFunctionInput) {
			in.Code = &types.FunctionCode{S3Bucket: aws.String("bucket"), S3Key: aws.String("key")}
		}},
		{"bucket name", codeValidation, `Value 'bucket.' at 'code.s3Bucket' failed to satisfy constraint: Member must satisfy regular expression pattern: [0-9A-Za-z\.\-_]*(?<!\.)`, func(in *lambda.CreateFunctionInput) {
			in.Code = &types.FunctionCode{S3Bucket: aws.String("bucket."), S3Key: aws.String("key")}
		}},
		{"image", codeInvalidParameter, "container images", func(in *lambda.CreateFunctionInput) {
			in.PackageType, in.Code = types.PackageTypeImage, &types.FunctionCode{ImageUri: aws.String("x")}
		}},
		{"layer", codeInvalidParameter, "Layer version arn:aws:lambda:us-east-1:000000000000:layer:l:1 does not exist", func(in *lambda.CreateFunctionInput) {
			in.Layers = []string{"arn:aws:lambda:us-east-1:000000000000:layer:l:1"}
		}},
		{"layer ARN", codeValidation, "Value '[x]' at 'layers' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or equal to 140, Member must have length greater than or equal to 1, Member must satisfy regular expression pattern: ", func(in *lambda.CreateFunctionInput) {
			in.Layers = []string{"x"}
		}},
		{"log level", codeInvalidParameter, "LogFormat is set to JSON", func(in *lambda.CreateFunctionInput) {
			in.LoggingConfig = &types.LoggingConfig{ApplicationLogLevel: types.ApplicationLogLevelInfo}
		}},
		{"file system", codeValidation, "Value 'x' at 'fileSystemConfigs.1.member.arn' failed", func(in *lambda.CreateFunctionInput) {
			in.FileSystemConfigs = []types.FileSystemConfig{{Arn: aws.String("x"), LocalMountPath: aws.String("/mnt/a")}}
		}},
		{"tag", codeInvalidParameter, "reserved", func(in *lambda.CreateFunctionInput) { in.Tags = map[string]string{"aws:x": "y"} }},
		{"qualified", codeInvalidParameter, "qualifier", func(in *lambda.CreateFunctionInput) { in.FunctionName = aws.String("new:1") }},
	}
	for _, test := range tests {
		t.Run(test.what, func(t *testing.T) {
			in := createInput("new")
			test.change(in)
			_, err := w.client().CreateFunction(t.Context(), in)
			wantFault(t, err, test.code, test.text)
		})
	}
	if _, ok := w.state.Function(DevAccount, "new"); ok {
		t.Error("a refused function exists")
	}
}

func TestUpdateCode(t *testing.T) {
	w := newWorld(t)
	created := w.create("f")
	client := w.client()
	next := zipOf(t, "app.py", "print('next')")
	update := func(change func(*lambda.UpdateFunctionCodeInput)) (*lambda.UpdateFunctionCodeOutput, error) {
		in := &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("f"), ZipFile: next}
		change(in)
		return client.UpdateFunctionCode(t.Context(), in)
	}
	before, _ := w.state.Function(DevAccount, "f")
	dry := must(update(func(in *lambda.UpdateFunctionCodeInput) { in.DryRun = true }))(t)
	after, _ := w.state.Function(DevAccount, "f")
	if before != after || dry.CodeSize != int64(len(next)) {
		t.Error("a dry run changed the function, or did not show the new code")
	}
	_, err := update(func(in *lambda.UpdateFunctionCodeInput) { in.RevisionId = created.RevisionId })
	wantFault(t, err, codePrecondition, "The Revision Id provided does not match the latest Revision Id.")
	_, err = update(func(in *lambda.UpdateFunctionCodeInput) { in.FunctionName = aws.String("g") })
	wantFault(t, err, codeNotFound, "Function not found")
	_, err = update(func(in *lambda.UpdateFunctionCodeInput) {
		in.ZipFile, in.S3Bucket, in.S3Key = nil, aws.String("buck"), aws.String("k")
	})
	wantFault(t, err, codeInvalidParameter, "Doze has no S3")

	w.settle = false
	out := must(update(func(in *lambda.UpdateFunctionCodeInput) { in.Publish = true }))(t)
	if *out.Version != "1" || *out.FunctionArn != "arn:aws:lambda:us-east-1:000000000000:function:f:1" {
		t.Errorf("published %s as %s", *out.Version, *out.FunctionArn)
	}
	got := must(client.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")}))(t)
	if got.LastUpdateStatus != types.LastUpdateStatusInProgress || got.LastUpdateStatusReason == nil || got.CodeSize != int64(len(next)) {
		t.Errorf("during the update: %v %v", got.LastUpdateStatus, got.LastUpdateStatusReason)
	}
	_, err = update(func(*lambda.UpdateFunctionCodeInput) {})
	wantFault(t, err, codeConflict, "The operation cannot be performed at this time. An update is in progress for resource: arn:aws:lambda:us-east-1:000000000000:function:f")
}

func TestUpdateConfiguration(t *testing.T) {
	w := newWorld(t)
	w.create("f", func(in *lambda.CreateFunctionInput) {
		in.Environment = &types.Environment{Variables: map[string]string{"KEY": "v"}}
		in.VpcConfig = &types.VpcConfig{SubnetIds: []string{"subnet-1"}}
	})
	client := w.client()
	update := func(change func(*lambda.UpdateFunctionConfigurationInput)) (*lambda.UpdateFunctionConfigurationOutput, error) {
		in := &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f")}
		change(in)
		return client.UpdateFunctionConfiguration(t.Context(), in)
	}
	// What is not given stays, also when another update comes between reading and writing.
	once := true
	w.beforeUpdate = func() {
		if once {
			once = false
			must(update(func(in *lambda.UpdateFunctionConfigurationInput) { in.Timeout = aws.Int32(10) }))(t)
		}
	}
	out := must(update(func(in *lambda.UpdateFunctionConfigurationInput) { in.MemorySize = aws.Int32(256) }))(t)
	if *out.Timeout != 10 || *out.MemorySize != 256 || out.Environment.Variables["KEY"] != "v" || out.VpcConfig == nil || *out.Handler != "app.handler" {
		t.Errorf("merged: %v", out)
	}
	if out.LastUpdateStatus != types.LastUpdateStatusInProgress {
		t.Errorf("status %v", out.LastUpdateStatus)
	}
	out = must(update(func(in *lambda.UpdateFunctionConfigurationInput) {
		in.Environment, in.Layers = &types.Environment{Variables: map[string]string{}}, []string{}
		in.Description, in.DeadLetterConfig = aws.String(""), &types.DeadLetterConfig{TargetArn: aws.String("")}
	}))(t)
	if out.Environment == nil || len(out.Environment.Variables) != 0 || *out.Description != "" || out.DeadLetterConfig != nil {
		t.Errorf("emptied: %v", out.Environment)
	}
	_, err := update(func(in *lambda.UpdateFunctionConfigurationInput) { in.RevisionId = aws.String("other") })
	wantFault(t, err, codePrecondition, "Revision Id")
	_, err = update(func(in *lambda.UpdateFunctionConfigurationInput) { in.Runtime = "cobol" })
	wantFault(t, err, codeInvalidParameter, "Value cobol at 'runtime'")
	_, err = update(func(in *lambda.UpdateFunctionConfigurationInput) { in.FunctionName = aws.String("f:1") })
	wantFault(t, err, codeInvalidParameter, "unqualified function ARN")
	w.beforeUpdate = func() { // always somebody else first
		if _, err := w.state.Apply(registry.Tag{Account: DevAccount, Name: "f", Tags: map[string]string{"a": "b"}, RevisionID: newRevision()}); err != nil {
			t.Error(err)
		}
	}
	_, err = update(func(in *lambda.UpdateFunctionConfigurationInput) { in.Timeout = aws.Int32(5) })
	wantFault(t, err, codeConflict, "cannot be performed at this time")
}

func TestVersionsAndPages(t *testing.T) {
	w := newWorld(t)
	client := w.client()
	empty := must(client.ListFunctions(t.Context(), &lambda.ListFunctionsInput{}))(t)
	if empty.Functions == nil {
		t.Error("an empty list is absent")
	}
	for i := range 55 {
		w.create(fmt.Sprintf("f%02d", i))
	}
	var names []string
	pages := lambda.NewListFunctionsPaginator(client, &lambda.ListFunctionsInput{MaxItems: aws.Int32(20)})
	for pages.HasMorePages() {
		for _, f := range must(pages.NextPage(t.Context()))(t).Functions {
			names = append(names, *f.FunctionName)
			if f.State != "" || f.LastUpdateStatus != "" || f.RuntimeVersionConfig != nil {
				t.Errorf("%s is listed with its states", *f.FunctionName)
			}
		}
	}
	if len(names) != 55 || names[0] != "f00" || names[54] != "f54" {
		t.Errorf("listed %v", names)
	}
	if page := must(client.ListFunctions(t.Context(), &lambda.ListFunctionsInput{MaxItems: aws.Int32(10000)}))(t); len(page.Functions) != 50 || page.NextMarker == nil {
		t.Errorf("a page has %d functions", len(page.Functions))
	}
	for i := range 3 {
		description := fmt.Sprint("v", i)
		must(client.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f01"), Description: &description}))(t)
		out := must(client.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f01")}))(t)
		again := must(client.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f01")}))(t)
		if *out.Version != fmt.Sprint(i+1) || *again.Version != *out.Version || !strings.HasSuffix(*out.FunctionArn, ":f01:"+*out.Version) {
			t.Errorf("published %s, again %s, %s", *out.Version, *again.Version, *out.FunctionArn)
		}
	}
	_, err := client.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f01"), CodeSha256: aws.String("AAAA")})
	wantFault(t, err, codeInvalidParameter, "CodeSHA256 (AAAA) is different from current CodeSHA256 in $LATEST")
	var versions []string
	list := lambda.NewListVersionsByFunctionPaginator(client, &lambda.ListVersionsByFunctionInput{FunctionName: aws.String("f01"), MaxItems: aws.Int32(1)})
	for list.HasMorePages() {
		for _, v := range must(list.NextPage(t.Context()))(t).Versions {
			versions = append(versions, *v.Version+" "+(*v.FunctionArn)[strings.LastIndex(*v.FunctionArn, ":"):])
		}
	}
	if diff := cmp.Diff([]string{"$LATEST :$LATEST", "1 :1", "2 :2", "3 :3"}, versions); diff != "" {
		t.Error(diff)
	}
	var all []string
	every := lambda.NewListFunctionsPaginator(client, &lambda.ListFunctionsInput{FunctionVersion: types.FunctionVersionAll, MaxItems: aws.Int32(2)})
	for every.HasMorePages() {
		for _, f := range must(every.NextPage(t.Context()))(t).Functions {
			all = append(all, *f.FunctionName+":"+*f.Version)
		}
	}
	if len(all) != 58 || all[1] != "f01:$LATEST" || all[4] != "f01:3" || all[5] != "f02:$LATEST" {
		t.Errorf("all versions: %v", all)
	}
	_, err = client.ListFunctions(t.Context(), &lambda.ListFunctionsInput{Marker: aws.String("?")})
	wantFault(t, err, codeInvalidParameter, "Invalid Marker")

	must(client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f01"), Qualifier: aws.String("2")}))(t)
	_, err = client.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: aws.String("f01"), Qualifier: aws.String("2")})
	wantFault(t, err, codeNotFound, ":f01:2")
	_, err = client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f01"), Qualifier: aws.String("$LATEST")})
	wantFault(t, err, codeInvalidParameter, "$LATEST version cannot be deleted without deleting the function.")
	deleted := must(client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f01")}))(t)
	if deleted.StatusCode != 204 {
		t.Errorf("delete answered %d", deleted.StatusCode)
	}
	_, err = client.DeleteFunction(t.Context(), &lambda.DeleteFunctionInput{FunctionName: aws.String("f01")})
	wantFault(t, err, codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f01")
}

func TestConcurrency(t *testing.T) {
	w := newWorld(t)
	w.create("f")
	client := w.client()
	name := aws.String("f")
	if out := must(client.GetFunctionConcurrency(t.Context(), &lambda.GetFunctionConcurrencyInput{FunctionName: name}))(t); out.ReservedConcurrentExecutions != nil {
		t.Error("a reservation that nobody made")
	}
	if out := must(client.PutFunctionConcurrency(t.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: name, ReservedConcurrentExecutions: aws.Int32(0)}))(t); *out.ReservedConcurrentExecutions != 0 {
		t.Error("0 was not kept")
	}
	if out := must(client.GetFunction(t.Context(), &lambda.GetFunctionInput{FunctionName: name}))(t); out.Concurrency == nil || *out.Concurrency.ReservedConcurrentExecutions != 0 {
		t.Error("GetFunction does not show it")
	}
	_, err := client.PutFunctionConcurrency(t.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: name, ReservedConcurrentExecutions: aws.Int32(901)})
	wantFault(t, err, codeInvalidParameter, "UnreservedConcurrentExecution below its minimum value of [100]")
	_, err = client.PutFunctionConcurrency(t.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("g"), ReservedConcurrentExecutions: aws.Int32(1)})
	wantFault(t, err, codeNotFound, "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g:$LATEST")
	must(client.DeleteFunctionConcurrency(t.Context(), &lambda.DeleteFunctionConcurrencyInput{FunctionName: name}))(t)
	settings := must(client.GetAccountSettings(t.Context(), &lambda.GetAccountSettingsInput{}))(t)
	if settings.AccountLimit.ConcurrentExecutions != 1000 || *settings.AccountLimit.UnreservedConcurrentExecutions != 1000 || settings.AccountUsage.FunctionCount != 1 || settings.AccountUsage.TotalCodeSize != int64(len(onlyZip)) {
		t.Errorf("settings: %+v %+v", settings.AccountLimit, settings.AccountUsage)
	}
	signing := must(client.GetFunctionCodeSigningConfig(t.Context(), &lambda.GetFunctionCodeSigningConfigInput{FunctionName: name}))(t)
	if signing.CodeSigningConfigArn != nil {
		t.Error("a code signing config that nobody made")
	}
}

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	w.create("f", func(in *lambda.CreateFunctionInput) { in.Publish = true })
	client := w.client()
	name := aws.String("f")
	add := func(change func(*lambda.AddPermissionInput)) (*lambda.AddPermissionOutput, error) {
		in := &lambda.AddPermissionInput{FunctionName: name, StatementId: aws.String("s1"), Action: aws.String("lambda:InvokeFunction"), Principal: aws.String("s3.amazonaws.com")}
		change(in)
		return client.AddPermission(t.Context(), in)
	}
	_, err := client.GetPolicy(t.Context(), &lambda.GetPolicyInput{FunctionName: name})
	wantFault(t, err, codeNotFound, "The resource you requested does not exist.")
	out := must(add(func(in *lambda.AddPermissionInput) {
		in.SourceArn, in.SourceAccount = aws.String("arn:aws:s3:::bucket"), aws.String("000000000000")
	}))(t)
	first := `{"Sid":"s1","Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"lambda:InvokeFunction","Resource":"arn:aws:lambda:us-east-1:000000000000:function:f","Condition":{"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::bucket"},"StringEquals":{"AWS:SourceAccount":"000000000000"}}}`
	if *out.Statement != first {
		t.Errorf("statement %s", *out.Statement)
	}
	_, err = add(func(*lambda.AddPermissionInput) {})
	wantFault(t, err, codeConflict, "The statement id (s1) provided already exists.")
	// The qualifier travels in the query, beside the body.
	qualified := must(add(func(in *lambda.AddPermissionInput) {
		in.Qualifier, in.Principal = aws.String("1"), aws.String("111111111111")
	}))(t)
	if !strings.Contains(*qualified.Statement, `"Principal":{"AWS":"arn:aws:iam::111111111111:root"}`) || !strings.Contains(*qualified.Statement, `function:f:1"`) {
		t.Errorf("qualified statement %s", *qualified.Statement)
	}
	policy := must(client.GetPolicy(t.Context(), &lambda.GetPolicyInput{FunctionName: name}))(t)
	if want := `{"Version":"2012-10-17","Id":"default","Statement":[` + first + `]}`; *policy.Policy != want {
		t.Errorf("policy %s", *policy.Policy)
	}
	_, err = add(func(in *lambda.AddPermissionInput) {
		in.StatementId, in.Principal = aws.String("s2"), aws.String("nobody")
	})
	wantFault(t, err, codeInvalidParameter, "The provided principal was invalid.")
	_, err = add(func(in *lambda.AddPermissionInput) { in.Qualifier = aws.String("$LATEST") })
	wantFault(t, err, codeInvalidParameter, "We currently do not support adding policies for $LATEST.")
	_, err = add(func(in *lambda.AddPermissionInput) {
		in.StatementId, in.RevisionId = aws.String("s2"), aws.String("old")
	})
	wantFault(t, err, codePrecondition, "Revision Id")
	must(add(func(in *lambda.AddPermissionInput) {
		in.StatementId, in.RevisionId = aws.String("s2"), policy.RevisionId
	}))(t)
	_, err = client.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: name, StatementId: aws.String("s9")})
	wantFault(t, err, codeNotFound, "Statement s9 is not found in resource policy.")
	for _, sid := range []string{"s1", "s2"} {
		must(client.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: name, StatementId: &sid}))(t)
	}
	_, err = client.RemovePermission(t.Context(), &lambda.RemovePermissionInput{FunctionName: name, StatementId: aws.String("s1")})
	wantFault(t, err, codeNotFound, "No policy is associated with the given resource.")
}

func TestTags(t *testing.T) {
	w := newWorld(t)
	arn := w.create("f").FunctionArn
	client := w.client()
	if out := must(client.ListTags(t.Context(), &lambda.ListTagsInput{Resource: arn}))(t); out.Tags == nil || len(out.Tags) != 0 {
		t.Errorf("tags %v", out.Tags)
	}
	must(client.TagResource(t.Context(), &lambda.TagResourceInput{Resource: arn, Tags: map[string]string{"a": "1", "b": "2", "c": ""}}))(t)
	must(client.UntagResource(t.Context(), &lambda.UntagResourceInput{Resource: arn, TagKeys: []string{"a", "b", "absent"}}))(t)
	if out := must(client.ListTags(t.Context(), &lambda.ListTagsInput{Resource: arn}))(t); !cmp.Equal(out.Tags, map[string]string{"c": ""}) {
		t.Errorf("tags %v", out.Tags)
	}
	many := map[string]string{}
	for i := range 50 {
		many[fmt.Sprint("k", i)] = "v"
	}
	_, err := client.TagResource(t.Context(), &lambda.TagResourceInput{Resource: arn, Tags: many})
	wantFault(t, err, codeInvalidParameter, "Number of tags exceeds resource tag limit.")
	_, err = client.TagResource(t.Context(), &lambda.TagResourceInput{Resource: aws.String(*arn + ":1"), Tags: map[string]string{"a": "1"}})
	wantFault(t, err, codeInvalidParameter, "Tags on function aliases and versions are not supported.")
	_, err = client.ListTags(t.Context(), &lambda.ListTagsInput{Resource: aws.String(*arn + "x")})
	wantFault(t, err, codeNotFound, "Function not found: ")
	_, err = client.ListTags(t.Context(), &lambda.ListTagsInput{Resource: aws.String("f")})
	wantFault(t, err, codeValidation, "Value 'f' at 'resource' failed")
}
