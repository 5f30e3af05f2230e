package linode

import (
	"bytes"
	"context"
	"io"
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
)

func TestAMountIsOneReadAndOneAttachAndAnUnmountTheSame(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		w.create(w.on(a), "db")
		w.calls()
		p := w.on(a)
		v, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		assert.Equal(t, map[string]int{listing: 1, attaching: 1}, w.calls())
		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Equal(t, map[string]int{looking: 1, tagging: 1}, w.calls())
		require.NoError(t, p.Mark(t.Context(), v.ID, "formatted", "ext4"))
		assert.Equal(t, map[string]int{looking: 1}, w.calls(), "it stands there already")
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
		assert.Equal(t, map[string]int{looking: 1, detaching: 1}, w.calls())
	})
}

// Otherwise it would take one of the eight places of the Linode's configuration profile.
func TestAnAttachmentIsForThisBootOnly(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		var bodies []string
		p := w.on(a, func(cfg *Config) {
			cfg.Transport = httpsim.Before(cfg.Transport, func(r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/attach") {
					body, err := io.ReadAll(r.Body)
					assert.NoError(t, err)
					r.Body = io.NopCloser(bytes.NewReader(body))
					bodies = append(bodies, string(body))
				}
			})
		})
		w.attach(p, w.create(p, "db"))
		require.Len(t, bodies, 1)
		assert.JSONEq(t, `{"linode_id": `+a+`, "persist_across_boots": false}`, bodies[0])
	})
}

func TestALinodeTakesVolumesOneAfterAnother(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		var volumes []*providers.Volume
		var attaches []func()
		for _, name := range []string{"a", "b", "c", "d"} {
			v := w.create(p, name)
			volumes = append(volumes, v)
			attaches = append(attaches, func() { assert.NoError(t, providertest.Attach(t.Context(), p, v.ID)) })
		}
		begin := time.Now()
		providertest.AtOnce(attaches...)
		for _, v := range volumes {
			assert.Equal(t, a, cloudtest.Holder(w.cloud, v.ID))
		}
		assert.Less(t, time.Since(begin), time.Minute)
	})
}

func TestALinodeThatIsFullSaysSo(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.cloud.AddInstance(cloud.Instance{Type: "g6-nanode-1"}).ID)
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			w.attach(p, w.create(p, name))
		}
		err := providertest.Attach(t.Context(), p, w.create(p, "g").ID)
		require.ErrorIs(t, err, providers.ErrAttachLimit)
		providertest.Sentence(t, err, "maximum number of Volumes (6)", "another node")
	})
}

func TestAVolumeOnItsWayOutIsAttachedAgainWhenItIsOut(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
		shown, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{Node: a, State: providers.Detaching}, shown.Attachment)
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false), "it is under way")
		assert.Equal(t, 1, w.calls()[detaching])

		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		time.Sleep(time.Minute) // whatever is under way ends
		assert.Equal(t, a, cloudtest.Holder(w.cloud, v.ID))
		shown, err = p.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{Node: a, State: providers.Attached}, shown.Attachment)
	})
}

// The volume is shown as attached here, and may be on its way out all the same.
func TestAnAttachAfterADetachWithoutAnAnswerIsSure(t *testing.T) {
	for fault, times := range map[cloud.Fault]int{cloud.LoseAnswer: 2, cloud.Fail: 1} {
		t.Run(string(fault), func(t *testing.T) {
			inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
				a := w.node()
				p := w.on(a)
				v := w.create(p, "db")
				w.attach(p, v)
				w.calls()
				w.cloud.Inject(cloud.Rule{Action: detaching, Fault: fault, Times: 1})
				require.ErrorIs(t, p.Detach(t.Context(), v.ID, a, false), providers.ErrUnavailable)
				require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
				assert.GreaterOrEqual(t, w.calls()[attaching], times)
				time.Sleep(time.Minute) // whatever is under way ends
				assert.Equal(t, a, cloudtest.Holder(w.cloud, v.ID))
			})
		})
	}
}

func TestADetachThatLinodeGaveUpCanBeAskedForAgain(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		v := w.create(p, "db")
		w.attach(p, v)
		w.cloud.Inject(cloud.Rule{Action: detaching, Fault: cloud.NeverFinish, Times: 1})
		require.NoError(t, p.Detach(t.Context(), v.ID, a, false))
		time.Sleep(leaving)
		shown, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attached, shown.Attachment.State, "Linode's word")
	})
}

