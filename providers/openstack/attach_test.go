package openstack

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

func TestAMountIsOneReadAndOneAttachAndAnUnmountOneDetach(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		server := w.node()
		w.create(w.on(server), "db")
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		_, err := p.Node(t.Context())
		require.NoError(t, err)
		_, err = p.List(t.Context())
		require.NoError(t, err)
		link.calls()

		v, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		assert.Equal(t, []string{
			"GET /volume/v3/" + front.Project + "/volumes/detail",
			"POST /compute/v2.1/servers/" + server + "/os-volume_attachments",
		}, link.calls())
		time.Sleep(time.Hour - 5*time.Minute) // the token is still good
		require.NoError(t, p.Detach(t.Context(), v.ID, server, false))
		assert.Equal(t, []string{"DELETE /compute/v2.1/servers/" + server + "/os-volume_attachments/" + v.ID}, link.calls())
	})
}

func TestConcurrentMountsShareReads(t *testing.T) {
	inWorld(t, cloud.Config{Latency: 200 * time.Millisecond}, func(t *testing.T, w *world) {
		server := w.node()
		names := []string{"a", "b", "c", "d", "e", "f"}
		for _, name := range names {
			w.create(w.on(server), name)
		}
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		_, err := p.List(t.Context())
		require.NoError(t, err)
		link.calls()
		var calls []func()
		for _, name := range names {
			calls = append(calls, func() {
				v, err := p.Find(t.Context(), name)
				if assert.NoError(t, err) {
					assert.Equal(t, name, v.Name)
				}
			})
		}
		providertest.AtOnce(calls...)
		assert.LessOrEqual(t, len(link.calls()), 2)
	})
}

// While a volume is being attached, Cinder's volume does not show the server; its attachment does.
func TestTheHolderIsShownWhileAttaching(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		a, b := w.on(one), w.on(two)
		v := w.create(a, "db")
		require.NoError(t, providertest.Attach(t.Context(), a, v.ID))
		for _, p := range []*Provider{a, b} {
			found, err := p.Find(t.Context(), "db")
			require.NoError(t, err)
			assert.Equal(t, providers.Attachment{Node: one, State: providers.Attaching}, found.Attachment)
		}
		var held *providers.HeldError
		require.ErrorAs(t, providertest.Attach(t.Context(), b, v.ID), &held)
		assert.Equal(t, one, held.Node)
		require.NoError(t, providertest.Attach(t.Context(), a, v.ID))

		// A detach during an attach is carried out when the attach is complete.
		require.NoError(t, a.Detach(t.Context(), v.ID, one, false))
		found, err := b.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{Node: one, State: providers.Detaching}, found.Attachment)
		require.ErrorIs(t, providertest.Attach(t.Context(), a, v.ID), providers.ErrBusy)
	})
}

func TestAnOldCinderDoesNotShowTheHolderWhileAttaching(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		a, b := w.on(one), w.on(two)
		v := w.create(a, "db")
		require.NoError(t, providertest.Attach(t.Context(), a, v.ID))
		found, err := b.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{State: providers.Attaching}, found.Attachment)
		require.ErrorIs(t, providertest.Attach(t.Context(), b, v.ID), providers.ErrBusy)
		require.NoError(t, b.Detach(t.Context(), v.ID, two, false))
		cloudtest.WaitFor(w.t, w.cloud, v.ID, func(v cloud.Volume) bool { return v.Attachments[0].State == cloud.Attached })
		require.ErrorIs(t, providertest.Attach(t.Context(), b, v.ID), providers.ErrHeld)
	}, func(cfg *front.Config) { cfg.NoAttachments = true })
}

