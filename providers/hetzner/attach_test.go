package hetzner

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// both runs a test with a cloud that shows early, and one that shows late, that a volume is being attached.
func both(t *testing.T, test func(*testing.T, *world)) {
	t.Helper()
	for _, late := range []bool{false, true} {
		t.Run(map[bool]string{false: "early", true: "late"}[late], func(t *testing.T) {
			inWorld(t, cloud.Config{Times: slow}, hetzner.Config{Late: late}, test)
		})
	}
}

func TestVolumesOfANodeAreAttachedOneAfterAnother(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		var calls []func()
		var ids []string
		for i := range 5 {
			v := w.create(p, fmt.Sprintf("v%d", i))
			ids = append(ids, v.ID)
			calls = append(calls, func() { assert.NoError(t, providertest.Attach(t.Context(), p, v.ID)) })
		}
		providertest.AtOnce(calls...)
		w.settle()
		for _, id := range ids {
			assert.Equal(t, server, cloudtest.Holder(w.cloud, id))
		}
		calls = nil
		for _, id := range ids {
			calls = append(calls, func() { assert.NoError(t, p.Detach(t.Context(), id, server, false)) })
		}
		providertest.AtOnce(calls...)
		w.settle()
		for _, id := range ids {
			assert.Empty(t, cloudtest.Holder(w.cloud, id))
		}
	})
}

func TestABusyServerIsAnErrorOnlyAtTheEndOfTheCallersTime(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		v := w.create(p, "db")
		w.cloud.Stop(server)
		time.Sleep(2 * time.Second)
		w.cloud.SetPace(0, 0, cloud.Times{Attach: time.Second, Stop: time.Minute})
		w.cloud.Start(server)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := providertest.Attach(ctx, p, v.ID)
		require.ErrorIs(t, err, providers.ErrBusy)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		providertest.Sentence(t, err, "server is locked")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
	})
}

// A volume with which something is being done elsewhere does not keep the others of this node waiting.
func TestABusyVolumeIsInNobodysWay(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		pa, pb := w.on(a), w.on(b)
		stuck, other := w.create(pa, "stuck"), w.create(pa, "other")
		w.attach(pa, stuck)
		w.attach(pb, other)
		w.detach(pb, other, b)
		w.cloud.SetPace(0, 0, cloud.Times{Attach: time.Second, Detach: time.Hour})
		require.NoError(t, pa.Detach(t.Context(), stuck.ID, a, false))
		begin := time.Now()
		require.ErrorIs(t, providertest.Attach(t.Context(), pb, stuck.ID), providers.ErrBusy)
		require.NoError(t, providertest.Attach(t.Context(), pb, other.ID))
		assert.Less(t, time.Since(begin), 10*time.Second)
	})
}

func TestWhatIsOnItsWayHereIsAttachedHere(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		v := w.create(w.on(a), "db")
		require.NoError(t, providertest.Attach(t.Context(), w.on(a), v.ID))
		for range 2 { // one in the middle of it, one afterwards
			require.NoError(t, providertest.Attach(t.Context(), w.on(a), v.ID), "by a process that knows nothing of it")
			var held *providers.HeldError
			require.ErrorAs(t, providertest.Attach(t.Context(), w.on(b), v.ID), &held)
			assert.Equal(t, providers.HeldError{Volume: v.ID, Node: a}, *held)
			w.settle()
		}
	})
}

func TestAnAttachWaitsForTheDetachFromHere(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		for _, next := range []*Provider{p, w.on(a)} {
			begin := time.Now()
			require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
			require.NoError(t, providertest.Attach(t.Context(), next, v.ID))
			assert.GreaterOrEqual(t, time.Since(begin), slow.Detach, "what is leaving is not attached here")
			w.settle()
			assert.Equal(t, a, cloudtest.Holder(w.cloud, v.ID))
		}
	})
}

func TestAnAttachThatFailsIsTold(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		assert.True(t, w.find(p, "db").HeldBy(a))
		w.front.Fail(v.ID, "action_failed", "no more room on the bus")
		w.settle()
		held := w.find(p, "db").Attachment
		assert.Equal(t, providers.AttachFailed, held.State)
		assert.Equal(t, a, held.Node)
		assert.Contains(t, held.Problem, "no more room on the bus (action_failed)")
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false), "the driver calls it off")
		assert.False(t, w.find(p, "db").Held())
		w.attach(p, v)
		assert.Equal(t, a, cloudtest.Holder(w.cloud, v.ID))
		assert.Equal(t, providers.Attached, w.find(p, "db").Attachment.State)
	})
}

