package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

const (
	secret = "0123456789abcdef0123456789abcdef"
	former = "fedcba9876543210fedcba9876543210"
)

// holder has something of volumes.
type holder struct {
	mu     sync.Mutex
	asked  []volume.Want
	answer func(ctx context.Context, want volume.Want) (volume.Holding, error)
}

// Yield implements Holder.
func (h *holder) Yield(ctx context.Context, want volume.Want) (volume.Holding, error) {
	h.mu.Lock()
	h.asked = append(h.asked, want)
	h.mu.Unlock()
	return h.answer(ctx, want)
}

func (h *holder) questions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.asked)
}

func keys(t *testing.T, secrets ...string) []Key {
	t.Helper()
	keys, err := ParseKeys(strings.Join(secrets, " "), "main")
	require.NoError(t, err)
	return keys
}

// alone is a node, i-1, that knows no other.
func alone() *Members {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return NewMembers(func(context.Context) (string, error) { return "i-1", nil }, nil, "", log)
}

// serving is a node that answers with what it has.
func serving(t *testing.T, h *holder, keys []Key) netip.AddrPort {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	log := logrus.New()
	log.SetOutput(io.Discard)
	s := Serve(l, keys, h, alone(), log)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return netip.MustParseAddrPort(l.Addr().String())
}

var (
	want  = volume.Want{From: "i-2", To: "i-1", Volume: "data", Disk: "vol-1", Serial: "vol1"}
	inUse = volume.Holding{State: volume.HoldsInUse, By: "container 3f2a", Since: time.Unix(1e9, 0).UTC()}
)

func using() *holder {
	return &holder{answer: func(context.Context, volume.Want) (volume.Holding, error) { return inUse, nil }}
}

func TestAHolderIsAskedAndAnswers(t *testing.T) {
	t.Parallel()
	h := using()
	at := serving(t, h, keys(t, secret))
	c := NewClient(keys(t, secret), at.Port(), nil)
	holding, err := c.Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.NoError(t, err)
	assert.Equal(t, inUse, holding)
	assert.Equal(t, []volume.Want{want}, h.asked)

	_, err = c.Ask(t.Context(), nil, want)
	require.EqualError(t, err, "the cloud tells no private address of node i-1")
	c = NewClient(keys(t, secret), at.Port(), map[string][]netip.Addr{"i-1": {at.Addr()}})
	_, err = c.Ask(t.Context(), []netip.Addr{netip.MustParseAddr("192.0.2.1")}, want)
	require.NoError(t, err, "at the address that is set")
}

func TestTheNextAddressIsTriedIfOneIsNotReached(t *testing.T) {
	t.Parallel()
	at := serving(t, using(), keys(t, secret))
	_, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{netip.MustParseAddr("127.0.0.9"), at.Addr()}, want)
	require.NoError(t, err)
}

func TestANodeThatIsNotTheOneThatIsAskedSaysSo(t *testing.T) {
	t.Parallel()
	h := &holder{answer: func(context.Context, volume.Want) (volume.Holding, error) {
		return volume.Holding{}, errors.New("this is not node i-1")
	}}
	at := serving(t, h, keys(t, secret))
	_, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.EqualError(t, err, "node i-1 does not answer at 127.0.0.1: this is not node i-1")
}

func TestAnAnswerThatIsWaitedForComesInTime(t *testing.T) {
	t.Parallel()
	h := &holder{answer: func(ctx context.Context, want volume.Want) (volume.Holding, error) {
		<-ctx.Done()
		return volume.Holding{State: want.Known}, nil
	}}
	at := serving(t, h, keys(t, secret))
	known := want
	known.Known = volume.HoldsLeaving
	holding, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, known)
	require.NoError(t, err)
	assert.Equal(t, volume.HoldsLeaving, holding.State)
}

