package aws

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
)

// hang makes the next operation of an action never complete.
func (w *world) hang(action string) {
	w.cloud.Inject(cloud.Rule{Action: action, Fault: cloud.NeverFinish, Times: 1})
}

// Operations that EC2 accepts and never completes last until the caller's time is over. They are no success, create no second volume,
// and a repeated call joins them.
func TestACreateThatNeverCompletesCreatesNoSecondVolume(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		p, other := w.on(w.node("a")), w.on(w.node("a"))
		w.hang("CreateVolume")
		for _, p := range []*Provider{p, p, other} {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			_, err := p.Create(ctx, providers.Spec{Name: "db", Size: gib})
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			providertest.Sentence(t, err, "still being created", "vol-")
		}
		require.Len(t, w.named("db"), 1)
		found, err := other.Find(t.Context(), "db")
		require.NoError(t, err, "it exists, so the name is taken")
		require.ErrorIs(t, providertest.Attach(t.Context(), other, found.ID), providers.ErrBusy)
	})
}

func TestASnapshotThatNeverCompletesIsTakenOnce(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		v := w.create(p, "db")
		w.hang("CreateSnapshot")
		for range 2 {
			s, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "last state"})
			require.NoError(t, err)
			assert.Equal(t, providers.SnapshotCreating, s.State)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			_, err = p.Create(ctx, providers.Spec{Name: "copy", Snapshot: s.ID})
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			providertest.Sentence(t, err, "snap-", "not complete yet")
		}
		require.Len(t, w.cloud.Snapshots(), 1, "the second call finds the first snapshot")
		assert.Len(t, w.named("db"), 1)
	})
}

func TestAModifyThatNeverCompletesIsReported(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		v := w.create(p, "db")
		w.hang("ModifyVolume")
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := p.Modify(ctx, v.ID, providers.Change{Size: 2 * gib})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		providertest.Sentence(t, err, v.ID, "still going on")
		_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 3 * gib})
		require.ErrorIs(t, err, providers.ErrBusy)
	})
}

func TestADetachThatNeverCompletesLeavesTheVolumeHeld(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		node := w.node("a")
		p, other := w.on(node), w.on(w.node("a"))
		v := w.create(p, "db")
		w.attach(p, v)
		w.hang("DetachVolume")
		require.NoError(t, p.Detach(t.Context(), v.ID, node, false), "EC2 has taken the request")
		time.Sleep(time.Hour)
		found, err := other.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{Node: node, State: providers.Detaching}, found.Attachment)
		require.ErrorIs(t, providertest.Attach(t.Context(), other, v.ID), providers.ErrHeld)
		require.ErrorIs(t, other.Delete(t.Context(), v.ID), providers.ErrHeld)
		require.NoError(t, other.Detach(t.Context(), v.ID, node, true), "forced, on evidence that the node is gone")
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Detached)
		w.attach(other, v)
	})
}
