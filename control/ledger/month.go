package ledger

import (
	"errors"
	"fmt"
)

const (
	msPerHour  = 3_600_000
	msPerDay   = 24 * msPerHour
	maxEndedMs = 253_402_300_799_999 // the last millisecond of the year 9999
)

// ErrMonth is not a month written YYYY-MM.
var ErrMonth = errors.New("ledger: not a month (YYYY-MM)")

// Month is a calendar month in UTC, counted from January of the year 0. The calendar is computed
// here because this package must not know the clock, nor carry package time for its sake.
type Month int32

// NewMonth is a year (1970 to 9999) and a month (1 to 12).
func NewMonth(year, month int) (Month, error) {
	if year < 1970 || year > 9999 || month < 1 || month > 12 {
		return 0, ErrMonth
	}
	return Month(year*12 + month - 1), nil
}

// ParseMonth reads "2026-11".
func ParseMonth(s string) (Month, error) {
	if len(s) != 7 || s[4] != '-' {
		return 0, ErrMonth
	}
	var year, month int
	for i := range len(s) {
		d := int(s[i]) - '0'
		switch {
		case i == 4:
		case d < 0 || d > 9:
			return 0, ErrMonth
		case i < 4:
			year = year*10 + d
		default:
			month = month*10 + d
		}
	}
	return NewMonth(year, month)
}

// MonthOf is the month of a time in unix milliseconds, not before 1970.
func MonthOf(ms int64) Month {
	// Days are counted from 1 March of the year 0, so that the leap day ends a year of 12 months
	// whose lengths repeat every 5 (153 days), 4 years (1461) and 400 years (146097).
	days := ms/msPerDay + 719_468
	era := days / 146_097
	day := days % 146_097
	year := (day - day/1_460 + day/36_524 - day/146_096) / 365
	day -= 365*year + year/4 - year/100
	month := (5*day + 2) / 153 // 0 is March
	return Month((era*400+year)*12 + month + 2)
}

// String is "2026-11".
func (m Month) String() string { return fmt.Sprintf("%04d-%02d", m/12, m%12+1) }

// MarshalText writes the month as String does.
func (m Month) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (m *Month) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMonth(string(text))
	return err
}

// StartMs is the month's first moment, in unix milliseconds.
func (m Month) StartMs() int64 {
	year, month := int64(m/12), int64(m%12)-2
	if month < 0 {
		year, month = year-1, month+12
	}
	era, year := year/400, year%400
	days := era*146_097 + year*365 + year/4 - year/100 + (153*month+2)/5
	return (days - 719_468) * msPerDay
}

// Hours is how many hours the month has.
func (m Month) Hours() int64 { return ((m + 1).StartMs() - m.StartMs()) / msPerHour }

// Elapsed is how many of the month's hours have begun at a time in unix milliseconds: what a
// server that is always on has been charged for.
func (m Month) Elapsed(nowMs int64) int64 {
	return min(max((nowMs-m.StartMs()+msPerHour-1)/msPerHour, 0), m.Hours())
}