func TestABusyServerIsRetriedAndABrokenOneIsReported(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		p := w.on(server)
		v := w.create(p, "db")
		w.front.SetStatus(server, "", "rebooting")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err := providertest.Attach(ctx, p, v.ID)
		require.ErrorIs(t, err, providers.ErrBusy)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		sentence(t, err, "rebooting", server)

		time.AfterFunc(30*time.Second, func() { w.front.SetStatus(server, "", "") })
		begin := time.Now()
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		assert.GreaterOrEqual(t, time.Since(begin), 29*time.Second)

		w.front.SetStatus(server, "ERROR", "")
		begin = time.Now()
		err = p.Detach(t.Context(), v.ID, server, true)
		sentence(t, err, "ERROR", server)
		require.NotErrorIs(t, err, providers.ErrBusy)
		assert.Zero(t, time.Since(begin))
	})
}

func TestAFullServerReportsItsLimit(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		w.attach(p, w.create(p, "a"))
		w.attach(p, w.create(p, "b"))
		err := providertest.Attach(t.Context(), p, w.create(p, "c").ID)
		require.ErrorIs(t, err, providers.ErrAttachLimit)
		sentence(t, err, "(2)", "another node")
	}, func(cfg *front.Config) { cfg.Devices = 2 })
}

func TestZonesRestrictAttachOnlyIfTheCloudDoes(t *testing.T) {
	inWorld(t, cloud.Config{Zones: []string{"nova", "edge"}}, func(t *testing.T, w *world) {
		server := w.node()
		p := w.on(server)
		v := w.create(p, "db")
		assert.Empty(t, v.Zone)
		assert.Equal(t, "ceph-1", v.Details["zone"])
		node, err := p.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, providers.Node{ID: server}, node)
		w.attach(p, v)

		far, err := p.Create(t.Context(), providers.Spec{Name: "far", Size: gib, Zone: "edge"})
		require.NoError(t, err)
		assert.Equal(t, "edge", far.Details["zone"])
		err = providertest.Attach(t.Context(), p, far.ID)
		require.ErrorIs(t, err, providers.ErrInvalid)
		sentence(t, err, "availability_zone", "zone edge")
	}, func(cfg *front.Config) { cfg.VolumeZone = "ceph-1" })
}

func TestNodeStateFollowsNova(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p, server := w.on(w.node()), w.node()
		for status, life := range map[string]providers.Life{
			"ACTIVE": providers.Running, "BUILD": providers.Running, "HARD_REBOOT": providers.Running, "MIGRATING": providers.Running,
			"PASSWORD": providers.Running, "PAUSED": providers.Running, "REBOOT": providers.Running, "REBUILD": providers.Running,
			"RESCUE": providers.Running, "RESIZE": providers.Running, "REVERT_RESIZE": providers.Running, "SUSPENDED": providers.Running,
			"VERIFY_RESIZE": providers.Running,
			"SHUTOFF":       providers.Stopped, "SHELVED": providers.Stopped, "SHELVED_OFFLOADED": providers.Stopped, "SOFT_DELETED": providers.Stopped,
			"DELETED": providers.Gone, "ERROR": providers.Unclear, "UNKNOWN": providers.Unclear, "A_WORD_OF_TOMORROW": providers.Unclear,
		} {
			w.front.SetStatus(server, status, "")
			state, err := p.NodeState(t.Context(), server)
			require.NoError(t, err)
			assert.Equal(t, life, state.Life, status)
			assert.Equal(t, `OpenStack says that server `+server+` is "`+status+`"`, state.Evidence)
		}
		w.front.SetStatus(server, "SHUTOFF", "powering-on")
		state, err := p.NodeState(t.Context(), server)
		require.NoError(t, err)
		assert.Equal(t, providers.Running, state.Life, "it may be starting")
		assert.Contains(t, state.Evidence, "powering-on")
	})
}

