package gateway

import (
	"encoding/json"
	"strings"
)

// actionInvoke is Invoke's name in policies.
const actionInvoke = "lambda:InvokeFunction"

// admit answers nil when the policy of another account's function lets the caller invoke it.
// Whether the function exists is not told: no policy and no function look the same.
func (s *service) admit(caller Identity, t target) error {
	if f, ok := s.config.Registry.Function(t.account, t.name); ok {
		if policy := f.Policies[t.qualifier]; policy != nil {
			for _, st := range policy.Statements {
				if admits(st.JSON, caller) {
					return nil
				}
			}
		}
	}
	return denied(caller, "Invoke", s.arn(t.account, t.name, t.qualifier), "resource")
}

// admits tells whether one statement lets the caller invoke. One with a condition does not: those
// that AddPermission knows are about calls by services and function URLs, which this is none of.
func admits(text string, caller Identity) bool {
	var st struct {
		Effect    string
		Principal json.RawMessage
		Action    string
		Condition map[string]json.RawMessage
	}
	if json.Unmarshal([]byte(text), &st) != nil || st.Effect != "Allow" || len(st.Condition) > 0 {
		return false
	}
	if st.Action != "*" && !strings.EqualFold(st.Action, "lambda:*") && !strings.EqualFold(st.Action, actionInvoke) {
		return false
	}
	var all string
	if json.Unmarshal(st.Principal, &all) == nil {
		return all == "*"
	}
	var principal struct{ AWS string }
	if json.Unmarshal(st.Principal, &principal) != nil {
		return false
	}
	// The account as a whole, or this caller.
	return principal.AWS == "*" || principal.AWS == "arn:aws:iam::"+caller.Account+":root" || principal.AWS == caller.ARN()
}
