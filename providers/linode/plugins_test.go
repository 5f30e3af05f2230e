package linode

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
)

func TestVolumesOfDockerVolumeLinodeAreListedAndAdopted(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		made := map[string]string{}
		for _, name := range []string{"db", "web"} {
			_, err := w.cloud.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
				tags := map[string]string{"label": name, "tags": `["docker-volume-filesystem-xfs"]`, "updated": "2026-01-02T03:04:05"}
				if name == "web" {
					tags["tags"] = `["other"]`
				}
				v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: 10 * gib}, Zone: region, Tags: tags})
				made[name] = v.ID
				return err
			})
			require.NoError(t, err)
			cloudtest.WaitFor(t, w.cloud, made[name], cloudtest.Detached)
		}
		w.create(p, "ours")
		_, err := w.cloud.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
			_, err := r.AttachVolume(made["web"], a, "", func(cloud.Instance, []cloud.Volume) error { return nil })
			return err
		})
		require.NoError(t, err)
		list := func() []providers.PluginDisk {
			all, err := p.PluginDisks(t.Context(), "linode")
			require.NoError(t, err)
			for i := range all {
				assert.NotZero(t, all[i].CreatedAt)
				all[i].CreatedAt = time.Time{}
			}
			return all
		}
		web := providers.PluginDisk{ID: made["web"], Name: "web", Size: 10 * gib, Zone: region, Node: a}
		assert.Equal(t, []providers.PluginDisk{{ID: made["db"], Name: "db", Size: 10 * gib, Zone: region, Marked: true}, web}, list())
		_, err = p.Adopt(t.Context(), made["db"], providers.Spec{Name: "db"})
		require.NoError(t, err)
		assert.Equal(t, []providers.PluginDisk{web}, list(), "the other is ours now")
	})
}
