//go:build !linux

package control

import "net"

// quiesce does nothing here: connections that wait to be accepted when a listener is closed are reset.
func quiesce(...net.Listener) {}
