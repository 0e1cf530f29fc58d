package nodetls

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	// CertFile is the authority's certificate, which every node has; KeyFile its key, which no node
	// needs.
	CertFile = "ca.crt"
	KeyFile  = "ca.key"
	// backdate is how long before its making a certificate is valid, for clocks that are behind.
	backdate = time.Hour

	typeCert = "CERTIFICATE"
	typeKey  = "PRIVATE KEY"
)

// Authority signs certificates of nodes.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// CreateAuthority makes an authority in a folder, which is made when it is not there, and with it the key
// of the cluster's gossip. It never
// overwrites one: every node's certificate would be worth nothing.
func CreateAuthority(dir, name string, validity time.Duration) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("nodetls: %w", err)
	}
	for _, file := range []string{KeyFile, GossipFile, CertFile} {
		if _, err := os.Lstat(filepath.Join(dir, file)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("nodetls: %s: %w", filepath.Join(dir, file), fs.ErrExist)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("nodetls: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name, Organization: []string{"doze"}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(validity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("nodetls: %w", err)
	}
	keyText, err := encodeKey(key)
	if err != nil {
		return err
	}
	// The certificate last: an authority with one is whole.
	if err := write(filepath.Join(dir, KeyFile), keyText, 0o600, false); err != nil {
		return err
	}
	if err := write(filepath.Join(dir, GossipFile), newGossipKey(), 0o600, false); err != nil {
		return err
	}
	return write(filepath.Join(dir, CertFile), encodeCert(der), 0o644, false)
}

// OpenAuthority reads the authority of a folder. Its key must be its owner's alone.
func OpenAuthority(dir string) (*Authority, error) {
	certText, err := os.ReadFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	keyText, err := readPrivate(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(certText)
	if err == nil && !certs[0].IsCA {
		err = errors.New("it signs nothing")
	}
	if err != nil {
		return nil, fmt.Errorf("nodetls: %s is not an authority's certificate: %w", filepath.Join(dir, CertFile), err)
	}
	key, err := parseKey(keyText)
	if err != nil {
		return nil, err
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("nodetls: %s and %s in %s do not belong together", CertFile, KeyFile, dir)
	}
	return &Authority{cert: certs[0], key: key}, nil
}

// Issued is a new certificate with its key.
type Issued struct {
	// PEM is both, for one file.
	PEM []byte
	// Until is the end of its validity.
	Until time.Time
}

// Issue makes a certificate for a node. hosts are names and addresses under which others that know
// nothing of roles (browsers, SDKs) find it; nodes do not look at them. A certificate does not
// outlive its authority's.
func (a *Authority) Issue(id Identity, hosts []string, validity time.Duration) (*Issued, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	now := time.Now()
	if !now.Before(a.cert.NotAfter) {
		return nil, fmt.Errorf("nodetls: the authority's certificate ended on %s", a.cert.NotAfter.Format(time.DateOnly))
	}
	until := now.Add(validity)
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: id.Name, OrganizationalUnit: []string{string(id.Role)}, Organization: []string{"doze"}},
		NotBefore: now.Add(-backdate), NotAfter: until, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	template.URIs = append(template.URIs, id.uri())
	if id.Role != Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	keyText, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &Issued{PEM: append(encodeCert(der), keyText...), Until: until}, nil
}

// Write puts the certificate and its key into one file (mode 0600), whole or not at all, so that a
// node that reads it meanwhile never sees one without the other. Only with replace does it take
// the place of a file that is there.
func (i *Issued) Write(path string, replace bool) error { return write(path, i.PEM, 0o600, replace) }

// serial is 128 random bits.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return new(big.Int).SetBytes(b[:])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typeCert, Bytes: der})
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("nodetls: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), nil
}

// write makes a file that is whole when it has its name.
func write(path string, data []byte, mode fs.FileMode, replace bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".pem-*")
	if err != nil {
		return fmt.Errorf("nodetls: %w", err)
	}
	defer func() {
		if remove := os.Remove(f.Name()); !errors.Is(remove, fs.ErrNotExist) {
			err = errors.Join(err, remove)
		}
	}()
	_, err = bytes.NewReader(data).WriteTo(f)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("nodetls: write %s: %w", path, err)
	}
	if replace {
		err = os.Rename(f.Name(), path)
	} else {
		err = os.Link(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("nodetls: %w", err)
	}
	return nil
}
