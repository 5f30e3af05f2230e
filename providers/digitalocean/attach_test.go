package digitalocean

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func TestAMountIsOneReadAndOneAttachAndAnUnmountOneDetachAndOneRead(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow, Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
		node := w.node()
		w.create(w.on(node), "db")
		p := w.on(node)
		_, err := p.Node(t.Context())
		require.NoError(t, err)
		w.calls()

		v := w.find(p, "db")
		w.attach(p, v)
		assert.Equal(t, map[string]int{listVolumes: 1, act: 1}, w.calls())

		time.Sleep(time.Hour)
		require.NoError(t, p.Detach(t.Context(), v.ID, node, false))
		v = w.find(p, "db")
		assert.True(t, !v.Held() || v.Attachment.State == providers.Detaching)
		assert.Equal(t, map[string]int{listVolumes: 1, act: 1}, w.calls())
	})
}

func TestWhatThisProcessHasAskedForIsTold(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		time.Sleep(time.Second)
		now := w.find(p, "db").Attachment
		assert.Equal(t, node, now.Node)
		assert.Contains(t, []providers.AttachState{providers.Attaching, providers.Attached}, now.State)
		begin := time.Now()
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID), "again, while it is under way")
		assert.Zero(t, time.Since(begin), "its end is not waited for")
		time.Sleep(time.Minute)
		w.calls()
		assert.Equal(t, providers.Attachment{Node: node, State: providers.Attached}, w.find(p, "db").Attachment)
		assert.Equal(t, map[string]int{listVolumes: 1}, w.calls(), "a read shows that it is over")

		require.NoError(t, p.Detach(t.Context(), v.ID, node, false))
		begin = time.Now()
		require.NoError(t, p.Detach(t.Context(), v.ID, node, false), "again, while it is under way")
		assert.Zero(t, time.Since(begin), "its end is not waited for")
		assert.NotEqual(t, providers.Attached, w.find(p, "db").Attachment.State)
		time.Sleep(time.Minute)
		assert.Equal(t, providers.Attachment{}, w.find(p, "db").Attachment)
	})
}

func TestAnAttachThatFailsIsTold(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		w.cloud.Inject(cloud.Rule{Action: act, Fault: cloud.NeverFinish, Times: 1})
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		time.Sleep(time.Minute)
		w.calls()
		assert.Equal(t, providers.Attachment{Node: node, State: providers.Attaching}, w.find(p, "db").Attachment)
		assert.Equal(t, map[string]int{listVolumes: 1, getAction: 1}, w.calls())
		w.front.Fail(v.ID)
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Detached)
		for range 2 {
			now := w.find(p, "db").Attachment
			assert.Equal(t, providers.AttachFailed, now.State)
			assert.Equal(t, node, now.Node)
			assert.Contains(t, now.Problem, `"errored"`)
		}
		require.NoError(t, p.Detach(t.Context(), v.ID, node, false))
		assert.False(t, w.find(p, "db").Held())
		w.attach(p, v)
		assert.Equal(t, providers.Attached, w.find(p, "db").Attachment.State)
	})
}

func TestADetachThatFailsLeavesTheVolumeAttached(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		w.attach(p, v)
		time.Sleep(time.Minute)
		w.find(p, "db")
		p.Begin(v.ID, managed.Operation{ID: "1", Node: node}) // one that DigitalOcean has forgotten
		assert.Equal(t, providers.Detaching, w.find(p, "db").Attachment.State)
		time.Sleep(time.Minute)
		assert.Equal(t, providers.Attached, w.find(p, "db").Attachment.State)
	})
}

func TestWhatIsLeavingIsNotAttachedHere(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		w.attach(p, v)
		time.Sleep(time.Minute)
		begin := time.Now()
		p.Begin(v.ID, managed.Operation{ID: "1", Node: node}) // one that DigitalOcean has forgotten
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		assert.GreaterOrEqual(t, time.Since(begin), unasked)
		assert.Equal(t, providers.Attached, w.find(p, "db").Attachment.State)
	})
}