// A 404 that is not Nova's, such as one of a proxy, is no evidence that the server is gone.
func TestOnlyNovaProvesThatAServerIsGone(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		link := &transport{RoundTripper: w.front.Transport(one)}
		p := w.onBy(one, link)
		v := w.create(p, "db")
		for _, body := range []string{"404 page not found", `{"itemNotFound":{"code":404,"message":"The resource could not be found."}}`, `{"error":{"code":404,"message":"no route for ` + two + " or " + v.ID + `"}}`} {
			link.do(func(r *http.Request, _ string) (*http.Response, error) {
				if strings.Contains(r.URL.Path, "/servers/") || strings.Contains(r.URL.Path, "/volumes/") && !strings.HasSuffix(r.URL.Path, "detail") {
					return httpsim.Response(r, http.StatusNotFound, "application/json", body), nil
				}
				return nil, nil
			})
			_, err := p.NodeState(t.Context(), two)
			require.Error(t, err)
			require.NotErrorIs(t, providertest.Attach(t.Context(), w.on(one), v.ID), providers.ErrNotFound)
			fresh := w.onBy(one, link)
			err = fresh.Mark(t.Context(), v.ID, "layout", "data")
			require.Error(t, err)
			require.NotErrorIs(t, err, providers.ErrNotFound)
			require.Error(t, fresh.Delete(t.Context(), v.ID), "nothing proves that it does not exist")
		}
	})
}

func TestAttachmentsOnlyInCinderAreReported(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		a := w.on(one)
		v := w.create(a, "db")
		w.attach(a, v)
		link := &transport{RoundTripper: w.front.Transport(two)}
		b := w.onBy(two, link)
		link.do(func(r *http.Request, _ string) (*http.Response, error) {
			if r.Method == http.MethodDelete {
				return httpsim.Response(r, http.StatusNotFound, "application/json", `{"itemNotFound":{"code":404,"message":"Instance `+one+` could not be found."}}`), nil
			}
			return nil, nil
		})
		err := b.Detach(t.Context(), v.ID, one, true)
		sentence(t, err, one, v.ID, "administrator")
	})
}

func TestCinderStatusValues(t *testing.T) {
	for _, c := range []struct {
		status, server string
		want           providers.AttachState
	}{
		{"available", "", providers.Detached},
		{"creating", "", providers.Detached},
		{"maintenance", "", providers.Detached},
		{"awaiting-transfer", "", providers.Detached},
		{"error", "", providers.Detached},
		{"downloading", "", providers.Detached},
		{"in-use", "s", providers.Attached},
		{"extending", "s", providers.Attached},
		{"extending", "", providers.Detached},
		{"retyping", "s", providers.Attached},
		{"uploading", "s", providers.Attached},
		{"detaching", "s", providers.Detaching},
		{"attaching", "s", providers.Attaching},
		{"error", "s", providers.AttachFailed},
		{"error_extending", "s", providers.AttachFailed},
	} {
		p := &Provider{}
		held, err := p.attachmentOf(t.Context(), volumeOf(c.status, c.server))
		require.NoError(t, err)
		assert.Equal(t, c.want, held.State, "%+v", c)
		assert.Equal(t, c.server, held.Node)
	}
}

func TestMultiattachVolumesAreNotCreatedAdoptedOrAttached(t *testing.T) {
	const created = "POST /volume/v3/{project}/volumes"
	several := func(cfg *front.Config) { cfg.Types, cfg.Multiattach = []string{"ssd", "shared"}, []string{"shared"} }
	inWorld(t, cloud.Config{Times: slow, Lag: usual.lag}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		refused := func(err error) {
			t.Helper()
			require.ErrorIs(t, err, providers.ErrInvalid)
			sentence(t, err, "several servers", "volume type without multiattach")
		}
		for _, fault := range []cloud.Fault{"", cloud.LoseAnswer} {
			if fault != "" {
				w.cloud.Inject(cloud.Rule{Action: created, Times: 1, Fault: fault})
			}
			_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Type: "shared"})
			refused(err)
			time.Sleep(time.Minute)
			assert.Zero(t, w.volumes())
		}
		var id string
		_, err := w.cloud.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
			v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: gib, Type: "shared"}, Tags: map[string]string{}, Stays: true})
			id = v.ID
			return err
		})
		require.NoError(t, err)
		time.Sleep(time.Minute)
		_, err = p.Adopt(t.Context(), id, providers.Spec{Name: "db"})
		refused(err)
		require.NoError(t, p.write(t.Context(), id, with(p.marks(providers.Spec{Name: "db"}), keyState, stateSettled))) // as one that was adopted before
		time.Sleep(usual.lag)
		refused(providertest.Attach(t.Context(), p, id))
	}, several)
}

