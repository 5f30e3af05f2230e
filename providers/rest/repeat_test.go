package rest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestARepeatableRequestIsRetried(t *testing.T) {
	for name, failure := range map[string]answer{
		"408": says(408), "500": says(500), "502": says(502), "503": says(503), "504": says(504),
		"reset": reset, "dial": dial, "break": breaks, "hang": hangs, "hang in the middle": hangsLater,
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			t.Run(name+" "+method, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, cloud := reached(Config{}, failure, failure, ok)
					status, text, err := ask(t.Context(), c, method, "body")
					require.NoError(t, err)
					assert.Equal(t, 200, status)
					assert.JSONEq(t, `{"id":1}`, text)
					require.Len(t, cloud.asked, 3)
					for _, a := range cloud.asked {
						assert.Equal(t, "body", a.body)
					}
				})
			})
		}
	}
}

func TestARequestThatBeforeRefusesIsNotSent(t *testing.T) {
	for name, failure := range map[string]answer{"a failure": says(500), "too many requests": says(429)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kept := fmt.Errorf("%w: not now", providers.ErrBusy)
				sent := 0
				c, cloud := reached(Config{Before: func(*http.Request) error {
					if sent++; sent > 1 {
						return kept
					}
					return nil
				}}, failure, ok)
				_, _, err := ask(t.Context(), c, "GET", "")
				require.ErrorIs(t, err, kept)
				assert.Equal(t, 1, cloud.times())
				assert.Equal(t, 2, sent)
			})
		})
	}
}

func TestAnyOtherRequestIsRetriedOnlyIfItHadNoEffect(t *testing.T) {
	create := func(r *http.Request) bool {
		body, err := r.GetBody()
		if err != nil {
			return false
		}
		all, err := io.ReadAll(body)
		return err == nil && string(all) == "body"
	}
	for _, kind := range []struct {
		name       string
		failure    answer
		repeatable func(*http.Request) bool
		times      int
	}{
		{"500", says(500), nil, 1},
		{"503", says(503), nil, 1},
		{"408", says(408), nil, 1},
		{"reset", reset, nil, 1},
		{"break", breaks, nil, 1},
		{"hang", hangs, nil, 1},
		{"no connection", dial, nil, 2},
		{"429", says(429), nil, 2},
		{"500 not repeatable", says(500), func(*http.Request) bool { return false }, 1},
		{"500 repeatable", says(500), create, 2},
		{"reset repeatable", reset, create, 2},
	} {
		for _, method := range []string{"POST", "PATCH"} {
			t.Run(kind.name+" "+method, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, cloud := reached(Config{Repeatable: kind.repeatable}, kind.failure, ok)
					status, _, err := ask(t.Context(), c, method, "body")
					require.Len(t, cloud.asked, kind.times)
					if kind.times == 2 {
						require.NoError(t, err)
						assert.Equal(t, 200, status)
						assert.Equal(t, "body", cloud.asked[1].body)
					}
				})
			})
		}
	}
}

func TestPermanentErrorsAreNotRetried(t *testing.T) {
	for _, status := range []int{200, 204, 301, 400, 401, 404, 409, 422, 423, 501} {
		synctest.Test(t, func(t *testing.T) {
			c, cloud := reached(Config{}, says(status, "Location", "https://elsewhere.test/"))
			got, text, err := ask(t.Context(), c, "GET", "")
			require.NoError(t, err)
			assert.Equal(t, status, got)
			assert.NotEmpty(t, text)
			assert.Len(t, cloud.asked, 1)
		})
	}
}

func TestTheSDKGetsTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cloud := reached(Config{}, says(500), says(502), says(503))
		status, text, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		assert.Equal(t, 503, status)
		assert.JSONEq(t, `{"id":1}`, text)
		assert.Len(t, cloud.asked, attempts)

		c, cloud = reached(Config{}, dial)
		_, _, err = ask(t.Context(), c, "GET", "")
		require.ErrorContains(t, err, "refused")
		assert.Len(t, cloud.asked, attempts)
	})
}