func TestAVolumeThatAnotherNodeTookSinceIsNotThisOnes(t *testing.T) {
	inBoth(t, cloud.Config{Times: cloud.Times{Attach: time.Second, Detach: time.Second}}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		w.attach(pa, v)
		w.detach(pb, v, a) // by force, say
		w.attach(pb, v)
		assert.Equal(t, providers.Attachment{Node: b, State: providers.Attached}, w.find(pa, "db").Attachment)
		err := providertest.Attach(t.Context(), pa, v.ID)
		var held *providers.HeldError
		require.ErrorAs(t, err, &held)
		assert.Equal(t, providers.HeldError{Volume: v.ID, Node: b}, *held)
		require.NoError(t, pa.Detach(t.Context(), v.ID, a, true))
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Attached)

		w.detach(pb, v, b)
		w.attach(pa, v)
		w.detach(pb, v, a)
		time.Sleep(time.Minute)
		assert.Equal(t, providers.Attachment{}, w.find(pa, "db").Attachment, "not even on its way")
	})
}

func TestAttachWaitsForTheVolumeToComeFromAnotherNode(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		w.attach(pa, v)
		require.NoError(t, pa.Detach(t.Context(), v.ID, a, false))
		begin := time.Now()
		require.NoError(t, providertest.Attach(t.Context(), pb, v.ID))
		assert.GreaterOrEqual(t, time.Since(begin), 5*time.Second)
		assert.Less(t, time.Since(begin), 10*time.Second)
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Attached)
	})
}

func TestVolumesOfANodeAreAttachedOneAfterAnother(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		var calls []func()
		var ids []string
		for i := range 6 {
			v := w.create(p, fmt.Sprint("v", i))
			ids = append(ids, v.ID)
			calls = append(calls, func() { assert.NoError(t, providertest.Attach(t.Context(), p, v.ID)) })
		}
		w.calls()
		begin := time.Now()
		providertest.AtOnce(calls...)
		for _, id := range ids {
			cloudtest.WaitFor(w.t, w.cloud, id, cloudtest.Attached)
		}
		assert.Less(t, time.Since(begin), 6*10*time.Second)
		assert.Less(t, w.calls()[act], 6*8, "one of them asks for all")
	})
}

func TestADropletThatIsFullSaysSo(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{Most: 2}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		for _, name := range []string{"a", "b"} {
			w.attach(p, w.create(p, name))
		}
		err := providertest.Attach(t.Context(), p, w.create(p, "c").ID)
		require.ErrorIs(t, err, providers.ErrAttachLimit)
		providertest.Sentence(t, err, node, "cannot attach more volumes", "another node")
	})
}

func TestAnAttachThatIsBusyUntilTheEndSaysWhy(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		stuck, next := w.create(p, "stuck"), w.create(p, "next")
		w.cloud.Inject(cloud.Rule{Action: act, Fault: cloud.NeverFinish, Times: 1})
		require.NoError(t, providertest.Attach(t.Context(), p, stuck.ID))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := providertest.Attach(ctx, p, next.ID)
		require.ErrorIs(t, err, providers.ErrBusy)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		providertest.Sentence(t, err, "pending event", "one thing at a time")
	})
}

func TestADropletThatIsNoneIsNotTakenForAMissingVolume(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		node := w.node()
		v := w.create(w.on(node), "db")
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "404"})
		p, err := New(Config{Cluster: "main", Token: cloudtest.Token(settingToken, w.front.Token(node)), Transport: w.front.Transport(node), Droplet: "12345", Region: region})
		t.Cleanup(func() { time.Sleep(time.Minute) }) // a question to the metadata service may outlive the call that began it
		require.NoError(t, err)
		err = providertest.Attach(t.Context(), p, v.ID)
		require.NotErrorIs(t, err, providers.ErrNotFound)
		providertest.Sentence(t, err, "no droplet 12345", settingDroplet)
	})
}

