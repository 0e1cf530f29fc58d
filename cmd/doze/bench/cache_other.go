//go:build !linux

package bench

import "errors"

func dropCaches() error { return errors.New("the page cache can be dropped on Linux only") }
