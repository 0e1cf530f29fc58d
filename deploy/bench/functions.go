// Package benchfunctions carries the functions that `doze bench` deploys: the same three lines in
// Go, Python and Node. The two interpreted ones travel inside the binary, so that `doze bench`
// works from any folder; the Go one is built from go/ by `make bench`.
//
// Each answers its event unchanged. An event {"sleepMs": N} makes it sleep N milliseconds first
// and answer {"instance": ..., "startedMicros": ...}: an id of the process that ran it and when,
// on the machine's clock, the handler began.
package benchfunctions

import _ "embed"

// Python is handler.py; its handler is "handler.handler".
//
//go:embed python/handler.py
var Python []byte

// Node is index.js; its handler is "index.handler".
//
//go:embed node/index.js
var Node []byte
