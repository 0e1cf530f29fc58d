package ledger

import (
	"errors"
	"fmt"
)

// ErrPrice is a price book that cannot be used.
var ErrPrice = errors.New("ledger: bad price book")

// maxPrice bounds every member of a price book: a million dollars in nano-dollars.
const maxPrice = 1_000_000_000_000_000

// PriceBook says what use costs. All members are integers in units in which the usual prices are
// exact, so that a bill can be recomputed by hand.
type PriceBook struct {
	// PerMillionRequestsNanoUSD is the price of a million requests, in 1e-9 dollars.
	PerMillionRequestsNanoUSD int64 `json:"perMillionRequestsNanoUSD"`
	// PerGBSecondPicoUSD is the price of a GB-second (1024 MB for 1000 ms), in 1e-12 dollars.
	PerGBSecondPicoUSD int64 `json:"perGBSecondPicoUSD"`
	// FreeRequests and FreeGBSeconds are free for each account in each month.
	FreeRequests  int64 `json:"freeRequests"`
	FreeGBSeconds int64 `json:"freeGBSeconds"`
	// AlwaysOnPerHourNanoUSD is what the server costs that a statement is compared with.
	AlwaysOnPerHourNanoUSD int64 `json:"alwaysOnPerHourNanoUSD"`
}

// DefaultPrices is $0.02 per million requests, the first million of a month free; $0.0000167 per
// GB-second, the first 400,000 of a month free; beside a server at $0.02 an hour.
func DefaultPrices() PriceBook {
	return PriceBook{
		PerMillionRequestsNanoUSD: 20_000_000,
		PerGBSecondPicoUSD:        16_700_000,
		FreeRequests:              1_000_000,
		FreeGBSeconds:             400_000,
		AlwaysOnPerHourNanoUSD:    20_000_000,
	}
}

// Validate reports the first member that is negative or out of bounds (ErrPrice).
func (p PriceBook) Validate() error {
	for _, m := range []struct {
		name  string
		value int64
	}{
		{"perMillionRequestsNanoUSD", p.PerMillionRequestsNanoUSD},
		{"perGBSecondPicoUSD", p.PerGBSecondPicoUSD},
		{"freeRequests", p.FreeRequests},
		{"freeGBSeconds", p.FreeGBSeconds},
		{"alwaysOnPerHourNanoUSD", p.AlwaysOnPerHourNanoUSD},
	} {
		if m.value < 0 || m.value > maxPrice {
			return fmt.Errorf("%w: %s is %d, must be 0 to %d", ErrPrice, m.name, m.value, int64(maxPrice))
		}
	}
	return nil
}
