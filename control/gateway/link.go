package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// linkLife is how long a download link of GetFunction works, as on AWS.
const linkLife = 10 * time.Minute

// codeLink is a link on this gateway from which a code package can be downloaded without
// credentials: whoever may call GetFunction may pass it on.
func (s *service) codeLink(ctx context.Context, sha string) string {
	expires := strconv.FormatInt(s.config.Now().Add(linkLife).Unix(), 10)
	return exchangeOf(ctx).baseURL + codePrefix + sha + "?Expires=" + expires + "&Signature=" + s.sign(sha, expires)
}

func (s *service) sign(sha, expires string) string {
	mac := hmac.New(sha256.New, s.linkKey)
	mac.Write([]byte(sha + "\n" + expires))
	return hex.EncodeToString(mac.Sum(nil))
}

// serveCode answers a download link.
func (g *Gateway) serveCode(w http.ResponseWriter, r *http.Request, sha string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		faultf(codeUnknownOperation, "%s is not possible here.", r.Method).write(w)
		return
	}
	query := r.URL.Query()
	expires := query.Get("Expires")
	if !hmac.Equal([]byte(g.service.sign(sha, expires)), []byte(query.Get("Signature"))) {
		(&Fault{Code: codeAccessDenied, Message: "The link is not one of this server's. Ask GetFunction for a new one."}).write(w)
		return
	}
	// Signed by us, so it is a number.
	until, _ := strconv.ParseInt(expires, 10, 64)
	if g.config.Now().Unix() > until {
		(&Fault{Code: codeAccessDenied, Message: "The link has expired. Ask GetFunction for a new one."}).write(w)
		return
	}
	zip, size, err := g.config.Code.Get(r.Context(), sha)
	if err != nil {
		g.fail(w, "GetCode", &exchange{}, err)
		return
	}
	defer zip.Close()
	h := w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	h.Set("Content-Disposition", `attachment; filename="`+strings.ToLower(sha[:min(12, len(sha))])+`.zip"`)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(graceTimeout + time.Duration(size)*time.Second/minRate))
	if _, err := io.Copy(w, io.LimitReader(zip, size)); err != nil {
		g.config.Logger.Debug("download ended early", "error", err)
	}
}
