package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/url"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/protobuf/proto"

	dozev1 "github.com/doze-run/doze/proto/doze/v1"
)

// awsJSON is the JSON of both AWS's and Doze's own operations, for grpc-gateway.
type awsJSON struct{}

// ContentType implements runtime.Marshaler.
func (awsJSON) ContentType(any) string { return "application/json" }

// Marshal implements runtime.Marshaler for messages and, where an operation's body is a list,
// for lists of them.
func (awsJSON) Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		return appendMessage(make([]byte, 0, 512), v.ProtoReflect()), nil
	case []*dozev1.Instance:
		return appendList(v), nil
	case []*dozev1.Runtime:
		return appendList(v), nil
	case []*dozev1.AccessKey:
		return appendList(v), nil
	case []*dozev1.Node:
		return appendList(v), nil
	default:
		return nil, fmt.Errorf("no JSON for %T", v)
	}
}

func appendList[M proto.Message](list []M) []byte {
	b := append(make([]byte, 0, 2+256*len(list)), '[')
	for i, m := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendMessage(b, m.ProtoReflect())
	}
	return append(b, ']')
}

// Unmarshal implements runtime.Marshaler.
func (awsJSON) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("no JSON for %T", v)
	}
	return decodeMessage(data, m.ProtoReflect())
}

// NewDecoder implements runtime.Marshaler. The reader must be a *body: its error says why
// decoding failed, which grpc-gateway's own status would flatten to text.
func (c awsJSON) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		b, ok := r.(*body)
		if !ok {
			return errors.New("not a bounded body")
		}
		data, err := b.bytes()
		if err == nil {
			err = c.Unmarshal(data, v)
		}
		b.err = err
		return err
	})
}

// NewEncoder implements runtime.Marshaler.
func (c awsJSON) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		data, err := c.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
}

// boundByUs keeps grpc-gateway from reading the query: exchange.bind does.
type boundByUs struct{}

// Parse implements runtime.QueryParameterParser.
func (boundByUs) Parse(proto.Message, url.Values, *utilities.DoubleArray) error { return nil }
