package invoke

import (
	"sync"

	"github.com/doze-run/doze/control/registry"
)

// admission counts the calls in flight and refuses those over a limit: the function's reserved
// concurrency, or what all reservations leave of the account's.
type admission struct {
	// unreserved tells the account's limit for functions without a reservation.
	unreserved func(account string) int

	mu       sync.Mutex
	accounts map[string]*accountUse
}

type accountUse struct {
	unreserved int
	functions  map[string]int // those with a reservation
}

func newAdmission(unreserved func(account string) int) *admission {
	return &admission{unreserved: unreserved, accounts: map[string]*accountUse{}}
}

// take counts one call in, or refuses it. The release must be called once, when nothing of the
// call runs any more.
func (a *admission) take(f *registry.Function) (release func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	use := a.accounts[f.Account]
	if use == nil {
		use = &accountUse{functions: map[string]int{}}
		a.accounts[f.Account] = use
	}
	if f.Reserved == nil {
		if use.unreserved >= a.unreserved(f.Account) {
			return nil, &Throttled{Reason: ReasonConcurrent}
		}
		use.unreserved++
		return func() {
			a.mu.Lock()
			use.unreserved--
			a.mu.Unlock()
		}, nil
	}
	if use.functions[f.Name] >= *f.Reserved {
		return nil, &Throttled{Reason: ReasonReserved}
	}
	use.functions[f.Name]++
	return func() {
		a.mu.Lock()
		if use.functions[f.Name]--; use.functions[f.Name] == 0 {
			delete(use.functions, f.Name)
		}
		a.mu.Unlock()
	}, nil
}