func TestAFailedAttachKeepsNobodyFromDeleting(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		require.ErrorIs(t, p.Delete(t.Context(), v.ID), providers.ErrHeld)
		w.front.Fail(v.ID, "action_failed", "failed")
		w.settle()
		require.NoError(t, p.Delete(t.Context(), v.ID))
	})
}

func TestADetachThatFailsIsSeenInTheEnd(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		inner := w.front.Transport(a)
		p = w.onWith(a, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/actions/detach") {
				return httpsim.Response(r, 201, "application/json", `{"action": {"id": 77, "command": "detach_volume", "status": "running", "resources": []}}`), nil
			}
			if strings.HasSuffix(r.URL.Path, "/actions/77") {
				return httpsim.Response(r, 200, "application/json", `{"action": {"id": 77, "command": "detach_volume", "status": "error", "error": {"code": "action_failed", "message": "x"}}}`), nil
			}
			return inner.RoundTrip(r)
		}))
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
		assert.Equal(t, providers.Detaching, w.find(p, "db").Attachment.State)
		time.Sleep(leaving)
		assert.Equal(t, providers.Attachment{Node: a, State: providers.Attached}, w.find(p, "db").Attachment)
	})
}

func TestAServerThatIsFullSaysSo(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		for i := range 16 {
			require.NoError(t, providertest.Attach(t.Context(), p, w.create(p, fmt.Sprintf("v%d", i)).ID))
		}
		err := providertest.Attach(t.Context(), p, w.create(p, "more").ID)
		require.ErrorIs(t, err, providers.ErrAttachLimit)
		providertest.Sentence(t, err, "16 volumes", "another node", "limit_exceeded_error")
	})
}

func TestAVolumeElsewhereIsToldWithBothPlaces(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		v := w.create(w.on(w.node("nbg1")), "db")
		assert.Equal(t, "nbg1", v.Zone)
		err := providertest.Attach(t.Context(), w.on(w.node("fsn1")), v.ID)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "in location nbg1", "in fsn1", "run the service in location nbg1")
	})
}

func TestAServerOfAnotherProjectIsToldFromAVolumeThatIsGone(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		v := w.create(w.on(a), "db")
		p, err := New(Config{Cluster: "main", Server: a, Token: cloudtest.Token(tokenSetting, w.front.Token(a)), Transport: w.front.Transport(a)})
		require.NoError(t, err)
		_, err = p.Node(t.Context())
		require.NoError(t, err)
		w.cloud.Terminate(a)
		err = providertest.Attach(t.Context(), p, v.ID)
		require.NotErrorIs(t, err, providers.ErrNotFound)
		providertest.Sentence(t, err, "server "+a, "project")
	})
}

// The request to detach names no server, so what comes late must not reach another node's volume.
func TestADetachIsNeverSentTwice(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		inner := w.front.Transport(a)
		pb := w.on(b)
		p := w.onWith(a, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			answer, err := inner.RoundTrip(r)
			if strings.HasSuffix(r.URL.Path, "/actions/detach") && err == nil {
				answer.Body.Close() //nolint:errcheck // it is in memory
				return nil, errReset
			}
			return answer, err
		}))
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		w.since()
		require.ErrorIs(t, p.Detach(t.Context(), v.ID, a, false), providers.ErrUnavailable)
		sent := slices.DeleteFunc(w.since(), func(call string) bool { return !strings.Contains(call, "/actions/detach") })
		assert.Len(t, sent, 1)
		require.NoError(t, providertest.Attach(t.Context(), pb, v.ID))
		require.NoError(t, p.Detach(t.Context(), v.ID, a, true), "what it no longer holds")
		assert.Equal(t, b, cloudtest.Holder(w.cloud, v.ID))
	})
}

