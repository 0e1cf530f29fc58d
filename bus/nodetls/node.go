package nodetls

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// lookAgain is how often, at most, a handshake looks whether the files have changed.
	lookAgain = time.Second
	// maxFile bounds what is read of a file, in bytes: some certificates and a key.
	maxFile = 256 << 10
)

// Node is this node's certificate and the authority it believes. Both files are read again when
// they have changed, so that a certificate is renewed, and an authority replaced (by a file with
// the old and the new one), without a restart. It is safe for concurrent use.
type Node struct {
	certFile, caFile string
	log              *slog.Logger // told when the files cannot be read again; nil for nobody

	mu     sync.Mutex
	now    loaded
	looked time.Time
	err    error
}

type loaded struct {
	cert     *tls.Certificate
	identity Identity
	roots    *x509.CertPool
	stamp    [2]stamp
}

// stamp tells whether a file has changed.
type stamp struct {
	modified time.Time
	size     int64
}

// Load reads a node's file (see Issued.Write) and the authority's certificate.
func Load(certFile, caFile string) (*Node, error) {
	n := &Node{certFile: certFile, caFile: caFile, looked: time.Now()}
	var err error
	n.now, err = n.read()
	return n, err
}

// Identity is which node this is.
func (n *Node) Identity() Identity { return n.current().identity }

// Until is the end of its certificate's validity.
func (n *Node) Until() time.Time { return n.current().cert.Leaf.NotAfter }

// Err is why the files could not be read again, nil when they could. Until they can, what was read
// before stays in use.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Server is for the side that is connected to. Whoever comes must show a certificate of one of
// these roles.
func (n *Node) Server(accept ...Role) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return n.current().cert, nil },
		ClientAuth:       tls.RequireAnyClientCert, // verified below, by what the files say then
		VerifyConnection: func(s tls.ConnectionState) error { return n.verify(s, x509.ExtKeyUsageClientAuth, accept) },
	}
}

// Client is for the side that connects. Whoever answers must show a certificate of one of these
// roles. Names and addresses do not count: nodes find each other by gossip, and what makes a node
// one is its certificate, not where it is.
func (n *Node) Client(accept ...Role) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return n.current().cert, nil
		},
		// Switches off only the check of names; VerifyConnection makes all others.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return n.verify(s, x509.ExtKeyUsageServerAuth, accept) },
	}
}

// Both is for connections that either side may make, with one configuration for the two: the routes
// among NATS servers.
func (n *Node) Both(accept ...Role) *tls.Config {
	config := n.Server(accept...)
	config.GetClientCertificate = n.Client(accept...).GetClientCertificate
	config.InsecureSkipVerify = true // as in Client
	config.VerifyConnection = func(s tls.ConnectionState) error {
		return errors.Join(n.verify(s, x509.ExtKeyUsageClientAuth, accept), n.verify(s, x509.ExtKeyUsageServerAuth, accept))
	}
	return config
}

// Peer is who is at the other end of a connection that was made with Server or Client.
func Peer(s tls.ConnectionState) (Identity, error) {
	if len(s.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: no certificate", ErrIdentity)
	}
	return identityOf(s.PeerCertificates[0])
}

func (n *Node) verify(s tls.ConnectionState, usage x509.ExtKeyUsage, accept []Role) error {
	peer, err := Peer(s)
	if err != nil {
		return err
	}
	intermediates := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	if _, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: n.current().roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage},
	}); err != nil {
		return fmt.Errorf("nodetls: certificate of %s: %w", peer, err)
	}
	if !slices.Contains(accept, peer.Role) {
		return fmt.Errorf("%w: %s may not connect here, only %v", ErrIdentity, peer, accept)
	}
	return nil
}

// current is what the files say.
func (n *Node) current() loaded {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); now.Sub(n.looked) >= lookAgain {
		n.looked = now
		before := n.err
		if stamps, err := n.stamps(); err != nil {
			n.err = err
		} else if stamps != n.now.stamp {
			var next loaded
			if next, n.err = n.read(); n.err == nil {
				n.now = next
			}
		}
		if n.err != nil && before == nil && n.log != nil {
			n.log.Warn("the certificate could not be read again: the one that was read before stays in use", "err", n.err)
		}
	}
	return n.now
}

func (n *Node) stamps() (s [2]stamp, err error) {
	for i, path := range []string{n.certFile, n.caFile} {
		info, err := os.Stat(path)
		if err != nil {
			return s, fmt.Errorf("nodetls: %w", err)
		}
		s[i] = stamp{info.ModTime(), info.Size()}
	}
	return s, nil
}

func (n *Node) read() (loaded, error) {
	var l loaded
	var err error
	if l.stamp, err = n.stamps(); err != nil {
		return l, err
	}
	own, err := readPrivate(n.certFile)
	if err != nil {
		return l, err
	}
	cert, err := tls.X509KeyPair(own, own)
	if err != nil {
		return l, fmt.Errorf("nodetls: %s: %w", n.certFile, err)
	}
	l.cert = &cert
	if l.identity, err = identityOf(cert.Leaf); err != nil {
		return l, fmt.Errorf("%s: %w", n.certFile, err)
	}
	text, err := readBounded(n.caFile)
	if err != nil {
		return l, err
	}
	authorities, err := parseCerts(text)
	if err != nil {
		return l, fmt.Errorf("nodetls: %s: %w", n.caFile, err)
	}
	l.roots = x509.NewCertPool()
	for _, c := range authorities {
		l.roots.AddCert(c)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: l.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return l, fmt.Errorf("nodetls: the certificate in %s has ended, or is not valid yet: look at the clock, or make it anew with `doze ca issue %s --role %s --renew`: %w",
				n.certFile, l.identity.Name, l.identity.Role, err)
		}
		return l, fmt.Errorf("nodetls: the certificate in %s is not of the authority in %s: make it with `doze ca issue` where that authority is: %w", n.certFile, n.caFile, err)
	}
	return l, nil
}

// readPrivate reads a file with a key in it, which others must not be able to read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("nodetls: %s holds a key and others may read it (mode %04o): chmod 600", path, info.Mode().Perm())
	}
	return readBounded(path)
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	return data, nil
}

// parseCerts reads one certificate or more.
func parseCerts(text []byte) (certs []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != typeCert {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return certs, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != typeKey {
		return nil, errors.New("nodetls: no key in the authority's key file")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("nodetls: a key of type %T cannot sign", key)
	}
	return signer, nil
}
