package hetzner

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func TestWhatHetznerIsAsked(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		key := labels.Name("main", "db", 63)
		find := "GET /v1/volumes?label_selector=blockvol.key+in+%28" + key + "%29&page=1&per_page=50&sort=id%3Aasc"

		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: size, Tags: map[string]string{"env": "prod"}, Record: providers.Record{"layout": "data"}})
		require.NoError(t, err)
		all := w.since()
		assert.Equal(t, find, all[0])
		assert.Equal(t, `POST /v1/volumes {"name":"`+key+`","size":10,"location":"fsn1","labels":{"blockvol.cluster":"main","blockvol.key":"`+key+`","blockvol.name":"db","blockvol.record.layout":"data","env":"prod"}}`, all[1])
		for _, poll := range all[2:] {
			assert.Equal(t, "GET /v1/actions/1400000000", poll)
		}

		// The first mount protects the volume; those after it cost one read and one attach.
		volume := "/v1/volumes/" + v.ID
		attach := "POST " + volume + `/actions/attach {"server":` + a + `}`
		for i := range 3 {
			w.attach(p, w.find(p, "db"))
			want := []string{find, attach}
			if i == 0 {
				want = []string{find, "POST " + volume + `/actions/change_protection {"delete":true}`, attach}
			}
			assert.Equal(t, want, w.since())

			// An unmount is a read, a detach, and the driver's read, which sees that it is under way.
			require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
			assert.Equal(t, providers.Attachment{Node: a, State: providers.Detaching}, w.find(p, "db").Attachment)
			assert.Equal(t, []string{"GET " + volume, "POST " + volume + "/actions/detach {}", find}, w.since())
			w.settle()
		}

		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Equal(t, []string{"GET " + volume, "PUT " + volume +
			` {"labels":{"blockvol.cluster":"main","blockvol.key":"` + key + `","blockvol.name":"db","blockvol.record.formatted":"ext4","blockvol.record.layout":"data","env":"prod"}}`}, w.since())
		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Equal(t, []string{"GET " + volume}, w.since(), "what is there already is not written")

		require.NoError(t, p.Delete(t.Context(), v.ID))
		assert.Equal(t, []string{"GET " + volume, "POST " + volume + `/actions/change_protection {"delete":false}`, "DELETE " + volume}, w.since())
	})
}

func TestQuestionsThatComeTogetherShareARequest(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 100 * time.Millisecond}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		for i := range 60 {
			w.create(p, fmt.Sprintf("v%d", i))
		}
		w.since()
		calls := make([]func(), 60)
		for i := range calls {
			name := fmt.Sprintf("v%d", i)
			calls[i] = func() { assert.Equal(t, name, w.find(p, name).Name) }
		}
		providertest.AtOnce(calls...)
		all := w.since()
		assert.LessOrEqual(t, len(all), 3, "the first, perhaps alone, then 50, then the rest")
		for _, call := range all {
			assert.LessOrEqual(t, strings.Count(call, "%2C")+1, perPage)
		}
	})
}

func TestListReadsAllPagesOfThisClusterOnly(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		for i := range 120 {
			w.create(p, fmt.Sprintf("v%03d", i))
		}
		for _, name := range []string{"x", "y"} {
			w.must(server, "POST", "/volumes", `{"name": "`+name+`", "location": "fsn1", "size": 10, "labels": {"blockvol.cluster": "other"}}`)
		}
		w.since()
		list, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 120)
		for i, v := range list {
			assert.Equal(t, fmt.Sprintf("v%03d", i), v.Name)
		}
		want := make([]string, 3)
		for i := range want {
			want[i] = "GET /v1/volumes?label_selector=blockvol.cluster%3Dmain&page=" + strconv.Itoa(i+1) + "&per_page=50&sort=id%3Aasc"
		}
		assert.ElementsMatch(t, want, w.since(), "those after the first at once")
	})
}

// A page is cut out of what there is when it is asked for.
func TestAListIsWholeAlthoughAVolumeIsDeletedBetweenItsPages(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		var armed atomic.Bool
		inner := w.front.Transport(server)
		p := w.onWith(server, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.URL.Query().Get("page") == "2" && armed.CompareAndSwap(true, false) {
				first := w.cloud.Volumes()[0]
				for _, v := range w.cloud.Volumes() {
					if number(v.ID) < number(first.ID) {
						first = v
					}
				}
				w.must(server, "DELETE", "/volumes/"+first.ID, "")
			}
			return inner.RoundTrip(r)
		}))
		for i := range 110 {
			w.create(p, fmt.Sprintf("v%03d", i))
		}
		armed.Store(true)
		list, err := p.List(t.Context())
		require.NoError(t, err)
		var got, want []string
		for _, v := range list {
			got = append(got, v.ID)
		}
		for _, v := range w.cloud.Volumes() {
			want = append(want, v.ID)
		}
		assert.Len(t, want, 109)
		assert.ElementsMatch(t, want, got)
	})
}