// While a detach waits for its turn, the volume may go elsewhere.
func TestADetachLooksForTheHolderEachTime(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		pa, pb := w.on(a), w.on(b)
		v, other := w.create(pa, "db"), w.create(pa, "other")
		w.attach(pa, v)
		w.cloud.SetPace(0, 0, cloud.Times{Attach: time.Minute})
		require.NoError(t, providertest.Attach(t.Context(), pa, other.ID)) // locks the server for a minute
		providertest.AtOnce(func() {
			assert.NoError(t, pa.Detach(t.Context(), v.ID, a, false))
		}, func() {
			time.Sleep(10 * time.Second) // the detach has been refused by now
			w.cloud.SetPace(0, 0, cloud.Times{})
			_, err := w.cloud.Do(t.Context(), cloud.Call{Action: "host", Aside: true}, func(r *cloud.Request) error {
				_, err := r.DetachVolume(v.ID, a, "", true)
				return err
			})
			assert.NoError(t, err)
			assert.NoError(t, providertest.Attach(t.Context(), pb, v.ID))
		})
		w.settle()
		assert.Equal(t, b, cloudtest.Holder(w.cloud, v.ID))
	})
}

func TestADetachThatHitAnotherServerIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		inner := w.front.Transport(a)
		p := w.onWith(a, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/actions/detach") { // held up for long
				id := strings.Split(r.URL.Path, "/")[3]
				w.must(b, "POST", "/volumes/"+id+"/actions/detach", "")
				w.must(b, "POST", "/volumes/"+id+"/actions/attach", `{"server": `+b+`}`)
			}
			return inner.RoundTrip(r)
		}))
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		err := p.Detach(t.Context(), v.ID, a, false)
		providertest.Sentence(t, err, "detached from server "+b, "stop what uses it")
	})
}

func TestDetachingComesTwice(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
		w.since()
		require.NoError(t, p.Detach(t.Context(), v.ID, a, true))
		require.NoError(t, w.on(b).Detach(t.Context(), v.ID, a, true), "by a process that knows nothing of it")
		w.settle()
		assert.Empty(t, cloudtest.Holder(w.cloud, v.ID))
		assert.False(t, w.find(p, "db").Held())
	})
}

func TestAVolumeInUseIsProtectedFromDeletion(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a := w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		assert.False(t, w.protected(v.ID), "there is nothing in it yet")
		w.attach(p, v)
		assert.True(t, w.protected(v.ID))
		w.detach(p, v, a)
		status, answer := w.as(a, "DELETE", "/volumes/"+v.ID, "")
		assert.Equal(t, http.StatusForbidden, status, "as in the console: %s", answer)

		// What was lifted by hand is there again from the next mount on.
		w.must(a, "POST", "/volumes/"+v.ID+"/actions/change_protection", `{"delete": false}`)
		w.find(p, "db")
		w.attach(p, v)
		assert.True(t, w.protected(v.ID))
		require.ErrorIs(t, p.Delete(t.Context(), v.ID), providers.ErrHeld)
		assert.True(t, w.protected(v.ID), "a refused deletion does not expose it")
		w.detach(p, v, a)
		require.NoError(t, p.Delete(t.Context(), v.ID))
		_, there := w.cloud.Volume(v.ID)
		assert.False(t, there)
	})
}

func TestProtectionKeepsNobodyFromMountingOrRemoving(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		p := w.on(a)
		v := w.create(p, "db")
		remove := w.cloud.Inject(cloud.Rule{Action: "POST /v1/volumes/{id}/actions/change_protection", Fault: cloud.Fail, Code: "locked volume is locked"})
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID), "it is protected the next time")
		remove()
		w.detach(p, v, a)

		// Protected after it was read, and taken by another node before it is deleted.
		var meanwhile atomic.Value
		meanwhile.Store("")
		inner := w.front.Transport(a)
		p = w.onWith(a, httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodDelete && meanwhile.Load() != "" {
				path, body, _ := strings.Cut(meanwhile.Swap("").(string), " ")
				w.must(b, "POST", path, body)
			}
			return inner.RoundTrip(r)
		}))
		w.find(p, "db")
		meanwhile.Store("/volumes/" + v.ID + `/actions/attach {"server": ` + b + `}`)
		var held *providers.HeldError
		require.ErrorAs(t, p.Delete(t.Context(), v.ID), &held)
		assert.Equal(t, b, held.Node)
		assert.True(t, w.protected(v.ID), "it is in use")
		w.must(b, "POST", "/volumes/"+v.ID+"/actions/detach", "")
		w.must(b, "POST", "/volumes/"+v.ID+"/actions/change_protection", `{"delete": false}`)
		meanwhile.Store("/volumes/" + v.ID + `/actions/change_protection {"delete": true}`)
		require.NoError(t, p.Delete(t.Context(), v.ID))
	})
}

