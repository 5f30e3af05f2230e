package digitalocean

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/digitalocean"
)

func TestVolumesOfDostorageAreListedAndAdopted(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		db, web := w.disk("db"), w.disk("web")
		_, err := p.Create(t.Context(), providers.Spec{Name: "ours", Size: 2 * gib})
		require.NoError(t, err)
		list := func() (all []providers.PluginDisk) {
			found, err := p.PluginDisks(t.Context(), "dostorage")
			require.NoError(t, err)
			for _, d := range found {
				assert.NotZero(t, d.CreatedAt)
				assert.NotEmpty(t, d.Zone)
				d.CreatedAt, d.Zone = time.Time{}, ""
				all = append(all, d)
			}
			return all
		}
		other := providers.PluginDisk{ID: web, Name: "web", Size: 2 * gib}
		assert.Equal(t, []providers.PluginDisk{{ID: db, Name: "db", Size: 2 * gib}, other}, list())
		_, err = p.Adopt(t.Context(), db, providers.Spec{Name: "db"})
		require.NoError(t, err)
		assert.Equal(t, []providers.PluginDisk{other}, list(), "the other is ours now")
	})
}
