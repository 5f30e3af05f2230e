package aws

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// actionOf returns the action of a request, "" if it is not to EC2.
func actionOf(r *http.Request) (string, error) {
	if r.Body == nil {
		return "", nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, _ := url.ParseQuery(string(body))
	return form.Get("Action"), nil
}

func TestConcurrentReadsShareRequests(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		v := w.create(p, "db")
		w.cloud.ResetCalls()
		begin := time.Now()
		var calls []func()
		for range 100 {
			calls = append(calls, func() {
				found, err := p.Find(t.Context(), "db")
				if assert.NoError(t, err) {
					assert.Equal(t, v.ID, found.ID)
				}
			})
		}
		left, leave := context.WithCancel(t.Context())
		for range 10 {
			calls = append(calls, func() {
				_, err := p.Find(left, "db")
				assert.ErrorIs(t, err, context.Canceled)
			})
		}
		calls = append(calls, func() { time.Sleep(50 * time.Millisecond); leave() })
		providertest.AtOnce(calls...)
		assert.LessOrEqual(t, w.cloud.Calls()["DescribeVolumes"], 2)
		assert.LessOrEqual(t, time.Since(begin), 200*time.Millisecond, "a caller that leaves does not delay the others")
	})
}

func TestConcurrentFirstCallsShareTheMetadataRequest(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.node("a")
		hangs := &hanging{RoundTripper: w.front.Transport(node), host: "169.254.169.254"}
		p := w.onWith(hangs)
		begin := time.Now()
		var calls []func()
		for range 50 {
			calls = append(calls, func() {
				_, err := p.Node(t.Context())
				assert.ErrorIs(t, err, providers.ErrUnavailable)
			})
		}
		providertest.AtOnce(calls...)
		assert.LessOrEqual(t, time.Since(begin), time.Minute, "not twenty seconds for each caller")
		hangs.host = ""
		_, err := p.Node(t.Context())
		require.NoError(t, err, "a failure is not cached")
	})
}

// hanging never answers for one host.
type hanging struct {
	http.RoundTripper
	host string
}

func (h *hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Hostname() == h.host {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return h.RoundTripper.RoundTrip(r)
}

func TestEachPageHasItsOwnTimeout(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 3 * time.Second}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		w.create(p, "db")
		for range 5000 { // of others, which a page may be full of
			w.cloud.AddInstance(cloud.Instance{Type: "t3.micro", RootDevice: "/dev/xvda"})
		}
		list, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 1)
	})
}

func TestCircularPagesAreAnError(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.onWith(circle{w.front.Transport(w.node("a"))})
		_, err := p.List(t.Context())
		require.ErrorIs(t, err, providers.ErrUnavailable)
		providertest.Sentence(t, err, "DescribeVolumes", "circle")
	})
}

type circle struct{ http.RoundTripper }

func (c circle) RoundTrip(r *http.Request) (*http.Response, error) {
	action, err := actionOf(r)
	if err != nil || action == "" {
		return c.RoundTripper.RoundTrip(r)
	}
	return said(r, http.StatusOK, `<DescribeVolumesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><volumeSet/><nextToken>more</nextToken></DescribeVolumesResponse>`), nil
}

// said returns an answer.
func said(r *http.Request, status int, body string) *http.Response {
	return httpsim.Response(r, status, "text/xml", body)
}

func TestAMissingInstanceIsNotGoneAtOnce(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		for range 2 {
			state, err := p.NodeState(t.Context(), "i-0123456789abcdef0")
			require.NoError(t, err)
			assert.Equal(t, providers.Unclear, state.Life, "a read may be older than the instance")
			assert.NotEmpty(t, state.Evidence)
			time.Sleep(2 * time.Second)
		}
		time.Sleep(providers.MaxStale)
		state, err := p.NodeState(t.Context(), "i-0123456789abcdef0")
		require.NoError(t, err)
		assert.Equal(t, providers.Gone, state.Life)

		time.Sleep(time.Hour)
		state, err = p.NodeState(t.Context(), "i-0123456789abcdef0")
		require.NoError(t, err)
		assert.Equal(t, providers.Unclear, state.Life, "two missing reads far apart are no evidence")
	})
	// Credentials of another account or region do not prove it either: EC2 does not show them this instance.
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node("a")
		inner := w.front.Transport(a)
		p := w.onWith(httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			answer, err := inner.RoundTrip(r)
			if err == nil && r.URL.Hostname() != httpsim.MetadataHost {
				httpsim.ReplaceBody(answer, a, "i-0fedcba9876543210")
			}
			return answer, err
		}))
		for range 3 {
			state, err := p.NodeState(t.Context(), "i-0123456789abcdef0")
			require.NoError(t, err)
			assert.Equal(t, providers.Unclear, state.Life)
			time.Sleep(providers.MaxStale)
		}
	})
	for seed := range uint64(8) {
		inWorld(t, cloud.Config{Lag: 5 * time.Second, Seed: seed}, func(t *testing.T, w *world) {
			p := w.on(w.node("a"))
			_, err := p.Node(t.Context())
			require.NoError(t, err)
			young := w.node("a")
			for range 20 {
				state, err := p.NodeState(t.Context(), young)
				require.NoError(t, err)
				require.NotContains(t, []providers.Life{providers.Gone, providers.Stopped}, state.Life)
				time.Sleep(700 * time.Millisecond)
			}
		})
	}
}

