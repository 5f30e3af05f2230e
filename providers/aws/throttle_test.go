package aws

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

// refusing refuses one action a number of times.
type refusing struct {
	http.RoundTripper
	action, code string
	status       int
	after        int // seconds, for Retry-After

	mu    sync.Mutex
	times int
	asked []time.Time
}

func (f *refusing) RoundTrip(r *http.Request) (*http.Response, error) {
	action, err := actionOf(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if action != f.action {
		return f.RoundTripper.RoundTrip(r)
	}
	f.asked = append(f.asked, time.Now())
	if f.times--; f.times < 0 {
		return f.RoundTripper.RoundTrip(r)
	}
	body := "<Response><Errors><Error><Code>" + f.code + "</Code><Message>Request limit exceeded.</Message></Error></Errors><RequestID>x</RequestID></Response>"
	if f.code == "" {
		body = "upstream connect error"
	}
	answer := said(r, f.status, body)
	if f.after > 0 {
		answer.Header.Set("Retry-After", strconv.Itoa(f.after))
	}
	return answer, nil
}

func TestThrottledRequestsAreRepeated(t *testing.T) {
	for _, kind := range []struct {
		code   string
		status int
		after  int
	}{
		{"RequestLimitExceeded", 503, 0},
		{"Client.RequestLimitExceeded", 400, 0},
		{"RequestLimitExceeded", 400, 0},
		{"", 503, 0},
		{"", 429, 0},
		{"Throttling", 429, 20},
	} {
		t.Run(kind.code+" "+strconv.Itoa(kind.status)+" "+strconv.Itoa(kind.after), func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				link := &refusing{RoundTripper: w.front.Transport(w.node("a")), action: "AttachVolume", code: kind.code, status: kind.status, after: kind.after, times: 5}
				p := w.onWith(link)
				v := w.create(p, "db")
				begin := time.Now()
				require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
				assert.Len(t, link.asked, 6)
				if took := time.Since(begin); kind.after > 0 {
					assert.GreaterOrEqual(t, took, 5*time.Duration(kind.after)*time.Second)
				} else {
					assert.Less(t, took, 42*time.Second) // pauses of up to 1, 4, 12, 12, 12 s
				}

				// Without an end: an error when the caller's time is over, and few requests.
				link.times, link.asked = 1<<30, nil
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := providertest.Attach(ctx, p, w.create(p, "more").ID)
				require.ErrorIs(t, err, providers.ErrBusy)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				providertest.Sentence(t, err, "AttachVolume")
				assert.Less(t, len(link.asked), 15)
			})
		})
	}
}

func TestThrottlingIsPerAction(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		v := w.create(p, "db")
		mend := w.cloud.Inject(cloud.Rule{Action: "AttachVolume", Fault: cloud.Throttle})
		var all sync.WaitGroup
		all.Go(func() { assert.NoError(t, providertest.Attach(t.Context(), p, v.ID)) })
		time.Sleep(20 * time.Second)
		begin := time.Now()
		_, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		w.create(p, "other")
		assert.Less(t, time.Since(begin), 2*time.Second)
		mend()
		all.Wait()
	})
}

// The token bucket of the account is empty for all nodes, and every mount succeeds.
func TestMountsSucceedWhenAllNodesAreThrottled(t *testing.T) {
	limits := func(bucket string) cloud.Bucket {
		if bucket == "AttachVolume" {
			return cloud.Bucket{Size: 5, PerSecond: 1}
		}
		return cloud.Bucket{}
	}
	inWorld(t, cloud.Config{Latency: 50 * time.Millisecond, Limits: limits}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		var calls []func()
		for i := range 20 {
			v := w.create(p, strconv.Itoa(i))
			calls = append(calls, func() { assert.NoError(t, providertest.Attach(t.Context(), p, v.ID)) })
		}
		begin := time.Now()
		providertest.AtOnce(calls...)
		assert.Less(t, time.Since(begin), time.Minute)
		assert.Less(t, w.cloud.Throttled()["AttachVolume"], 4*20, "39 on average, with a standard deviation of 7")
	})
}
