package aws

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
)

func TestVolumesOfRexrayAreListedAndAdopted(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node("a")
		p := w.on(a)
		ids := map[string]string{}
		for name, zone := range map[string]string{"db": "a", "held": "a", "elsewhere": "b", "": "a"} {
			w.byHand(func(r *cloud.Request) error {
				spec := cloud.VolumeSpec{Shape: cloud.Shape{Size: 2 * gib, Type: "gp3"}, Zone: region + zone, Tags: map[string]string{"team": "x"}}
				if name != "" {
					spec.Tags[tagShown] = name
				}
				v, err := r.CreateVolume(spec)
				ids[name] = v.ID
				return err
			})
			cloudtest.WaitFor(t, w.cloud, ids[name], cloudtest.Detached)
		}
		w.create(p, "ours")
		w.byHand(func(r *cloud.Request) error {
			_, err := r.AttachVolume(ids["held"], a, "/dev/xvdf", func(cloud.Instance, []cloud.Volume) error { return nil })
			return err
		})
		w.byHand(func(r *cloud.Request) error { // the disk that the instance started from
			for _, v := range w.cloud.Volumes() {
				if len(v.Attachments) > 0 && v.Attachments[0].DeleteOnTermination {
					if _, err := r.EditTags([]string{v.ID}, func(_ string, tags map[string]string) error { tags[tagShown] = "root"; return nil }); err != nil {
						return err
					}
				}
			}
			return nil
		})
		all, err := p.PluginDisks(t.Context(), "rexray")
		require.NoError(t, err)
		for i := range all {
			assert.NotZero(t, all[i].CreatedAt)
			all[i].CreatedAt = all[0].CreatedAt
		}
		held := providers.PluginDisk{ID: ids["held"], Name: "held", Size: 2 * gib, Zone: region + "a", Node: a, CreatedAt: all[0].CreatedAt}
		assert.Equal(t, []providers.PluginDisk{{ID: ids["db"], Name: "db", Size: 2 * gib, Zone: region + "a", CreatedAt: all[0].CreatedAt}, held}, all)

		_, err = p.Adopt(t.Context(), ids["db"], providers.Spec{Name: "db"})
		require.NoError(t, err)
		all, err = p.PluginDisks(t.Context(), "rexray")
		require.NoError(t, err)
		assert.Len(t, all, 1, "it is ours now")
		_, err = p.PluginDisks(t.Context(), "convoy")
		require.ErrorIs(t, err, providers.ErrInvalid)
		assert.Equal(t, []string{"rexray"}, p.Plugins())
	})
}
