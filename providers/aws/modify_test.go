package aws

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

func TestModifyChangesTheVolume(t *testing.T) {
	lags(t, func(t *testing.T, cfg cloud.Config) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			node := w.node("a")
			p := w.on(node)
			v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: 10 * gib})
			require.NoError(t, err)
			for _, change := range []struct {
				providers.Change
				size    int64
				details map[string]string
			}{
				{providers.Change{Size: 20 * gib}, 20, map[string]string{"type": "gp3", "iops": "3000", "throughput": "125"}},
				{providers.Change{IOPS: 4000}, 20, map[string]string{"iops": "4000", "throughput": "125"}},
				{providers.Change{Throughput: 500}, 20, map[string]string{"iops": "4000", "throughput": "500"}},
				{providers.Change{Type: "io2", IOPS: 1000, Size: 21 * gib}, 21, map[string]string{"type": "io2", "iops": "1000"}},
			} {
				for _, p := range []*Provider{p, w.on(node)} {
					now, err := p.Modify(t.Context(), v.ID, change.Change)
					require.NoError(t, err)
					assert.Equal(t, change.size*gib, now.Size)
					for word, value := range change.details {
						assert.Equal(t, value, now.Details[word], word)
					}
				}
				truth, _ := w.cloud.Volume(v.ID)
				assert.Equal(t, change.size*gib, truth.Size)
				time.Sleep(time.Minute)
			}
			_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 30 * gib})
			require.ErrorIs(t, err, providers.ErrBusy, "four in a day")
			providertest.Sentence(t, err, "four in a day", "so another one is accepted by 2000-01-02", "try again later")
			time.Sleep(24 * time.Hour)
			_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 30 * gib})
			require.NoError(t, err)
		})
	})
}

func TestModifyDoesNotWaitForOptimisation(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Modify: 4 * time.Hour}}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		v := w.create(p, "db")
		_, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 2 * gib})
		require.NoError(t, err, "the volume can be used while EC2 optimises it")
		_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 2 * gib})
		require.NoError(t, err)
		_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 3 * gib})
		require.ErrorIs(t, err, providers.ErrBusy)
		providertest.Sentence(t, err, v.ID, "not modifiable", "one change of a volume at a time")
	})
}

func TestALostAnswerChangesTheVolumeOnce(t *testing.T) {
	lags(t, func(t *testing.T, cfg cloud.Config) {
		inWorld(t, cfg, func(t *testing.T, w *world) {
			node := w.node("a")
			p := w.on(node)
			v := w.create(p, "db")
			remove := w.cloud.Inject(cloud.Rule{Action: "ModifyVolume", Fault: cloud.LoseAnswer})
			_, _ = p.Modify(t.Context(), v.ID, providers.Change{Size: 5 * gib})
			remove()
			time.Sleep(cfg.Lag)
			for _, p := range []*Provider{p, w.on(node)} {
				now, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 5 * gib})
				require.NoError(t, err)
				assert.Equal(t, int64(5*gib), now.Size)
			}
			truth, _ := w.cloud.Volume(v.ID)
			assert.Len(t, truth.ModifiedAt, 1)
		})
	})
}

// Another node has enlarged the volume, and this node's read does not show that yet.
func TestChangingIOPSSendsNoSize(t *testing.T) {
	for seed := range uint64(8) {
		inWorld(t, cloud.Config{Lag: 5 * time.Second, Seed: seed, Times: cloud.Times{Modify: time.Millisecond}}, func(t *testing.T, w *world) {
			a, b := w.on(w.node("a")), w.on(w.node("a"))
			v, err := a.Create(t.Context(), providers.Spec{Name: "db", Size: 10 * gib})
			require.NoError(t, err)
			time.Sleep(10 * time.Second)
			_, err = a.Modify(t.Context(), v.ID, providers.Change{Size: 20 * gib})
			require.NoError(t, err)
			time.Sleep(10 * time.Millisecond)
			_, err = b.Modify(t.Context(), v.ID, providers.Change{IOPS: 4000})
			require.NoError(t, err)
		})
	}
}