func TestAKeyIsReplacedOneNodeAtATime(t *testing.T) {
	for name, c := range map[string]struct{ client, server []string }{
		"asks with the new one":      {[]string{secret, former}, []string{former}},
		"is asked with the new one":  {[]string{former}, []string{secret, former}},
		"both have both":             {[]string{secret, former}, []string{secret, former}},
		"the former one comes first": {[]string{former, secret}, []string{secret}},
	} {
		t.Run(name, func(t *testing.T) {
			at := serving(t, using(), keys(t, c.server...))
			_, err := NewClient(keys(t, c.client...), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
			require.NoError(t, err)
		})
	}
}

func TestAKeyIsOfOneCluster(t *testing.T) {
	t.Parallel()
	other, err := ParseKeys(secret, "other")
	require.NoError(t, err)
	h := using()
	at := serving(t, h, keys(t, secret))
	_, err = NewClient(other, at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.Error(t, err)
	assert.Zero(t, h.questions())
}

func TestKeysThatCannotBeUsedAreRefusedAndNotShown(t *testing.T) {
	for name, c := range map[string]struct{ text, error string }{
		"none":     {" \n", "there must be one key, or the new one and the former: there are 0"},
		"three":    {secret + " " + former + "\n" + secret, "there must be one key, or the new one and the former: there are 3"},
		"a short":  {"hunter2", "a key must have at least 32 random characters, such as those of `openssl rand -hex 32`"},
		"a second": {secret + " hunter2", "a key must have at least 32 random characters, such as those of `openssl rand -hex 32`"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseKeys(c.text, "main")
			require.EqualError(t, err, c.error)
		})
	}
}

// stranger connects without the key, in whatever way config says, and sends a question all the same.
func stranger(t *testing.T, at netip.AddrPort, config *tls.Config) (shown []*x509.Certificate, err error) {
	t.Helper()
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(s tls.ConnectionState) error {
		shown = s.PeerCertificates
		return nil
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+at.String()+wantPath, strings.NewReader(`{"From":"i-2","To":"i-1","Volume":"data","Disk":"vol-1"}`))
	require.NoError(t, err)
	answer, err := client.Do(r)
	if err == nil {
		defer func() { _ = answer.Body.Close() }()
		body, _ := io.ReadAll(answer.Body)
		t.Errorf("answered: %s", body)
	}
	return shown, err
}

func TestAStrangerLearnsAndDoesNothing(t *testing.T) {
	h := using()
	key := keys(t, secret)[0]
	at := serving(t, h, []Key{key})
	foreign := keys(t, former)[0]
	for name, c := range map[string]struct {
		config *tls.Config
		shown  bool
	}{
		"without anything":                    {config: &tls.Config{}},
		"with another key":                    {config: foreign.config()},
		"with another key and the right name": {config: &tls.Config{ServerName: key.name, Certificates: foreign.config().Certificates}, shown: true},
		"with the right name only":            {config: &tls.Config{ServerName: key.name}, shown: true},
		"with an older TLS":                   {config: &tls.Config{ServerName: key.name, MaxVersion: tls.VersionTLS12, Certificates: key.config().Certificates}},
	} {
		t.Run(name, func(t *testing.T) {
			shown, err := stranger(t, at, c.config)
			require.Error(t, err)
			if !c.shown {
				assert.Empty(t, shown, "the certificate, by which the key's owner is known")
			}
			for _, certificate := range shown {
				assert.NotContains(t, string(certificate.Raw), "main")
			}
		})
	}
	assert.Zero(t, h.questions())
}

// A node is not taken in by a machine that has the address of another, or stands on the way.
func TestAServerWithoutTheKeyIsNotTold(t *testing.T) {
	t.Parallel()
	key := keys(t, secret)[0]
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: keys(t, former)[0].config().Certificates})
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	heard := make(chan []byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		got, _ := io.ReadAll(conn)
		heard <- got
	}()
	at := netip.MustParseAddrPort(l.Addr().String())
	_, err = NewClient([]Key{key}, at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.ErrorIs(t, err, errStranger)
	assert.Empty(t, <-heard)
}

func TestWhatWasHeardOnTheWayCannotBeSentAgain(t *testing.T) {
	t.Parallel()
	h := using()
	at := serving(t, h, keys(t, secret))
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	var sent bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", at.String())
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		_, _ = io.Copy(out, io.TeeReader(in, &sent))
		_ = out.Close()
	}()
	on := netip.MustParseAddrPort(l.Addr().String())
	c := NewClient(keys(t, secret), on.Port(), nil)
	_, err = c.Ask(t.Context(), []netip.Addr{on.Addr()}, want)
	require.NoError(t, err)
	c.clients[0].CloseIdleConnections()
	<-ended
	require.Equal(t, 1, h.questions())

	again, err := net.Dial("tcp", at.String())
	require.NoError(t, err)
	defer func() { _ = again.Close() }()
	_, err = again.Write(sent.Bytes())
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, again) // until the server has given up
	assert.Equal(t, 1, h.questions())
}

func TestWhatIsNoQuestionIsRefused(t *testing.T) {
	h := using()
	key := keys(t, secret)[0]
	at := serving(t, h, []Key{key})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: key.config()}}
	defer client.CloseIdleConnections()
	for name, c := range map[string]struct {
		path, body string
		status     int
	}{
		"garbage":         {wantPath, "\x00\xff{", http.StatusBadRequest},
		"no volume":       {wantPath, `{"From":"i-2","To":"i-1","Disk":"vol-1"}`, http.StatusBadRequest},
		"no end":          {wantPath, `{"Volume":"` + strings.Repeat("x", 2*maxQuestion) + `"}`, http.StatusBadRequest},
		"another request": {"/v1/fence", `{}`, http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+at.String()+c.path, strings.NewReader(c.body))
			require.NoError(t, err)
			answer, err := client.Do(r)
			require.NoError(t, err)
			defer func() { _ = answer.Body.Close() }()
			assert.Equal(t, c.status, answer.StatusCode)
		})
	}
	assert.Zero(t, h.questions())
}

// Connections that say nothing are closed in time, and until then keep nobody else from asking.
func TestAFloodOfSilentConnectionsKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	at := serving(t, using(), keys(t, secret))
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var silent []net.Conn
	for range 4 * maxStrangersOfAddress {
		conn, err := from.DialContext(t.Context(), "tcp", at.String())
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		silent = append(silent, conn)
	}
	_, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.NoError(t, err)
	for _, conn := range silent {
		_, err := conn.Read(make([]byte, 1)) // ends when the server has closed it
		require.Error(t, err)
	}
}

// Peers are no strangers: many of them can wait for answers at once.
func TestManyNodesOfOneAddressCanWait(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	h := &holder{answer: func(context.Context, volume.Want) (volume.Holding, error) {
		<-release
		return inUse, nil
	}}
	at := serving(t, h, keys(t, secret))
	var all sync.WaitGroup
	for n := range 3 * maxStrangersOfAddress {
		all.Go(func() {
			_, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
			assert.NoError(t, err)
		})
		require.Eventually(t, func() bool { return h.questions() == n+1 }, 10*time.Second, time.Millisecond)
	}
	close(release)
	all.Wait()
}