func TestTheLimitOfTheProjectIsWaitedOutBitByBit(t *testing.T) {
	limits := func(string) cloud.Bucket { return cloud.Bucket{Size: 10, PerSecond: 0.5} }
	inWorld(t, cloud.Config{Limits: limits}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		begin := time.Now()
		for range 20 {
			_, err := p.Find(t.Context(), "db")
			require.ErrorIs(t, err, providers.ErrNotFound)
		}
		assert.GreaterOrEqual(t, time.Since(begin), 19*time.Second)
		assert.Less(t, time.Since(begin), 2*time.Minute)

		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		for i := 0; ; i++ {
			require.Less(t, i, 20)
			if _, err := p.Find(ctx, "db"); ctx.Err() != nil {
				require.NotErrorIs(t, err, providers.ErrNotFound, "nothing is guessed")
				break
			}
		}
	})
}

// What looks like an answer and is none, must not be taken for the cloud's word.
func TestForeignAnswersAreBelievedInNothing(t *testing.T) {
	for name, body := range map[string][3]string{
		"HTML":           {"200", "text/html", "<html>Please sign in</html>"},
		"404 of a proxy": {"404", "text/html", "<html>not found</html>"},
		"404 as JSON":    {"404", "application/json", `{"message": "no such host"}`},
		"404 as text":    {"404", "text/plain", `{"error": {"code": "not_found", "message": "not found"}}`},
		"a redirect":     {"302", "application/json", `{"error": {"code": "not_found", "message": "not found"}}`},
		"JSON as text":   {"200", "text/plain", `{"volumes": [], "action": {"id": 7}, "meta": {"pagination": {"page": 1}}}`},
		"empty JSON":     {"200", "application/json", `{}`},
		"no JSON":        {"200", "application/json", `{"volumes": [`},
		"nothing":        {"200", "application/json", ``},
		"another's":      {"200", "application/json", `{"volume": {"id": 7, "location": {}}, "server": {"id": 7, "status": "off"}, "action": {"id": 7, "status": "success"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
				server := w.node("fsn1")
				var broken atomic.Bool
				inner := w.front.Transport(server)
				p := w.onWith(server, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
					if broken.Load() && r.URL.Hostname() != httpsim.MetadataHost {
						status, err := strconv.Atoi(body[0])
						require.NoError(t, err)
						return httpsim.Response(r, status, body[1], body[2]), nil
					}
					return inner.RoundTrip(r)
				}))
				v := w.create(p, "db")
				w.attach(p, v)
				broken.Store(true)
				calls := map[string]func() error{
					"Find":      func() error { _, err := p.Find(t.Context(), "db"); return err },
					"List":      func() error { _, err := p.List(t.Context()); return err },
					"NodeState": func() error { _, err := p.NodeState(t.Context(), server); return err },
					"Create":    func() error { _, err := p.Create(t.Context(), providers.Spec{Name: "new", Size: size}); return err },
					"Delete":    func() error { return p.Delete(t.Context(), v.ID) },
					"Forget":    func() error { return p.Forget(t.Context(), v.ID) },
					"Mark":      func() error { return p.Mark(t.Context(), v.ID, "a", "b") },
					"Detach":    func() error { return p.Detach(t.Context(), v.ID, server, false) },
				}
				if name != "another's" { // nothing in the answer tells whose action it is
					calls["Attach"] = func() error { return providertest.Attach(t.Context(), p, v.ID) }
				}
				for call, do := range calls {
					err := do()
					require.ErrorIs(t, err, providers.ErrUnavailable, call)
					require.NotErrorIs(t, err, providers.ErrNotFound, call)
					providertest.Sentence(t, err, "Hetzner Cloud", "HCLOUD_ENDPOINT")
				}
			})
		})
	}
}

func TestNoSecretIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		secret := w.front.Token(server)
		for _, answer := range []httpsim.RoundTripFunc{
			func(r *http.Request) (*http.Response, error) {
				return httpsim.Response(r, 422, "application/json", `{"error": {"code": "`+secret+`", "message": "Authorization: Bearer `+secret+`"}}`), nil
			},
			func(*http.Request) (*http.Response, error) { return nil, fmt.Errorf("bad header %q", secret) },
		} {
			p := w.onWith(server, answer)
			_, err := p.Find(t.Context(), "db")
			require.Error(t, err)
			assert.NotContains(t, err.Error(), secret[:20])
			assert.NotContains(t, err.Error(), "\n")
		}
	})
}

// By the reference, Hetzner need not tell how many there are.
func TestAListWithoutATotalIsReadToItsLastPage(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		inner := w.front.Transport(server)
		p := w.onWith(server, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			answer, err := inner.RoundTrip(r)
			if err == nil {
				httpsim.ReplaceBody(answer, `"total_entries":120`, `"total_entries":null`)
			}
			return answer, err
		}))
		for i := range 120 {
			w.create(p, fmt.Sprintf("v%03d", i))
		}
		list, err := p.List(t.Context())
		require.NoError(t, err)
		assert.Len(t, list, 120)
	})
}
