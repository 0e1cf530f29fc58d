package gateway

import (
	"crypto/sha256"
	"encoding/xml"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/doze-run/doze/control/registry"
)

// The Security Token Service's Query protocol, of which the aws CLI and Terraform's provider ask
// who they are before anything else. GetCallerIdentity is all there is of it.
const (
	stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"
	stsVersion   = "2011-06-15"
	// maxSTSRequest bounds a request's form, in bytes.
	maxSTSRequest = 16 << 10
)

type callerIdentity struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	Result  struct {
		Arn     string
		UserID  string `xml:"UserId"`
		Account string
	} `xml:"GetCallerIdentityResult"`
	RequestID string `xml:"ResponseMetadata>RequestId"`
}

type stsError struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Error   struct {
		Type    string
		Code    string
		Message string
	}
	RequestID string `xml:"RequestId"`
}

// isSTS tells the Query protocol, whose action is in a form or in the query.
func isSTS(r *http.Request) bool {
	if r.Method == http.MethodPost {
		return strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded")
	}
	return strings.Contains(r.URL.RawQuery, "Action=")
}

// serveSTS answers on "/", where no operation of Lambda is.
func (g *Gateway) serveSTS(w http.ResponseWriter, r *http.Request, x *exchange) {
	answer, err := g.callerIdentity(w, r, x)
	if err != nil {
		f, known := faultOf(err)
		if !known {
			g.logFailure("GetCallerIdentity", x, err)
		}
		e := &stsError{RequestID: x.id.String()}
		e.Error.Type, e.Error.Code, e.Error.Message = "Sender", stsCode(f.Code), f.Message
		if f.Status() >= 500 {
			e.Error.Type = "Receiver"
		}
		writeXML(w, f.Status(), e)
		return
	}
	writeXML(w, http.StatusOK, answer)
}

func (g *Gateway) callerIdentity(w http.ResponseWriter, r *http.Request, x *exchange) (*callerIdentity, error) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		return nil, faultf(codeUnknownOperation, "%s is not possible here.", r.Method)
	}
	var err error
	var proof Proof
	if x.caller, proof, err = g.config.Authenticator.HTTP(r, serviceSTS); err != nil {
		return nil, err
	}
	b := &body{r: r, control: http.NewResponseController(w), memory: g.memory, limit: maxSTSRequest, operation: "GetCallerIdentity"}
	defer b.release()
	form, err := b.bytes()
	if err == nil && proof != nil {
		err = proof(sha256.Sum256(form))
	}
	if err != nil {
		return nil, err
	}
	values := r.URL.Query()
	if r.Method == http.MethodPost {
		if values, err = url.ParseQuery(string(form)); err != nil {
			return nil, faultf(codeValidation, "The form is malformed: %v.", err)
		}
	}
	if action := values.Get("Action"); action != "GetCallerIdentity" || values.Get("Version") != stsVersion {
		return nil, faultf(codeInvalidAction, "Could not find operation %s for version %s", cut(action), cut(values.Get("Version")))
	}
	answer := &callerIdentity{RequestID: x.id.String()}
	answer.Result.Account, answer.Result.Arn, answer.Result.UserID = x.caller.Account, x.caller.ARN(), x.caller.KeyID
	if x.caller.Role == registry.RoleRoot {
		answer.Result.UserID = x.caller.Account // as AWS's root user's
	}
	return answer, nil
}

// stsCode is a Lambda error's name in STS.
func stsCode(code string) string {
	switch code {
	case codeUnrecognized:
		return "InvalidClientTokenId"
	case codeInvalidSignature:
		return "SignatureDoesNotMatch"
	case codeMissingAuth:
		return "MissingAuthenticationToken"
	case codeIncomplete:
		return "IncompleteSignature"
	case codeExpiredToken:
		return "ExpiredToken"
	case codeAccessDenied:
		return "AccessDenied"
	case codeService:
		return "InternalFailure"
	}
	return code
}

func writeXML(w http.ResponseWriter, status int, v any) {
	text, err := xml.Marshal(v)
	if err != nil { // of strings only: it cannot
		status, text = http.StatusInternalServerError, nil
	}
	h := w.Header()
	h.Set("Content-Type", "text/xml")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text)
}
