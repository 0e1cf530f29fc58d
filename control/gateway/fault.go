package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// Codes of AWS Lambda's errors, as its clients know them.
const (
	codeValidation        = "ValidationException"
	codeInvalidParameter  = "InvalidParameterValueException"
	codeInvalidContent    = "InvalidRequestContentException"
	codeNotFound          = "ResourceNotFoundException"
	codeConflict          = "ResourceConflictException"
	codePrecondition      = "PreconditionFailedException"
	codeTooLarge          = "RequestEntityTooLargeException"
	codeTooMany           = "TooManyRequestsException"
	codeService           = "ServiceException"
	codeSerialization     = "SerializationException"
	codeUnknownOperation  = "UnknownOperationException"
	codeInvalidRuntime    = "InvalidRuntimeException"
	codeNetwork           = "EC2UnexpectedException"
	codePolicyLength      = "PolicyLengthExceededException"
	codeCodeStorage       = "CodeStorageExceededException"
	codeIncomplete        = "IncompleteSignatureException"
	codeLimitExceeded     = "LimitExceededException"
	codeInvalidAction     = "InvalidAction"
	codeAccessDenied      = "AccessDeniedException"
	codeUnrecognized      = "UnrecognizedClientException"
	codeInvalidSignature  = "InvalidSignatureException"
	codeMissingAuth       = "MissingAuthenticationTokenException"
	codeExpiredToken      = "ExpiredTokenException"
	codeRequestTimeout    = "RequestTimeoutException"
	headerErrorType       = "X-Amzn-Errortype"
	headerRequestID       = "X-Amzn-Requestid"
	messageRate           = "Rate Exceeded."
	messageStaleRevision  = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id"
	messageNoSuchResource = "The resource you requested does not exist."
)

// Fault is an error as AWS's clients see it: a code they switch on and a text for people.
type Fault struct {
	// Code is AWS's name of the error, for example "ResourceNotFoundException".
	Code    string
	Message string
	// Reason goes with TooManyRequestsException.
	Reason string
	// RetryAfter is a hint, 0 for none.
	RetryAfter time.Duration
}

func (f *Fault) Error() string { return f.Code + ": " + f.Message }