// What is refused as busy, or waits for the account's limit, is sent later: by then another node may have the volume.
func TestADetachThatHadToWaitLooksAgainWhoHasTheVolume(t *testing.T) {
	for name, rule := range map[string]cloud.Rule{
		"the Linode is busy":       {Action: detaching, Fault: cloud.Fail, Code: "Linode busy."},
		"the account is throttled": {Action: detaching, Fault: cloud.Throttle},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				a, b := w.node(), w.node()
				pa, pb := w.on(a), w.on(b)
				v := w.create(pa, "db")
				w.attach(pa, v)
				rule.Caller = a
				mend := w.cloud.Inject(rule)
				providertest.AtOnce(
					func() { assert.NoError(t, pa.Detach(t.Context(), v.ID, a, false)) },
					func() {
						time.Sleep(time.Second)
						assert.NoError(t, pb.Detach(t.Context(), v.ID, a, true))
						assert.NoError(t, providertest.Attach(t.Context(), pb, v.ID))
						mend()
					},
				)
				assert.Equal(t, b, cloudtest.Holder(w.cloud, v.ID))
			})
		})
	}
}

func TestADetachIsNeverRepeatedUnseen(t *testing.T) {
	for _, fault := range []cloud.Fault{cloud.Fail, cloud.LoseAnswer, cloud.Truncate, cloud.Garbage} {
		t.Run(string(fault), func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				a := w.node()
				p := w.on(a)
				v := w.create(p, "db")
				w.attach(p, v)
				w.calls()
				w.cloud.Inject(cloud.Rule{Action: detaching, Fault: fault})
				require.ErrorIs(t, p.Detach(t.Context(), v.ID, a, false), providers.ErrUnavailable)
				assert.Equal(t, 1, w.calls()[detaching])
			})
		})
	}
}

func TestAnAttachWhoseAnswerIsLostIsKnownByTheNextLook(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		v := w.create(p, "db")
		w.cloud.Inject(cloud.Rule{Action: attaching, Fault: cloud.LoseAnswer, Times: 1})
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		assert.Equal(t, a, cloudtest.Holder(w.cloud, v.ID))
	})
}

func TestAVolumeOfAnotherRegionIsRefusedInASentence(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "far", Zone: "us-test"})
		require.NoError(t, err)
		assert.Equal(t, "us-test", v.Zone)
		err = providertest.Attach(t.Context(), p, v.ID)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "same region")
	})
}

func TestANodeThatIsNoLinodeOfTheAccountIsTold(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		p := w.on(w.node(), func(cfg *Config) { cfg.Instance, cfg.Region = "7", region })
		err := providertest.Attach(t.Context(), p, w.create(p, "db").ID)
		require.NotErrorIs(t, err, providers.ErrNotFound)
		providertest.Sentence(t, err, "linode_id: Linode not found")
	})
}

func TestALinodeThatBootsIsWaitedFor(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v := w.create(p, "db")
		w.cloud.Inject(cloud.Rule{Action: attaching, Fault: cloud.Fail, Code: "The Linode must be running", Times: 3})
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
	})
}

// Otherwise no request would be sent, and the volume be called detached though it stays attached.
func TestADetachBelievesNoReadOfATimeBeforeTheAttach(t *testing.T) {
	for seed := range uint64(8) {
		inWorld(t, cloud.Config{Times: cloud.Times{Attach: 500 * time.Millisecond, Detach: 4 * time.Second}, Lag: 5 * time.Second, Seed: seed}, func(t *testing.T, w *world) {
			a, b := w.node(), w.node()
			pa, pb := w.on(a), w.on(b)
			v := w.create(pa, "db") // though its maker does not see it at first
			for _, p := range []*Provider{pa, pb, pa} {
				node, err := p.Node(t.Context())
				require.NoError(t, err)
				time.Sleep(5 * time.Second)
				w.attach(p, v)
				w.calls()
				begin := time.Now()
				require.NoError(t, p.Detach(t.Context(), v.ID, node.ID, false))
				assert.Less(t, time.Since(begin), 6*time.Second, "it is asked again soon")
				assert.Equal(t, 1, w.calls()[detaching])
				require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
				time.Sleep(time.Minute) // whatever is under way ends
				require.Equal(t, node.ID, cloudtest.Holder(w.cloud, v.ID), "whatever was shown, it was on its way out")
				require.NoError(t, p.Detach(t.Context(), v.ID, node.ID, false))
				cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
			}
		})
	}
}

// A request that was not answered may have been carried out, or not: a read that may be of a time before it tells neither.
func TestADetachBelievesNoOldReadAfterARequestThatWasNotAnswered(t *testing.T) {
	for seed := range uint64(8) {
		inWorld(t, cloud.Config{Times: cloud.Times{Attach: 500 * time.Millisecond, Detach: 500 * time.Millisecond}, Lag: 5 * time.Second, Seed: seed}, func(t *testing.T, w *world) {
			node := w.node()
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

			unanswered(attaching, cloud.LoseAnswer, attach)
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)
			require.NoError(t, detach(t.Context()))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)

			time.Sleep(time.Minute)
			require.NoError(t, attach(t.Context()))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Attached)
			unanswered(detaching, cloud.Hang, detach)
			require.NoError(t, detach(t.Context()))
			cloudtest.WaitFor(t, w.cloud, v.ID, cloudtest.Detached)
		})
	}
}
