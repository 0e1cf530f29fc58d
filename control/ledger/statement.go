package ledger

import (
	"cmp"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

const (
	mbMsPerGBSecond = 1024 * 1000
	requestsPrice   = 1_000_000 // requests that PerMillionRequestsNanoUSD is the price of
	// nanoDenominator is what a cost is divided by to be in nano-dollars when it is counted as
	// requests × price × (nanoDenominator ÷ requestsPrice) + MB·ms × price of a GB-second in
	// pico-dollars.
	nanoDenominator = mbMsPerGBSecond * 1000
)

// GBSeconds is an amount of GB-seconds, held exactly: in MB·ms.
type GBSeconds uint64

// String is the exact decimal ("12.5"); a GB-second is 2^13 · 5^3 MB·ms, so it ends.
func (g GBSeconds) String() string {
	whole, part := uint64(g)/mbMsPerGBSecond, uint64(g)%mbMsPerGBSecond
	s := strconv.FormatUint(whole, 10)
	if part == 0 {
		return s
	}
	// 13 decimals: part / (2^13 · 5^3) = part · 5^10 / 10^13.
	return s + "." + strings.TrimRight(fmt.Sprintf("%013d", part*9_765_625), "0")
}

// MarshalJSON writes the exact decimal as a number.
func (g GBSeconds) MarshalJSON() ([]byte, error) { return []byte(g.String()), nil }

// Line is what one function used and costs in a month, all its versions together.
type Line struct {
	Function string `json:"function"`
	Requests uint64 `json:"requests"`
	// MBMs is billed milliseconds times MB; GBSeconds is the same amount in GB-seconds.
	MBMs      uint64    `json:"mbMs"`
	GBSeconds GBSeconds `json:"gbSeconds"`
	// FreeRequests and FreeGBSeconds are this function's share of the account's free tier.
	FreeRequests  uint64    `json:"freeRequests"`
	FreeGBSeconds GBSeconds `json:"freeGbSeconds"`
	AmountNanoUSD int64     `json:"amountNanoUSD"`
}

// Statement is an account's bill of a month.
type Statement struct {
	Month Month `json:"month"`
	// Functions is every function with use, by name. Their amounts add up to TotalNanoUSD.
	Functions    []Line `json:"functions"`
	TotalNanoUSD int64  `json:"totalNanoUSD"`
	// AlwaysOnNanoUSD is what a server that is always on has cost in the same time.
	AlwaysOnNanoUSD int64 `json:"alwaysOnNanoUSD"`
}

// Statement makes the bill of a month; elapsedHours is how much of the month has passed (see
// Month.Elapsed). Errors: ErrPrice, ErrOverflow.
//
// The free tier is the account's. It is spread over the functions in proportion to what each
// used, and the units that do not divide go one each to the functions with the largest remainders,
// by name where those are equal. Money is rounded down once, on the account's exact total, to whole
// nano-dollars; the lines are rounded down and share what is missing by the same rule. So the
// lines always add up, and neither the order nor the cut of batches matters.
func (l *Ledger) Statement(account string, month Month, prices PriceBook, elapsedHours int64) (*Statement, error) {
	if err := prices.Validate(); err != nil {
		return nil, err
	}
	lines := l.lines(account, month)
	requests, usage := make([]*big.Int, len(lines)), make([]*big.Int, len(lines))
	for i, line := range lines {
		requests[i] = new(big.Int).SetUint64(line.Requests)
		usage[i] = new(big.Int).SetUint64(line.MBMs)
	}
	freeRequests := spread(big.NewInt(prices.FreeRequests), requests)
	freeUsage := spread(product(prices.FreeGBSeconds, big.NewInt(mbMsPerGBSecond)), usage)

	costs := make([]*big.Int, len(lines))
	for i := range lines {
		costs[i] = new(big.Int).Add(
			product(prices.PerMillionRequestsNanoUSD*(nanoDenominator/requestsPrice), requests[i].Sub(requests[i], freeRequests[i])),
			product(prices.PerGBSecondPicoUSD, usage[i].Sub(usage[i], freeUsage[i])))
	}
	amounts := apportion(costs, big.NewInt(nanoDenominator))

	s := &Statement{Month: month, Functions: lines}
	total := new(big.Int)
	for i := range lines {
		if !amounts[i].IsInt64() || !total.Add(total, amounts[i]).IsInt64() {
			return nil, fmt.Errorf("%w: statement of %s for %s", ErrOverflow, account, month)
		}
		lines[i].FreeRequests = freeRequests[i].Uint64()
		lines[i].FreeGBSeconds = GBSeconds(freeUsage[i].Uint64())
		lines[i].AmountNanoUSD = amounts[i].Int64()
	}
	s.TotalNanoUSD = total.Int64()
	s.AlwaysOnNanoUSD = prices.AlwaysOnPerHourNanoUSD * min(max(elapsedHours, 0), month.Hours())
	return s, nil
}

// lines adds up the versions of each function. The answer is not nil.
func (l *Ledger) lines(account string, month Month) []Line {
	sums := map[string]Totals{}
	l.mu.RLock()
	for _, s := range l.accounts[account] {
		t := sums[s.function]
		t.add(s.month(month))
		sums[s.function] = t
	}
	l.mu.RUnlock()
	lines := make([]Line, 0, len(sums))
	for function, t := range sums {
		if t.Requests > 0 {
			lines = append(lines, Line{Function: function, Requests: t.Requests, MBMs: t.MBMs, GBSeconds: GBSeconds(t.MBMs)})
		}
	}
	slices.SortFunc(lines, func(a, b Line) int { return cmp.Compare(a.Function, b.Function) })
	return lines
}

// spread hands out free units in proportion to use, no more than was used.
func spread(free *big.Int, used []*big.Int) []*big.Int {
	total := new(big.Int)
	for _, u := range used {
		total.Add(total, u)
	}
	shares := make([]*big.Int, len(used))
	for i, u := range used {
		shares[i] = new(big.Int).Set(u)
		if free.Cmp(total) < 0 {
			shares[i].Mul(u, free)
		}
	}
	if free.Cmp(total) < 0 {
		return apportion(shares, total)
	}
	return shares
}

// apportion divides each by the denominator, rounding so that the results add up to the sum of the
// given ones divided and rounded down: largest remainders first, then in the given order.
func apportion(numerators []*big.Int, denominator *big.Int) []*big.Int {
	results, remainders := make([]*big.Int, len(numerators)), make([]*big.Int, len(numerators))
	left := new(big.Int)
	order := make([]int, len(numerators))
	for i, n := range numerators {
		results[i], remainders[i] = new(big.Int).QuoRem(n, denominator, new(big.Int))
		left.Add(left, remainders[i])
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return remainders[b].Cmp(remainders[a]) })
	// The remainders add up to less than one denominator each, so no index is passed twice.
	for i := range left.Quo(left, denominator).Int64() {
		results[order[i]].Add(results[order[i]], big.NewInt(1))
	}
	return results
}

func product(a int64, b *big.Int) *big.Int { return new(big.Int).Mul(big.NewInt(a), b) }