func TestAHangingCloudIsNotWaitedForForEver(t *testing.T) {
	for _, way := range []answer{hangs, hangsLater} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := reached(Config{}, way)
			begin := time.Now()
			_, _, err := ask(t.Context(), c, "GET", "")
			require.ErrorContains(t, err, "no answer within 20s")
			require.NotErrorIs(t, err, context.DeadlineExceeded, "that is the caller's")
			assert.Less(t, time.Since(begin), attempts*attemptTimeout+2*time.Second)

			begin = time.Now()
			_, _, err = ask(t.Context(), c, "POST", "")
			require.ErrorContains(t, err, "no answer within 20s")
			assert.Equal(t, attemptTimeout, time.Since(begin))
		})
	}
}

func TestCancellingEndsEveryWaitAtOnce(t *testing.T) {
	for name, way := range map[string]answer{
		"hanging": hangs, "hanging in the middle": hangsLater,
		"throttled": says(429, "Retry-After", "60"), "busy": says(503, "Retry-After", "60"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := reached(Config{}, way)
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(5*time.Second, cancel)
				begin := time.Now()
				_, _, err := ask(ctx, c, "GET", "")
				require.ErrorIs(t, err, context.Canceled)
				assert.Equal(t, 5*time.Second, time.Since(begin))
			})
		})
	}
}

func TestRetryAfterIsHeededAfterAServerError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cloud := reached(Config{}, says(503, "Retry-After", "10"), ok)
		begin := time.Now()
		_, _, err := ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(begin), 10*time.Second)
		assert.Len(t, cloud.asked, 2)

		// A caller who has no time for that gets what the cloud has said.
		c, _ = reached(Config{}, says(503, "Retry-After", "60"))
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		begin = time.Now()
		status, _, err := ask(ctx, c, "GET", "")
		require.NoError(t, err)
		assert.Equal(t, 503, status)
		assert.Zero(t, time.Since(begin))
	})
}

func TestACallerWithTimeLeftGetsARepetition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cloud := reached(Config{}, says(503), says(503, "Retry-After", "20"), ok)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		status, _, err := ask(ctx, c, "GET", "")
		require.NoError(t, err)
		assert.Equal(t, 200, status)
		assert.Len(t, cloud.asked, 3)
	})
}

func TestAnAnswerWithoutEndIsRefused(t *testing.T) {
	c, cloud := reached(Config{}, func(r *http.Request) (*http.Response, error) {
		endless := reader(func(b []byte) (int, error) { return len(b), nil })
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(endless), Request: r}, nil
	})
	_, _, err := ask(t.Context(), c, "GET", "")
	require.ErrorIs(t, err, errTooLong)
	assert.Len(t, cloud.asked, 1)
	err = c.NoAnswer(t.Context(), "ListVolumes", err)
	require.ErrorIs(t, err, providers.ErrUnavailable)
	sentence(t, err, "no end", "NIMBUS_URL")
}

// A real connection that breaks in the middle of an answer, and a token that must not go elsewhere.
func TestOverRealConnections(t *testing.T) {
	var asked, elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		assert.Equal(t, "Bearer "+password, r.Header.Get("Authorization"))
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, other.URL, http.StatusFound)
			return
		}
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		if asked.Add(1) < 3 {
			w.Header().Set("Content-Length", "100")
			fmt.Fprintf(w, "half")
			return
		}
		fmt.Fprintf(w, "%s %s", r.Method, body)
	}))
	defer server.Close()
	c := New(Config{Cloud: "Nimbus", Token: token(t)})

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, server.URL, strings.NewReader("all of it"))
	require.NoError(t, err)
	answer, err := c.HTTP.Do(r)
	require.NoError(t, err)
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	assert.Equal(t, "PUT all of it", string(body))
	assert.EqualValues(t, 3, asked.Load())
	assert.Empty(t, r.Header, "the caller's request stays as it is")
	assert.Empty(t, answer.Request.Header, "and is the answer's: SDKs print it")

	r, err = http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/moved", nil)
	require.NoError(t, err)
	answer, err = c.HTTP.Do(r)
	require.NoError(t, err)
	assert.Equal(t, http.StatusFound, answer.StatusCode)
	assert.Zero(t, elsewhere.Load())
}
