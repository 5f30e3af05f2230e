package hetzner

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
)

func TestVolumesOfDockerVolumeHetznerAreListedAndAdopted(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("fsn1"))
		ids := map[string]string{}
		for name, location := range map[string]string{"docker-db": "fsn1", "mine-web": "fsn1", "docker-elsewhere": "nbg1"} {
			_, err := w.cloud.Do(t.Context(), cloud.Call{Action: "by hand", Aside: true}, func(r *cloud.Request) error {
				v, err := r.CreateVolume(cloud.VolumeSpec{
					Shape: cloud.Shape{Size: 10 * gib, Type: "volume"}, Zone: location, Tags: map[string]string{"name": name, "label:" + pluginLabel: ""},
				})
				ids[name] = v.ID
				return err
			})
			require.NoError(t, err)
			cloudtest.WaitFor(t, w.cloud, ids[name], cloudtest.Detached)
		}
		_, err := p.Create(t.Context(), providers.Spec{Name: "ours", Size: size})
		require.NoError(t, err)
		list := func() []providers.PluginDisk {
			all, err := p.PluginDisks(t.Context(), "docker-volume-hetzner")
			require.NoError(t, err)
			for i := range all {
				assert.NotZero(t, all[i].CreatedAt)
				all[i].CreatedAt = time.Time{}
			}
			return all
		}
		db := providers.PluginDisk{ID: ids["docker-db"], Name: "db", Size: 10 * gib, Zone: "fsn1", Marked: true}
		web := providers.PluginDisk{ID: ids["mine-web"], Name: "mine-web", Size: 10 * gib, Zone: "fsn1", Marked: true}
		assert.Equal(t, []providers.PluginDisk{db, web}, list())

		v, err := p.Adopt(t.Context(), db.ID, providers.Spec{Name: "db"})
		require.NoError(t, err)
		assert.Equal(t, []providers.PluginDisk{web}, list(), "the other is ours now")
		require.NoError(t, p.Attach(t.Context(), v.ID, mustNode(t, p)))
	})
}

func mustNode(t *testing.T, p *Provider) string {
	t.Helper()
	node, err := p.Node(t.Context())
	require.NoError(t, err)
	return node.ID
}
