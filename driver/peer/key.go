// Package peer is what the nodes of a cluster tell each other: who uses a volume, please let go of it, you have it now.
//
// A node is asked when the cloud calls it the holder of a volume that another one wants, and says hello to those it has met. All nodes have one
// key, from which each makes the same pair of keys for TLS 1.3. A connection is made only if both sides prove that they have it; to
// anybody else a node does not even show its certificate. Nothing that a node answers makes another one detach a disk by force.
package peer

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// MinKey is how many characters a key must have. It is not stretched, so it must be random.
const MinKey = 32

// maxKeys is how many keys a node can have: the new and the former one.
const maxKeys = 2

// Key is what a node proves itself with to others of its cluster.
type Key struct {
	certificate tls.Certificate
	public      ed25519.PublicKey
	name        string // which a client says and a server must know, before either proves anything
}

// ParseKeys reads one or two keys, with white space between them: the nodes of a cluster need one in common, so that they need not be
// given a new one at the same moment. Errors: none or too many, or one that is too short. They do not show it.
func ParseKeys(text, cluster string) ([]Key, error) {
	var keys []Key
	for secret := range strings.FieldsSeq(text) {
		if len(secret) < MinKey {
			return nil, fmt.Errorf("a key must have at least %d random characters, such as those of `openssl rand -hex 32`", MinKey)
		}
		key, err := NewKey(secret, cluster)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("there must be one key, or the new one and the former: there are %d", len(keys))
	}
	return keys, nil
}

// NewKey makes a cluster's key from a random secret: the same on each node.
func NewKey(secret, cluster string) (Key, error) {
	derive := func(what string) ([]byte, error) {
		return hkdf.Key(sha256.New, []byte(secret), []byte("blockvol peers"), what+" of cluster "+cluster, ed25519.SeedSize)
	}
	seed, err := derive("key")
	if err != nil {
		return Key{}, err
	}
	name, err := derive("name")
	if err != nil {
		return Key{}, err
	}
	private := ed25519.NewKeyFromSeed(seed)
	public, _ := private.Public().(ed25519.PublicKey)
	// Nobody looks at its dates: a node whose clock is wrong must be able to answer.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "blockvol"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return Key{}, err
	}
	return Key{
		certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, public: public, name: hex.EncodeToString(name[:16]) + ".blockvol",
	}, nil
}

var errStranger = errors.New("the other side does not have the key of this cluster")

// isPeer fails unless the other side has proved that it has the key. TLS has checked that the certificate's private key is its own.
func (k Key) isPeer(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 1 && k.public.Equal(s.PeerCertificates[0].PublicKey) {
		return nil
	}
	return errStranger
}

// config is TLS with this key alone.
func (k Key) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{k.certificate}, VerifyConnection: k.isPeer,
		ServerName: k.name, InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, by the key
		ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
	}
}

// accepting is TLS with whichever of the keys the other side names.
func accepting(keys []Key) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, k := range keys {
				if hello.ServerName == k.name {
					return k.config(), nil
				}
			}
			return nil, errStranger
		},
	}
}