func TestADropletThatIsDestroyedHoldsNothing(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		w.attach(pa, v)
		w.cloud.Terminate(a)
		state, err := pb.NodeState(t.Context(), a)
		require.NoError(t, err)
		assert.Equal(t, providers.NodeState{Life: providers.Gone, Evidence: "DigitalOcean knows no droplet " + a}, state)
		require.NoError(t, pb.Detach(t.Context(), v.ID, a, true))
		w.attach(pb, v)
	})
}

func TestADetachIsNotSentTwice(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		w.attach(p, v)
		w.calls()
		w.cloud.Inject(cloud.Rule{Action: act, Fault: cloud.LoseAnswer, Times: 1})
		require.ErrorIs(t, p.Detach(t.Context(), v.ID, node, true), providers.ErrUnavailable)
		assert.Equal(t, 1, w.calls()[act])
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Detached)
		require.NoError(t, p.Detach(t.Context(), v.ID, node, true))
	})
}

func TestAVolumeInUseIsNotDeletedAndItsHolderNamed(t *testing.T) {
	inBoth(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		for range 2 { // under way, and done
			var held *providers.HeldError
			require.ErrorAs(t, p.Delete(t.Context(), v.ID), &held)
			assert.Equal(t, node, held.Node)
			require.ErrorAs(t, w.on(w.node()).Delete(t.Context(), v.ID), &held)
			assert.Equal(t, node, held.Node, "which a read need not show at once")
			require.ErrorIs(t, p.Forget(t.Context(), v.ID), providers.ErrHeld)
			time.Sleep(time.Minute)
		}
	})
}

// What DigitalOcean says when it refuses is not documented.
func TestWhoHasAVolumeIsLookedUpWhateverTheRefusal(t *testing.T) {
	inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
		a, b := w.node(), w.node()
		pa, pb := w.on(a), w.on(b)
		v := w.create(pa, "db")
		refuse := func(call func() error) error {
			defer w.cloud.Inject(cloud.Rule{Action: act, Fault: cloud.Fail, Code: "422 No, by some new rule."})()
			return call()
		}
		attach := func() error { return providertest.Attach(t.Context(), pa, v.ID) }
		detach := func() error { return pa.Detach(t.Context(), v.ID, a, false) }

		err := refuse(attach)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "by some new rule")
		require.NoError(t, refuse(detach), "it is not attached here")
		w.attach(pb, v)
		var held *providers.HeldError
		require.ErrorAs(t, refuse(attach), &held)
		assert.Equal(t, b, held.Node)
		require.NoError(t, refuse(detach), "it is another's")
		w.detach(pb, v, b)
		w.attach(pa, v)
		require.NoError(t, refuse(attach), "it is attached here")
		err = refuse(detach)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "by some new rule")
	})
}

// A volume does not show an attach that is under way, so a look at it does not tell that there is nothing to detach.
func TestADetachThatIsRefusedAmidAnAttachIsNoSuccess(t *testing.T) {
	for _, words := range []string{"422 No, by some new rule.", "422 Attachment not found"} {
		inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
			node := w.node()
			p := w.on(node)
			v := w.create(p, "db")
			require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
			defer w.cloud.Inject(cloud.Rule{Action: act, Times: 1, Fault: cloud.Fail, Code: words})()
			if err := p.Detach(t.Context(), v.ID, node, false); err != nil {
				providertest.Sentence(t, err, "by some new rule")
			} else {
				time.Sleep(time.Minute)
				assert.False(t, w.find(p, "db").Held(), words)
			}
		})
	}
}

func TestADetachAfterAnAttachThatFailedSucceeds(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
		node := w.node()
		p := w.on(node)
		v := w.create(p, "db")
		for _, words := range []string{"422 No, by some new rule.", "422 Attachment not found"} {
			p.Begin(v.ID, managed.Operation{ID: "1", Node: node, Attach: true}) // DigitalOcean does not know its action any more
			defer w.cloud.Inject(cloud.Rule{Action: act, Times: 1, Fault: cloud.Fail, Code: words})()
			require.NoError(t, p.Detach(t.Context(), v.ID, node, false))
			_, is := p.LastOperation(v.ID)
			assert.False(t, is)
		}
	})
}
