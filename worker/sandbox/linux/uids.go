//go:build linux

package linux

import (
	"fmt"
	"hash/fnv"
	"sync"

	"github.com/doze-run/doze/worker/sandbox"
)

// uids hands out the unprivileged host uids of instances. One that was given back is the last to be
// handed out again.
type uids struct {
	sole int // everybody's, where there is only one; 0 otherwise
	mu   sync.Mutex
	free []int
	head int
	size int
}

func newUIDs(first, count int) *uids {
	u := &uids{free: make([]int, count), size: count}
	for i := range u.free {
		u.free[i] = first + i
	}
	return u
}

func (u *uids) take() (int, error) {
	if u.sole != 0 {
		return u.sole, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.size == 0 {
		return 0, fmt.Errorf("%w: all %d uids are in use", sandbox.ErrNoMemory, len(u.free))
	}
	uid := u.free[u.head]
	u.head = (u.head + 1) % len(u.free)
	u.size--
	return uid, nil
}

func (u *uids) give(uid int) {
	if u.sole != 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.free[(u.head+u.size)%len(u.free)] = uid
	u.size++
}

// defaultUIDs is a range that belongs to a data directory, so that two workers on one machine do not share
// uids. It is above what distributions give to people, services and subordinate ids.
func defaultUIDs(dataDir string) int {
	h := fnv.New32a()
	h.Write([]byte(dataDir))
	return 1<<29 + int(h.Sum32()%8192)*1<<16
}