// faultf makes a Fault with a formatted message.
func faultf(code, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeConflict is the code of what cannot be done as things are.
const CodeConflict = codeConflict

// Refused is the fault of what cannot be done as things are.
func Refused(format string, args ...any) *Fault { return faultf(codeConflict, format, args...) }

// Missing is the fault of what is asked for and not there.
func Missing(format string, args ...any) *Fault { return faultf(codeNotFound, format, args...) }

// Status is the HTTP status that goes with the code.
func (f *Fault) Status() int {
	switch f.Code {
	case codeNotFound, codeUnknownOperation:
		return http.StatusNotFound
	case codeConflict:
		return http.StatusConflict
	case codePrecondition:
		return http.StatusPreconditionFailed
	case codeTooLarge:
		return http.StatusRequestEntityTooLarge
	case codeTooMany:
		return http.StatusTooManyRequests
	case codeService:
		return http.StatusInternalServerError
	case codeInvalidRuntime, codeNetwork:
		return http.StatusBadGateway
	case codeRequestTimeout:
		return http.StatusRequestTimeout
	case codeAccessDenied, codeUnrecognized, codeInvalidSignature, codeMissingAuth, codeExpiredToken, codeIncomplete:
		return http.StatusForbidden
	default:
		return http.StatusBadRequest
	}
}

// side is AWS's Type: whose fault it is.
func (f *Fault) side() string {
	if f.Status() >= 500 {
		return "Service"
	}
	return "User"
}

// status is the same fault for gRPC clients, with an ErrorDetail.
func (f *Fault) status(id requestID) *status.Status {
	code := codes.InvalidArgument
	switch f.Status() {
	case http.StatusNotFound:
		code = codes.NotFound
		if f.Code == codeUnknownOperation {
			code = codes.Unimplemented
		}
	case http.StatusConflict:
		code = codes.Aborted
	case http.StatusPreconditionFailed:
		code = codes.FailedPrecondition
	case http.StatusRequestEntityTooLarge:
		code = codes.OutOfRange
	case http.StatusTooManyRequests:
		code = codes.ResourceExhausted
	case http.StatusInternalServerError:
		code = codes.Internal
	case http.StatusBadGateway:
		code = codes.FailedPrecondition
	case http.StatusRequestTimeout:
		code = codes.DeadlineExceeded
	case http.StatusForbidden:
		code = codes.Unauthenticated
		if f.Code == codeAccessDenied {
			code = codes.PermissionDenied
		}
	}
	s := status.New(code, f.Message)
	detailed, err := s.WithDetails(&dozev1.ErrorDetail{
		Code:              f.Code,
		HttpStatus:        uint32(f.Status()),
		Type:              f.side(),
		Message:           f.Message,
		Reason:            f.Reason,
		RetryAfterSeconds: uint32(f.retrySeconds()),
		RequestId:         id.String(),
	})
	if err != nil {
		return s
	}
	return detailed
}

func (f *Fault) retrySeconds() int64 {
	if f.RetryAfter <= 0 {
		return 0
	}
	return int64(math.Ceil(f.RetryAfter.Seconds()))
}

// body is the JSON body, with the message under the name that the model gives it for this code.
func (f *Fault) body() []byte {
	b := make([]byte, 0, 64+len(f.Message))
	b = append(b, '{')
	if f.Code != codeValidation {
		b = append(b, `"Type":"`...)
		b = append(b, f.side()...)
		b = append(b, `",`...)
	}
	if f.Reason != "" {
		b = append(b, `"Reason":`...)
		b = appendJSONString(b, f.Reason)
		b = append(b, ',')
	}
	switch f.Code {
	case codeValidation, codeInvalidParameter, codeInvalidContent, codeConflict, codePrecondition,
		codeTooMany, codeTooLarge, codePolicyLength, codeCodeStorage:
		b = append(b, `"message":`...)
	default:
		b = append(b, `"Message":`...)
	}
	b = appendJSONString(b, f.Message)
	return append(b, '}')
}

// write answers an HTTP request with the fault. The request id header is already set.
func (f *Fault) write(w http.ResponseWriter) {
	body := f.body()
	h := w.Header()
	h.Set(headerErrorType, f.Code)
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if s := f.retrySeconds(); s > 0 {
		h.Set("Retry-After", strconv.FormatInt(s, 10))
	}
	w.WriteHeader(f.Status())
	// The client may have gone; there is nobody left to tell.
	_, _ = w.Write(body)
}

// Outage is a failure of the platform whose cause clients are told, since they, or whoever runs
// the platform, can do something about it. Whoever answers it has logged it.
type Outage struct {
	Message string
	Err     error
}

func (o *Outage) Error() string { return o.Message + " (" + o.Err.Error() + ")" }

func (o *Outage) Unwrap() error { return o.Err }

// faultOf is the Fault in err's chain, or what err amounts to for a client. known is false when
// err is the platform's own failure, which the log should have and the client should not.
func faultOf(err error) (f *Fault, known bool) {
	if errors.As(err, &f) {
		return f, true
	}
	if errors.Is(err, context.Canceled) {
		return &Fault{Code: codeRequestTimeout, Message: "The request was cancelled before it was answered."}, true
	}
	if outage := (*Outage)(nil); errors.As(err, &outage) {
		return &Fault{Code: codeService, Message: outage.Message}, true
	}
	if s, ok := status.FromError(err); ok {
		switch s.Code() {
		case codes.InvalidArgument:
			return &Fault{Code: codeSerialization, Message: s.Message()}, true
		case codes.NotFound, codes.Unimplemented:
			return &Fault{Code: codeUnknownOperation, Message: s.Message()}, true
		}
	}
	return &Fault{Code: codeService, Message: "Service encountered an internal error. The server's log has it under this request's id."}, false
}