// Cinder calls a volume available a moment before Nova has removed the attachment.
func TestAttachWaitsForNovaAfterADetach(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		a, b := w.on(one), w.on(two)
		v := w.create(a, "db")
		w.attach(a, v)
		require.NoError(t, a.Detach(t.Context(), v.ID, one, false))
		cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
		require.NoError(t, a.Detach(t.Context(), v.ID, one, false))
		require.NoError(t, providertest.Attach(t.Context(), b, v.ID))
		cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)

		require.NoError(t, b.Detach(t.Context(), v.ID, two, false))
		cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, providertest.Attach(ctx, a, v.ID), providers.ErrBusy)
		begin := time.Now()
		require.NoError(t, providertest.Attach(t.Context(), a, v.ID))
		assert.Less(t, time.Since(begin), 4*time.Second)
	}, func(cfg *front.Config) { cfg.Settles = 3 * time.Second })
}

// A volume is often mounted right after it was unmounted, or on the node that has waited for that.
func TestAnAttachRightAfterADetachIsOneRefusedRequestMore(t *testing.T) {
	const latency = 100 * time.Millisecond
	inWorld(t, cloud.Config{Latency: latency, Times: slow}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		v := w.create(w.on(one), "db")
		var links []*transport
		var nodes []*Provider
		for _, server := range []string{one, two} {
			link := &transport{RoundTripper: w.front.Transport(server)}
			p := w.onBy(server, link)
			_, err := p.Find(t.Context(), "db") // it knows the volume
			require.NoError(t, err)
			links, nodes = append(links, link), append(nodes, p)
		}
		w.attach(nodes[0], v)
		for next, server := range []string{one, two} {
			require.NoError(t, nodes[0].Detach(t.Context(), v.ID, one, false))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
			links[next].calls()
			begin := time.Now()
			require.NoError(t, providertest.Attach(t.Context(), nodes[next], v.ID))
			post := "POST /compute/v2.1/servers/" + server + "/os-volume_attachments"
			assert.Equal(t, []string{post, post}, links[next].calls(), "Cinder need not be asked why")
			assert.LessOrEqual(t, time.Since(begin), 2*latency+settlesMostly)
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)
		}
	}, func(cfg *front.Config) { cfg.Settles = 2 * latency })
}

// Nova may keep the record of an attachment permanently, for example if it died while removing it.
func TestAttachmentsOnlyInNovaAreReported(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		one, two := w.node(), w.node()
		a, b := w.on(one), w.on(two)
		v := w.create(a, "db")
		w.front.List(v.ID, one)
		for name, call := range map[string]func() error{
			"attach elsewhere": func() error { return providertest.Attach(t.Context(), b, v.ID) },
			"attach there":     func() error { return providertest.Attach(t.Context(), a, v.ID) },
			"detach":           func() error { return b.Detach(t.Context(), v.ID, one, true) },
		} {
			begin := time.Now()
			err := call()
			sentence(t, err, v.ID, one, "available", "Nova still lists", "administrator")
			require.NotErrorIs(t, err, providers.ErrBusy, name)
			assert.InDelta(t, settles.Seconds(), time.Since(begin).Seconds(), 2, name)
		}
		require.NoError(t, a.Detach(t.Context(), v.ID, two, false), "that server is not listed")
		w.front.List(v.ID, "")
		require.NoError(t, providertest.Attach(t.Context(), b, v.ID))
	})
}
