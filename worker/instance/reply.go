package instance

import (
	"strconv"
	"time"
)

// The answers of the Runtime API, whole. AWS's texts.
const (
	replyAccepted       = "HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"status\":\"OK\"}\n"
	replyContinue       = "HTTP/1.1 100 Continue\r\n\r\n"
	statusBadRequest    = "400 Bad Request"
	statusForbidden     = "403 Forbidden"
	statusNotFound      = "404 Not Found"
	statusTooLarge      = "413 Request Entity Too Large"
	statusHeadTooBig    = "431 Request Header Fields Too Large"
	statusUnimplemented = "501 Not Implemented"
	statusVersion       = "505 HTTP Version Not Supported"
)

// appendError appends an error answer of the Runtime API. closing says that the connection ends
// with it.
func appendError(out []byte, status, errorType, message string, closing bool) []byte {
	object := errorObject(errorType, message)
	out = append(out, "HTTP/1.1 "...)
	out = append(out, status...)
	out = append(out, "\r\nContent-Type: application/json\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(object))+1, 10)
	if closing {
		out = append(out, "\r\nConnection: close"...)
	}
	out = append(out, "\r\n\r\n"...)
	out = append(out, object...)
	return append(out, '\n')
}

// appendEvent appends the head of the answer to `next`.
func appendEvent(out []byte, e *Event, deadline time.Time, length int, closing bool) []byte {
	out = append(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: "...)
	out = append(out, e.RequestID...)
	out = append(out, "\r\nLambda-Runtime-Deadline-Ms: "...)
	out = strconv.AppendInt(out, deadline.UnixMilli(), 10)
	out = append(out, "\r\nLambda-Runtime-Invoked-Function-Arn: "...)
	out = appendValue(out, e.InvokedARN)
	if e.TraceID != "" {
		out = append(out, "\r\nLambda-Runtime-Trace-Id: "...)
		out = appendValue(out, e.TraceID)
	}
	if len(e.ClientContext) > 0 {
		out = append(out, "\r\nLambda-Runtime-Client-Context: "...)
		out = appendValue(out, e.ClientContext)
	}
	if closing {
		out = append(out, "\r\nConnection: close"...)
	}
	out = append(out, "\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(length), 10)
	return append(out, "\r\n\r\n"...)
}

// appendValue appends a header's value. Control characters become spaces: JSON has them only
// between its tokens, where a space means the same, and nothing else of ours has any.
func appendValue[T string | []byte](out []byte, value T) []byte {
	for i := range len(value) {
		c := value[i]
		if c < ' ' || c == 0x7f {
			c = ' '
		}
		out = append(out, c)
	}
	return out
}
