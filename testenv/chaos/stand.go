//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// stand is what testenv wants of a test, for a program: it says what goes wrong, ends the goroutine that cannot go
// on, and takes back at the end what was made.
type stand struct {
	testing.TB // nil: what is not below is not asked for

	ctx context.Context
	dir string
	say func(format string, args ...any)

	mu       sync.Mutex
	failed   bool
	folders  int
	cleanups []func()
}

func (s *stand) Name() string             { return "chaos" }
func (s *stand) Helper()                  {}
func (s *stand) Context() context.Context { return s.ctx }
func (s *stand) Logf(format string, args ...any) {
	s.say(format, args...)
}

func (s *stand) Errorf(format string, args ...any) {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	s.say("FAILED: "+format, args...)
}

func (s *stand) Error(args ...any) { s.Errorf("%s", fmt.Sprint(args...)) }
func (s *stand) Fatal(args ...any) { s.Fatalf("%s", fmt.Sprint(args...)) }
func (s *stand) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

func (s *stand) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *stand) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *stand) TempDir() string {
	s.mu.Lock()
	s.folders++
	dir := filepath.Join(s.dir, fmt.Sprint(s.folders))
	s.mu.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.Fatal(err)
	}
	return dir
}

// run does f, which may end its goroutine by Fatal, and then what Cleanup was told, the last first.
func (s *stand) run(f func()) {
	guarded := func(f func()) {
		done := make(chan struct{})
		go func() { defer close(done); f() }()
		<-done
	}
	guarded(f)
	for {
		s.mu.Lock()
		if len(s.cleanups) == 0 {
			s.mu.Unlock()
			return
		}
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		s.mu.Unlock()
		guarded(last)
	}
}
