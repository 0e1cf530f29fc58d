//go:build !linux

package bench

import (
	"errors"
	"syscall"
	"time"
)

var errNeedsProc = errors.New("needs Linux's /proc")

func selfCPU() time.Duration { return 0 }

func processCPU(int) (time.Duration, error) { return 0, errNeedsProc }

func treeCPU(int) (cpuUse, error) { return cpuUse{}, errNeedsProc }

func functionProcesses(int) (functions, helpers []int, err error) { return nil, nil, errNeedsProc }

func memoryOf([]int) (memoryUse, error) { return memoryUse{}, errNeedsProc }

func memAvailable() (int64, error) { return 0, errNeedsProc }

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