// Otherwise no request would be sent, and the volume be called detached though it stays attached.
func TestADetachBelievesNoReadOfATimeBeforeTheAttach(t *testing.T) {
	for seed := range uint64(8) {
		for _, late := range []bool{false, true} {
			inWorld(t, cloud.Config{Times: slow, Lag: 5 * time.Second, Seed: seed}, hetzner.Config{Late: late}, func(t *testing.T, w *world) {
				a, b := w.node("fsn1"), w.node("fsn1")
				pa, pb := w.on(a), w.on(b)
				v := w.create(pa, "db")
				w.settle()
				for _, p := range []*Provider{pa, pb} {
					node, err := p.Node(t.Context())
					require.NoError(t, err)
					require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
					cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)
					begin := time.Now()
					require.NoError(t, p.Detach(t.Context(), v.ID, node.ID, false))
					assert.Less(t, time.Since(begin), 6*time.Second, "it is asked again soon")
					cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
				}
			})
		}
	}
}

func TestWhoHasAVolumeIsLookedUpWhateverTheRefusalOfAnAttach(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.node("fsn1"), w.node("fsn1")
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		w.cloud.Inject(cloud.Rule{Action: "POST /v1/volumes/{id}/actions/attach", Caller: a, Fault: cloud.Fail, Code: "service_error an error of the service"})
		err := providertest.Attach(t.Context(), pa, v.ID)
		providertest.Sentence(t, err, "an error of the service")
		require.NotErrorIs(t, err, providers.ErrHeld)
		require.NoError(t, providertest.Attach(t.Context(), pb, v.ID))
		var held *providers.HeldError
		require.ErrorAs(t, providertest.Attach(t.Context(), pa, v.ID), &held)
		assert.Equal(t, b, held.Node)
		require.NoError(t, pb.Detach(t.Context(), v.ID, b, false))
		w.must(b, "POST", "/volumes/"+v.ID+"/actions/attach", `{"server": `+a+`}`)
		require.NoError(t, providertest.Attach(t.Context(), pa, v.ID), "it is attached here")
	})
}

// A process that has just been started does not know what the one before it has asked for, and the volume may not show it.
func TestADetachMeetsAnAttachThatAnotherProcessHasAskedFor(t *testing.T) {
	both(t, func(t *testing.T, w *world) {
		server := w.node("fsn1")
		p := w.on(server)
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		require.NoError(t, w.on(server).Detach(t.Context(), v.ID, server, false))
		time.Sleep(time.Minute)
		assert.False(t, w.find(w.on(server), "db").Held())
	})
}

// A request that was not answered may have been carried out, or not: a read that may be of a time before it tells neither.
func TestADetachBelievesNoOldReadAfterARequestThatWasNotAnswered(t *testing.T) {
	for seed := range uint64(60) {
		inWorld(t, cloud.Config{Times: slow, Lag: 5 * time.Second, Seed: seed}, hetzner.Config{}, func(t *testing.T, w *world) {
			node := w.node("fsn1")
			p := w.on(node)
			v := w.create(p, "db")
			time.Sleep(10 * time.Second)
			unanswered := func(action string, fault cloud.Fault, call func(context.Context) error) {
				defer w.cloud.Inject(cloud.Rule{Action: action, Fault: fault})()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
				defer cancel()
				require.Error(t, call(ctx))
			}
			attach := func(ctx context.Context) error { return providertest.Attach(ctx, p, v.ID) }
			detach := func(ctx context.Context) error { return p.Detach(ctx, v.ID, node, false) }

			unanswered("POST /v1/volumes/{id}/actions/attach", cloud.LoseAnswer, attach)
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)
			require.NoError(t, detach(t.Context()))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)

			time.Sleep(time.Minute)
			require.NoError(t, attach(t.Context()))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)
			unanswered("POST /v1/volumes/{id}/actions/detach", cloud.Hang, detach)
			require.NoError(t, detach(t.Context()))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
		})
	}
}
