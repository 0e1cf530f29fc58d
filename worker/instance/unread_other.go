//go:build !linux

package instance

import "time"

// sinceReceived is not known here.
func sinceReceived(uintptr) time.Duration { return 0 }