func TestAnInvalidInstanceIDDoesNotFailOtherReads(t *testing.T) {
	inWorld(t, cloud.Config{Latency: time.Second}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		var all sync.WaitGroup
		for _, odd := range []string{"", "*", "i-?", "not an instance"} {
			all.Go(func() {
				state, err := p.NodeState(t.Context(), odd)
				if assert.NoError(t, err) {
					assert.Equal(t, providers.Unclear, state.Life)
				}
			})
			all.Go(func() {
				state, err := p.NodeState(t.Context(), node)
				if assert.NoError(t, err) {
					assert.Equal(t, providers.Running, state.Life)
				}
			})
		}
		all.Wait()
	})
}

// shared makes EC2 show its volumes with Multi-Attach enabled, when on.
type shared struct {
	http.RoundTripper
	is atomic.Bool
}

func (s *shared) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := s.RoundTripper.RoundTrip(r)
	if err != nil || !s.is.Load() {
		return answer, err
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	shown := bytes.ReplaceAll(body, []byte("<multiAttachEnabled>false<"), []byte("<multiAttachEnabled>true<"))
	answer.Body, answer.ContentLength = io.NopCloser(bytes.NewReader(shown)), int64(len(shown))
	return answer, nil
}

// EC2 does not refuse to attach them to a second instance.
func TestMultiAttachVolumesAreNeitherAdoptedNorUsed(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		link := &shared{RoundTripper: w.front.Transport(w.node("a"))}
		p := w.onWith(link)
		v, kept := w.create(p, "db"), w.create(p, "kept")
		require.NoError(t, p.Forget(t.Context(), kept.ID))
		time.Sleep(time.Minute)
		link.is.Store(true)
		_, found := p.Find(t.Context(), "db")
		all, listed := p.List(t.Context())
		assert.Empty(t, all)
		_, again := p.Adopt(t.Context(), v.ID, providers.Spec{Name: "db"})
		_, foreign := p.Adopt(t.Context(), kept.ID, providers.Spec{Name: "mine"})
		for i, err := range []error{found, listed, again, foreign} {
			require.ErrorIs(t, err, providers.ErrInvalid, i)
			providertest.Sentence(t, err, "Multi-Attach", "one writer", "--no-multi-attach-enabled")
		}
		link.is.Store(false)
		w.attach(p, v)
	})
}

func TestOneRequestTellsWhatANodeHolds(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node, other := w.node("a"), w.node("a")
		p, q := w.on(node), w.on(other)
		w.attach(p, w.create(p, "mine"))
		w.attach(q, w.create(q, "theirs"))
		for i := range 600 { // more than a page has
			_, err := w.cloud.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
				_, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: gib, Type: "gp3"}, Tags: map[string]string{tagCluster: "main", tagName: strconv.Itoa(i)}})
				return err
			})
			require.NoError(t, err)
		}
		fresh := w.on(node)
		_, err := fresh.Node(t.Context())
		require.NoError(t, err)
		w.cloud.ResetCalls()
		held, err := fresh.ListHeld(t.Context(), node)
		require.NoError(t, err)
		if assert.Len(t, held, 1) {
			assert.Equal(t, "mine", held[0].Name)
		}
		assert.Equal(t, 1, w.cloud.Calls()["DescribeVolumes"])
		held, err = fresh.ListHeld(t.Context(), w.node("a"))
		require.NoError(t, err)
		assert.NotNil(t, held, "an answer that none is held")
		assert.Empty(t, held)
	})
}
