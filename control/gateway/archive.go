package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Archive is what backs up and restores everything.
type Archive interface {
	// Backup writes a backup as of a moment after its call. Nothing is written before an error that
	// comes of the cluster's state.
	Backup(ctx context.Context, w io.Writer) error
	// Restore puts a backup into this cluster, which must be empty, and answers what there is now, to
	// be encoded as JSON. Nothing of the state changes before r came to io.EOF. Without the cluster key
	// by which they are sealed the backup's access keys are of no use: withoutKey takes that.
	Restore(ctx context.Context, r io.Reader, withoutKey bool) (any, error)
}

// ArchiveRefusal is an Archive's error that is a refusal: its message says what to do.
type ArchiveRefusal struct{ Message string }

func (e *ArchiveRefusal) Error() string { return e.Message }

// serveArchive answers Backup and Restore, which are streams of any length and for the operator alone.
func (g *Gateway) serveArchive(w http.ResponseWriter, r *http.Request, x *exchange, path string) {
	x.operation = "Backup"
	serve, verb := g.serveBackup, http.MethodGet
	if path == restorePath {
		x.operation, serve, verb = "Restore", g.serveRestore, http.MethodPost
	}
	var err error
	switch {
	case g.config.Archive == nil || r.Method != verb:
		err = faultf(codeUnknownOperation, "No operation has %s on this path.", r.Method)
	case path == restorePath && x.proof != nil && r.Header.Get("X-Amz-Content-Sha256") == "":
		// The head alone must prove who calls: what comes is stored as it comes.
		err = faultf(codeInvalidSignature, "A backup is sent with its hash, signed, in X-Amz-Content-Sha256.")
	default:
		err = g.service.authorize(x.caller, x.operation, nil)
	}
	if err != nil {
		g.refuse(w, r, x, err)
		return
	}
	serve(w, r, x)
}

func (g *Gateway) serveBackup(w http.ResponseWriter, r *http.Request, x *exchange) {
	b := &body{r: r, control: http.NewResponseController(w), memory: g.memory, limit: maxOtherRequest, operation: x.operation}
	defer b.release()
	if err := b.prove(x); err != nil {
		g.failBody(w, b, x, err)
		return
	}
	out := &patientWriter{w: w, control: b.control}
	err := g.config.Archive.Backup(r.Context(), out)
	switch {
	case err == nil:
	case !out.begun:
		g.fail(w, x.operation, x, refusedFault(err))
	default:
		// Too late for a status: the missing end of the chunked body tells the client.
		if r.Context().Err() == nil {
			g.logFailure(x.operation, x, err)
		}
		panic(http.ErrAbortHandler)
	}
}

func (g *Gateway) serveRestore(w http.ResponseWriter, r *http.Request, x *exchange) {
	withoutKey, err := withoutKeyOf(r.URL.RawQuery)
	if err != nil {
		g.refuse(w, r, x, err)
		return
	}
	in := &provingReader{r: r.Body, control: http.NewResponseController(w), sum: sha256.New(), proof: x.proof}
	answer, err := g.config.Archive.Restore(r.Context(), in, withoutKey)
	if err != nil {
		if in.failed != nil {
			err = in.failed
		}
		g.refuse(w, r, x, refusedFault(err))
		return
	}
	data, err := json.Marshal(answer)
	if err != nil {
		g.fail(w, x.operation, x, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n'))
}

func withoutKeyOf(rawQuery string) (bool, error) {
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return false, faultf(codeValidation, "The query string is malformed: %v.", err)
	}
	without := false
	for name, values := range query {
		if name != "withoutClusterKey" || len(values) != 1 {
			return false, faultf(codeValidation, "This operation has no query parameter '%s'.", cut(name))
		}
		if without, err = strconv.ParseBool(values[0]); err != nil {
			return false, faultf(codeValidation, "Value '%s' at 'withoutClusterKey' is neither true nor false.", cut(values[0]))
		}
	}
	return without, nil
}

func refusedFault(err error) error {
	var refused *ArchiveRefusal
	if errors.As(err, &refused) {
		return &Fault{Code: codeConflict, Message: refused.Message}
	}
	return err
}

// patientWriter writes an answer of any length to a client that reads on.
type patientWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	begun   bool
}

func (p *patientWriter) Write(data []byte) (int, error) {
	if !p.begun {
		p.begun = true
		p.w.Header().Set("Content-Type", "application/x-tar")
	}
	_ = p.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	return p.w.Write(data)
}

// provingReader reads a body of any length from a client that sends on; its end is an error if the body
// is not the one that was signed.
type provingReader struct {
	r       io.Reader
	control *http.ResponseController
	sum     hash.Hash
	proof   Proof
	failed  error
}

func (p *provingReader) Read(data []byte) (int, error) {
	if p.failed != nil {
		return 0, p.failed
	}
	_ = p.control.SetReadDeadline(time.Now().Add(stallTimeout))
	n, err := p.r.Read(data)
	p.sum.Write(data[:n]) // a hash never fails
	switch {
	case errors.Is(err, io.EOF) && p.proof != nil:
		if failed := p.proof([sha256.Size]byte(p.sum.Sum(nil))); failed != nil {
			p.failed, err = failed, failed
		}
	case err != nil && !errors.Is(err, io.EOF):
		p.failed = readFault(err)
		err = p.failed
	}
	return n, err
}
