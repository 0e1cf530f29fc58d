package gateway

import "testing"

func TestAdmits(t *testing.T) {
	caller := Identity{Account: otherAccount, Role: "deployer", KeyID: "AKIAX"}
	for text, want := range map[string]bool{
		`{"Effect":"Allow","Principal":"*","Action":"lambda:InvokeFunction"}`:                                                     true,
		`{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"lambda:*"}`:                                                          true,
		`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::222222222222:root"},"Action":"*"}`:                                    true,
		`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::222222222222:user/deployer/AKIAX"},"Action":"Lambda:invokefunction"}`: true,
		`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::222222222222:user/deployer/AKIAY"},"Action":"*"}`:                     false,
		`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::333333333333:root"},"Action":"*"}`:                                    false,
		`{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"*"}`:                                              false,
		`{"Effect":"Allow","Principal":"*","Action":"lambda:InvokeFunctionUrl"}`:                                                  false,
		`{"Effect":"Deny","Principal":"*","Action":"*"}`:                                                                          false,
		`{"Effect":"Allow","Principal":"*","Action":"*","Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-0123456789"}}}`:      false,
		`{"Effect":"Allow","Action":"*"}`:                                                                                         false,
		`{`:                                                                                                                       false,
	} {
		if got := admits(text, caller); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}
