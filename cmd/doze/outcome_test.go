package main

import (
	"testing"

	"github.com/doze-run/doze/control/invoke"
	"github.com/doze-run/doze/worker/instance"
)

// Control nodes name the outcomes that workers number.
func TestOutcomesHaveOneName(t *testing.T) {
	for o := instance.OK; o <= instance.Killed; o++ {
		if name := invoke.OutcomeName(uint8(o)); name != o.String() || name == "unknown" {
			t.Errorf("outcome %d is %q to a worker and %q to a control node", o, o, name)
		}
	}
	if past := instance.Killed + 1; past.String() != "unknown" || invoke.OutcomeName(uint8(past)) != "unknown" {
		t.Errorf("there is an outcome %d that this test does not know", past)
	}
}
