package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/spf13/cobra"
)

// maxPayloadBytes is AWS Lambda's bound on the event of a synchronous call.
const maxPayloadBytes = 6291456

// Headers that Doze adds to the answer of an Invoke.
const (
	coldHeader     = "X-Doze-Cold"
	timingHeader   = "X-Doze-Timing"
	instanceHeader = "X-Doze-Instance"
)

// outcome is what came of an invoke, as --json prints it.
type outcome struct {
	StatusCode      int32  `json:"statusCode"`
	RequestID       string `json:"requestId"`
	ExecutedVersion string `json:"executedVersion,omitempty"`
	FunctionError   string `json:"functionError,omitempty"`
	Cold            bool   `json:"cold"`
	// Instance is the one that ran it, as `doze ps` names it.
	Instance string `json:"instance,omitempty"`
	// ElapsedMs is what the call took as seen from here.
	ElapsedMs float64 `json:"elapsedMs"`
	// TimingUs is where the time went, in microseconds, as the platform measured it.
	TimingUs map[string]int64 `json:"timingUs,omitempty"`
	Log      string           `json:"log,omitempty"`
	// Payload is the answer if it is JSON, PayloadBase64 if not.
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payloadBase64,omitempty"`
}

// phase is one step of a call's time.
type phase struct {
	name string
	took time.Duration
}

func newInvokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "invoke NAME",
		Short: "Call a function and print its answer",
		Long: `Call a function and print its answer: the answer alone on stdout, the rest (status, cold or warm,
where the time went, the log) on stderr. The exit code is 1 if the function failed.`,
		Example: `  doze invoke thumbnail --payload event.json
  echo '{"name": "you"}' | doze invoke hello --payload -
  doze invoke hello --payload '{"name": "you"}' --tail`,
		Args:              namedArgs("the NAME of a function"),
		ValidArgsFunction: completeFunction,
	}
	flags := cmd.Flags()
	payload := flags.StringP("payload", "p", "", "the `EVENT`: a file, - for stdin, or JSON as it is (default {})")
	async := flags.Bool("async", false, "hand the event over and do not wait for the function")
	tail := flags.Bool("tail", false, "print the last 4 KB of the call's log")
	qualifier := flags.String("qualifier", "", "call this `VERSION` or alias (default $LATEST)")
	asJSON := addJSONFlag(cmd, "everything about the call")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *async && *tail {
			return usagef("--tail has no log to show with --async: use `doze logs %s` later", args[0])
		}
		event, err := readPayload(*payload, cmd.InOrStdin())
		if err != nil {
			return err
		}
		input := &lambda.InvokeInput{FunctionName: &args[0], Payload: event}
		if *async {
			input.InvocationType = types.InvocationTypeEvent
		}
		if *tail {
			input.LogType = types.LogTypeTail
		}
		if *qualifier != "" {
			input.Qualifier = aws.String(*qualifier)
		}
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		start := time.Now()
		output, err := c.Invoke(cmd.Context(), input, once)
		if err != nil {
			return c.explain(err)
		}
		result, phases := outcomeOf(output, time.Since(start))
		if *asJSON {
			err = printJSON(cmd.OutOrStdout(), result)
		} else {
			err = printOutcome(cmd.OutOrStdout(), cmd.ErrOrStderr(), result, phases, output.Payload, *async)
		}
		if err == nil && result.FunctionError != "" {
			err = errFunctionFailed
		}
		return err
	}
	return cmd
}

// readPayload takes what --payload names. JSON is taken as it is even where a file has that name
// (./7 is the file called 7), so that the meaning does not depend on the folder.
func readPayload(from string, stdin io.Reader) ([]byte, error) {
	switch {
	case from == "":
		return nil, nil
	case from == "-":
		return readBounded(stdin, "stdin")
	case json.Valid([]byte(from)):
		return []byte(from), nil
	}
	f, err := os.Open(from)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, usagef("--payload %s is neither a file nor JSON", shorten(from))
		}
		return nil, fmt.Errorf("--payload: %w", err)
	}
	defer f.Close()
	return readBounded(f, from)
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	event, err := io.ReadAll(io.LimitReader(r, maxPayloadBytes+1))
	if err != nil {
		return nil, fmt.Errorf("--payload: read %s: %w", name, err)
	}
	if len(event) > maxPayloadBytes {
		return nil, fmt.Errorf("--payload: %s is longer than the %d bytes an event may have", name, maxPayloadBytes)
	}
	return event, nil
}

