package bus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/doze-run/doze/bus/nodetls"
)

// tellAgain is how often the log is told of a server that does not let this node in. It is tried again
// all the time.
const tellAgain = 10 * time.Second

// refusals tells the log why a connection does not come about. A server that is only away is not worth a
// word: who needs it says so.
type refusals struct {
	config ConnConfig
	known  *atomic.Bool // it has been connected: whoever says nothing now is only away

	mu   sync.Mutex
	told time.Time
}

func (r *refusals) tell(_ *nats.Conn, err error) {
	said, known := explain(err, r.config.TLS != nil || r.known.Load())
	if !known {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.told) >= tellAgain {
		r.told = now
		r.config.Logger.Error("bus: a control node does not let this node in, or is not one", "node", r.config.node, "servers", r.config.URLs, "err", said)
	}
}

// explain says what to do about an error of TLS or of permission; it answers any other as it is, and
// false. Without certificates silence may be one, too.
func explain(err error, secure bool) (said error, known bool) {
	var (
		alert   tls.AlertError
		remote  *net.OpError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
	)
	switch {
	case err == nil:
		return nil, false
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.Is(err, nodetls.ErrIdentity):
		return fmt.Errorf("the other side's certificate is not one of a control node of this node's authority, or has ended: look at both with `doze ca`: %w", err), true
	case errors.As(err, &alert), errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("the other side refuses this node's certificate (its log says why): make one of the cluster's authority and of the right role with `doze ca issue NAME --role ROLE`, and give its folder with --tls-dir: %w", err), true
	case errors.As(err, &record):
		return fmt.Errorf("the other side does not speak TLS: start it with --tls-dir, too, or this node without: %w", err), true
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return fmt.Errorf("the other side does not let this node in (its log says why): %w", err), true
	case !secure && errors.Is(err, nats.ErrTimeout), !secure && isTimeout(err):
		return fmt.Errorf("the other side says nothing: it may want a certificate (`doze ca`), which is given with --tls-dir: %w", err), true
	}
	return err, false
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
