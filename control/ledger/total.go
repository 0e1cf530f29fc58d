package ledger

// Total is what all function versions of all accounts used, in all months.
func (s *Snapshot) Total() Totals {
	var t Totals
	for i := range s.series {
		for _, c := range s.series[i].months {
			t.add(c.Totals)
		}
		for _, c := range s.series[i].hours {
			t.add(c.Totals)
		}
	}
	return t
}

// Empty tells whether nothing was ever counted.
func (s *Snapshot) Empty() bool {
	for _, e := range s.epochs {
		if e.Mark != 0 {
			return false
		}
	}
	return len(s.series) == 0 && s.header.Unbilled == 0
}
