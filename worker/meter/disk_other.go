//go:build !linux

package meter

import "os"

// allocate gives the file its blocks, zeroed.
func allocate(f *os.File, size int64) error { return fill(f, size) }