// shorten keeps a long argument from filling the screen.
func shorten(s string) string {
	if len(s) > 60 {
		return strconv.Quote(s[:57] + "...")
	}
	return strconv.Quote(s)
}

func outcomeOf(output *lambda.InvokeOutput, elapsed time.Duration) (*outcome, []phase) {
	result := &outcome{
		StatusCode:      output.StatusCode,
		ExecutedVersion: aws.ToString(output.ExecutedVersion),
		FunctionError:   aws.ToString(output.FunctionError),
		ElapsedMs:       float64(elapsed.Microseconds()) / 1000,
	}
	result.RequestID, _ = awsmiddleware.GetRequestIDMetadata(output.ResultMetadata)
	if log, err := base64.StdEncoding.DecodeString(aws.ToString(output.LogResult)); err == nil {
		result.Log = string(log)
	}
	if json.Valid(output.Payload) {
		result.Payload = output.Payload
	} else {
		result.PayloadBase64 = output.Payload
	}
	var phases []phase
	if resp, ok := awsmiddleware.GetRawResponse(output.ResultMetadata).(*smithyhttp.Response); ok {
		phases = result.readHeaders(resp.Header)
	}
	return result, phases
}

// readHeaders takes what Doze tells about a call beside AWS's headers.
func (o *outcome) readHeaders(header http.Header) []phase {
	o.Cold, _ = strconv.ParseBool(header.Get(coldHeader))
	o.Instance = header.Get(instanceHeader)
	phases := parseTiming(header.Get(timingHeader))
	if len(phases) > 0 {
		o.TimingUs = make(map[string]int64, len(phases))
	}
	for _, p := range phases {
		o.TimingUs[p.name] = p.took.Microseconds()
	}
	return phases
}

// parseTiming reads "queue=120;init=8100;handler=2900": steps in order, in microseconds. What it
// cannot read it leaves out.
func parseTiming(s string) []phase {
	const maxMicros = int64(24 * time.Hour / time.Microsecond)
	var phases []phase
	for item := range strings.SplitSeq(s, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(item), "=")
		micros, err := strconv.ParseInt(value, 10, 64)
		if err != nil || name == "" || micros < 0 || micros > maxMicros || len(phases) == 16 {
			continue
		}
		phases = append(phases, phase{name, time.Duration(micros) * time.Microsecond})
	}
	return phases
}

// printOutcome prints the payload on stdout and the rest on stderr.
func printOutcome(stdout, stderr io.Writer, result *outcome, phases []phase, payload []byte, async bool) error {
	if async {
		_, err := fmt.Fprintf(stderr, "%d accepted · request %s\n", result.StatusCode, result.RequestID)
		return err
	}
	var b strings.Builder
	if result.Log != "" {
		b.WriteString(strings.TrimRight(result.Log, "\n") + "\n")
	}
	fmt.Fprintf(&b, "%d", result.StatusCode)
	if result.FunctionError != "" {
		fmt.Fprintf(&b, " function error (%s)", result.FunctionError)
	}
	warmth := "warm"
	if result.Cold {
		warmth = "cold"
	}
	elapsed := time.Duration(result.ElapsedMs * float64(time.Millisecond))
	fmt.Fprintf(&b, " · %s · %s%s", warmth, readable(elapsed), whereItWent(elapsed, phases))
	if result.ExecutedVersion != "" {
		fmt.Fprintf(&b, " · version %s", result.ExecutedVersion)
	}
	fmt.Fprintf(&b, " · request %s\n", result.RequestID)
	if _, err := io.WriteString(stderr, b.String()); err != nil {
		return err
	}
	if len(payload) > 0 && !bytes.HasSuffix(payload, []byte("\n")) && isTerminal(stdout) {
		payload = append(payload, '\n') // for people; a pipe gets the answer byte for byte
	}
	_, err := stdout.Write(payload)
	return err
}

// whereItWent tells the steps of a call, and what is left: the way there and back.
func whereItWent(elapsed time.Duration, phases []phase) string {
	if len(phases) == 0 {
		return ""
	}
	var steps []string
	for _, p := range phases {
		if p.took > 0 {
			steps = append(steps, p.name+" "+readable(p.took))
		}
		elapsed -= p.took
	}
	if elapsed > 0 {
		steps = append(steps, "way there and back "+readable(elapsed))
	}
	return " (" + strings.Join(steps, ", ") + ")"
}
