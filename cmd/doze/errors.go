package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// errFunctionFailed ends a command whose function answered with an error. It has been shown.
var errFunctionFailed = errors.New("the function failed")

// refusal is an answer of Doze's own resources that is not a success.
type refusal struct {
	status        int
	code, message string
}

func (e *refusal) Error() string {
	switch {
	case e.message != "":
		return e.message
	case e.code != "":
		return e.code
	}
	return fmt.Sprintf("HTTP status %d", e.status)
}

// refusalOf reads an error in AWS's shape, whose message is spelled in two ways.
func refusalOf(resp *http.Response, body []byte) *refusal {
	e := &refusal{status: resp.StatusCode}
	e.code, _, _ = strings.Cut(resp.Header.Get("X-Amzn-Errortype"), ":")
	var members map[string]any
	if json.Unmarshal(body, &members) == nil {
		for _, name := range []string{"Message", "message"} {
			if text, ok := members[name].(string); ok && e.message == "" {
				e.message = text
			}
		}
	}
	return e
}

// explain turns an error of the endpoint into one sentence that says what to do. Errors that it
// does not know stay as they are; what errors.As found before, it finds after.
func (c *client) explain(err error) error {
	if err == nil {
		return nil
	}
	var (
		api       smithy.APIError
		own       *refusal
		throttled *types.TooManyRequestsException
		dns       *net.DNSError
		parse     *smithy.DeserializationError
	)
	if refused := c.refused(err); refused != "" {
		return c.saying(err, "%s", refused)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return c.saying(err, "no answer at %s: is `doze dev` running? Start it, or say where it is with --endpoint or %s", c.endpoint, endpointEnv)
	case errors.As(err, &dns):
		return c.saying(err, "there is no host %s: say where Doze is with --endpoint or %s", dns.Name, endpointEnv)
	case errors.As(err, &throttled):
		return c.saying(err, "throttled (%s): %s Try again, or raise the function's or the account's concurrency", throttled.Reason, sentence(throttled.ErrorMessage()))
	case errors.As(err, &api) && (status(err) == http.StatusInternalServerError || status(err) == http.StatusServiceUnavailable):
		return c.saying(err, "%s failed: %s (see its log)", c.endpoint, describe(api))
	case errors.As(err, &api):
		return c.saying(err, "%s", describe(api))
	case errors.As(err, &own) && own.status == http.StatusNotFound && own.code == "":
		return c.saying(err, "%s does not answer as Doze does: is --endpoint (or %s) right?", c.endpoint, endpointEnv)
	case errors.As(err, &own):
		return c.saying(err, "%s", own.Error())
	case errors.As(err, &parse):
		return c.saying(err, "%s does not answer as Doze does: is --endpoint (or %s) right?", c.endpoint, endpointEnv)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return c.saying(err, "%s hung up in the middle of its answer: did `doze dev` stop?", c.endpoint)
	case errors.Is(err, context.DeadlineExceeded):
		return c.saying(err, "%s took too long to answer", c.endpoint)
	}
	var network net.Error
	if errors.As(err, &network) {
		return c.saying(err, "cannot reach %s: %v", c.endpoint, innermost(err))
	}
	return err
}

// describe is an API error for people: its message, and its code when the message says nothing.
func describe(e smithy.APIError) string {
	if e.ErrorMessage() == "" || e.ErrorMessage() == "UnknownError" {
		return e.ErrorCode()
	}
	return e.ErrorMessage()
}

// sentence ends a message with a full stop.
func sentence(s string) string {
	if s == "" || strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// status is the HTTP status that an SDK error came with, 0 for none.
func status(err error) int {
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) {
		return resp.HTTPStatusCode()
	}
	return 0
}

// isNotFound tells whether the endpoint said that the function does not exist.
func isNotFound(err error) bool {
	var missing *types.ResourceNotFoundException
	return errors.As(err, &missing)
}

// saying words an error anew and keeps it underneath.
func (c *client) saying(err error, format string, args ...any) error {
	return &worded{text: fmt.Sprintf(format, args...), err: err}
}

type worded struct {
	text string
	err  error
}

func (e *worded) Error() string { return e.text }
func (e *worded) Unwrap() error { return e.err }

// innermost is what an error comes down to.
func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
