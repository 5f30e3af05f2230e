package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

// answering is a machine that has the key, and answers as it likes.
func answering(t *testing.T, answer http.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", keys(t, secret)[0].config())
	require.NoError(t, err)
	s := &http.Server{Handler: answer}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestAnAnswerSendsNobodyElsewhere(t *testing.T) {
	t.Parallel()
	var visits atomic.Int64
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	other := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visits.Add(1) })}
	go func() { _ = other.Serve(l) }()
	t.Cleanup(func() { _ = other.Close() })
	for _, status := range []int{http.StatusFound, http.StatusTemporaryRedirect} {
		at := answering(t, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+l.Addr().String()+"/latest/meta-data", status)
		})
		_, err = NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
		require.Error(t, err)
	}
	assert.Zero(t, visits.Load())
}

func TestAnAnswerThatCannotBeUnderstoodIsNone(t *testing.T) {
	for name, body := range map[string]string{
		"nothing":          ``,
		"garbage":          "\x00\xff{",
		"no state":         `{}`,
		"an unknown state": `{"State":"fenced"}`,
		"without an end":   `{"State":"in-use","By":"` + strings.Repeat("x", 2*maxAnswer) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			at := answering(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })
			_, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
			require.ErrorContains(t, err, "node i-1 does not answer at 127.0.0.1: ")
		})
	}
}

// What another node says comes to logs and errors.
func TestAnAnswerIsShort(t *testing.T) {
	at := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		user := `"container\n\u001b[31m` + strings.Repeat("x", 400) + `"`
		_, _ = io.WriteString(w, `{"State":"in-use","Message":`+user+`,"By":`+user+`}`)
	})
	holding, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.NoError(t, err)
	words := holding.On("i-1") + holding.Message
	assert.Less(t, len(words), 2000)
	assert.NotContains(t, words, "\n")
	assert.NotContains(t, words, "\x1b")

	at = answering(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, strings.Repeat("no\n", 10000), http.StatusTeapot)
	})
	_, err = NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, want)
	require.Error(t, err)
	assert.Less(t, len(err.Error()), 500)
	assert.NotContains(t, err.Error(), "\n")
}

// The driver closes after the server: nothing may be asked of it then.
func TestCloseWaitsForTheAnswersThatAreBeingMade(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	log := logrus.New()
	log.SetOutput(io.Discard)
	begun, ended := make(chan struct{}), make(chan struct{})
	s := Serve(l, keys(t, secret), &holder{answer: func(ctx context.Context, _ volume.Want) (volume.Holding, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return inUse, nil
	}}, alone(), log)
	at := netip.MustParseAddrPort(l.Addr().String())
	result, c := make(chan error, 1), NewClient(keys(t, secret), at.Port(), nil)
	go func() {
		_, err := c.Ask(context.Background(), []netip.Addr{at.Addr()}, want)
		result <- err
	}()
	<-begun
	require.NoError(t, s.Close())
	select {
	case <-ended:
	default:
		t.Error("a question is still being answered")
	}
	require.Error(t, <-result)
}

func TestAQuestionNamesItsDiskAndWhoAsks(t *testing.T) {
	h := using()
	at := serving(t, h, keys(t, secret))
	for _, change := range []func(*volume.Want){
		func(w *volume.Want) { w.Volume = "" }, func(w *volume.Want) { w.Disk = "" }, func(w *volume.Want) { w.From = "" },
	} {
		wrong := want
		change(&wrong)
		_, err := NewClient(keys(t, secret), at.Port(), nil).Ask(t.Context(), []netip.Addr{at.Addr()}, wrong)
		require.ErrorContains(t, err, "this is no question for a volume")
	}
	assert.Zero(t, h.questions())
}

// However many they are, strangers cost a node so many connections and no more.
func TestStrangersBeyondTheLimitsAreClosedAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		addresses int
		more      string
	}{
		"of one address": {1, "127.0.1.1"},
		"of all":         {maxStrangers / maxStrangersOfAddress, "127.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			at := serving(t, using(), keys(t, secret))
			connect := func(from string) net.Conn {
				d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
				conn, err := d.DialContext(t.Context(), "tcp", at.String())
				require.NoError(t, err)
				t.Cleanup(func() { _ = conn.Close() })
				return conn
			}
			for a := range c.addresses {
				for range maxStrangersOfAddress {
					connect(fmt.Sprintf("127.0.1.%d", a+1))
				}
			}
			one := connect(c.more)
			require.NoError(t, one.SetReadDeadline(time.Now().Add(handshakeTimeout-time.Second)))
			_, err := one.Read(make([]byte, 1))
			require.Error(t, err)
			assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it stays open")
		})
	}
}
