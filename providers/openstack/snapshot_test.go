package openstack

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// Cinder does not delete a volume that has snapshots.
func TestADeletedVolumeIsKeptUntilItsLastSnapshotIsDeleted(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v := w.create(p, "db")
		one, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "one"})
		require.NoError(t, err)
		two, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "two"})
		require.NoError(t, err)
		for range 2 {
			require.NoError(t, p.Delete(t.Context(), v.ID))
		}
		_, err = p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
		again := w.create(p, "db")
		assert.NotEqual(t, v.ID, again.ID)
		is, _ := w.cloud.Volume(v.ID)
		assert.Equal(t, stateRetired, is.Tags[keyState])

		require.NoError(t, p.DeleteSnapshot(t.Context(), one.ID))
		assert.Equal(t, 2, w.volumes())
		require.NoError(t, p.DeleteSnapshot(t.Context(), two.ID))
		assert.Equal(t, 1, w.volumes())
		_, err = p.Find(t.Context(), "db")
		require.NoError(t, err)
	})
}

func TestAVolumeWithOtherSnapshotsIsNotDeleted(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v := w.create(p, "db")
		snap, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "backup"})
		require.NoError(t, err)
		other := w.on(w.node())
		other.cfg.Cluster = "other"
		other, err = New(other.cfg)
		require.NoError(t, err)
		require.NoError(t, p.Forget(t.Context(), v.ID))
		_, err = other.Adopt(t.Context(), v.ID, providers.Spec{Name: "db"})
		require.NoError(t, err)
		sentence(t, other.Delete(t.Context(), v.ID), v.ID, snap.ID, "snapshots")
		_, err = other.Find(t.Context(), "db")
		require.NoError(t, err)
	})
}

func TestAVolumeInUseIsExtendedIfTheCloudCan(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		server := w.node()
		link := &transport{RoundTripper: w.front.Transport(server)}
		p := w.onBy(server, link)
		v := w.create(p, "db")
		w.attach(p, v)
		link.do(func(r *http.Request, _ string) (*http.Response, error) { // a cloud of before
			if strings.HasSuffix(r.URL.Path, "/action") && r.Header.Get("OpenStack-API-Version") != "" {
				return httpsim.Response(r, http.StatusNotAcceptable, "application/json", `{"computeFault":{"code":406,"message":"Version 3.42 is not supported by the API."}}`), nil
			}
			return nil, nil
		})
		_, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 2 * gib})
		require.ErrorIs(t, err, providers.ErrBusy)
		sentence(t, err, "in use", v.ID)
		link.do(nil)
		begin := time.Now()
		grown, err := p.Modify(t.Context(), v.ID, providers.Change{Size: 2 * gib})
		require.NoError(t, err)
		assert.Equal(t, int64(2*gib), grown.Size)
		assert.True(t, grown.HeldBy(server))
		assert.GreaterOrEqual(t, time.Since(begin), slow.Modify/2)
	})
}

// If a volume is adopted while its name is created, or another is adopted under it, one volume gets the name.
func TestConcurrentAdoptsOfANameLeaveOneVolume(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow, Latency: 100 * time.Millisecond}, func(t *testing.T, w *world) {
		a, b, c := w.on(w.node()), w.on(w.node()), w.on(w.node())
		one, two := w.create(a, "one"), w.create(a, "two")
		for _, v := range []*providers.Volume{one, two} {
			require.NoError(t, a.Forget(t.Context(), v.ID))
		}
		var errs [2]error
		providertest.AtOnce(func() {
			_, errs[0] = a.Adopt(t.Context(), one.ID, providers.Spec{Name: "db"})
		}, func() {
			_, errs[1] = b.Adopt(t.Context(), two.ID, providers.Spec{Name: "db"})
		}, func() {
			_, err := c.Create(t.Context(), providers.Spec{Name: "db", Size: gib})
			assert.NoError(t, err)
		})
		assert.Len(t, w.idsOf("db", stateSettled), 1)
		refusals := 0
		for _, err := range errs {
			if err != nil {
				require.ErrorIs(t, err, providers.ErrInvalid)
				refusals++
			}
		}
		assert.GreaterOrEqual(t, refusals, 1)
		assert.Equal(t, 2, w.volumes(), "an adopted volume is never deleted")
	})
}

func TestTheRecordStaysWithTheDisk(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Record: providers.Record{"formatted": "ext4"}})
		require.NoError(t, err)
		require.NoError(t, p.Forget(t.Context(), v.ID))
		is, _ := w.cloud.Volume(v.ID)
		assert.Equal(t, "ext4", is.Tags[keyRecord+"formatted"])
		assert.Empty(t, is.Tags[keyCluster])
	})
}
