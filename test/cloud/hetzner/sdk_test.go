package hetzner_test

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
)

// Hetzner's SDK, which the provider does not use, checks the front end independently.
func TestSDKWorks(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		ctx := t.Context()
		c := hcloud.NewClient(hcloud.WithEndpoint("https://api.hetzner.test/v1"), hcloud.WithToken(w.front.Token(w.server)),
			hcloud.WithHTTPClient(&http.Client{Transport: w.front.Transport(w.server)}), hcloud.WithRetryOpts(hcloud.RetryOpts{}))
		id, err := strconv.ParseInt(w.server, 10, 64)
		require.NoError(t, err)
		server, _, err := c.Server.GetByID(ctx, id)
		require.NoError(t, err)
		require.NotNil(t, server)
		assert.Equal(t, "fsn1", server.Location.Name)

		made, _, err := c.Volume.Create(ctx, hcloud.VolumeCreateOpts{
			Name: "db", Size: 10, Location: &hcloud.Location{Name: "fsn1"}, Labels: map[string]string{"env": "prod"},
		})
		require.NoError(t, err)
		ended := func(a *hcloud.Action) {
			t.Helper()
			time.Sleep(5 * time.Second)
			a, _, err := c.Action.GetByID(ctx, a.ID)
			require.NoError(t, err)
			require.NotNil(t, a)
			assert.Equal(t, hcloud.ActionStatusSuccess, a.Status)
		}
		assert.Equal(t, time.Now().UTC(), made.Volume.Created.UTC())
		ended(made.Action)
		list := func() *hcloud.Volume {
			t.Helper()
			all, err := c.Volume.AllWithOpts(ctx, hcloud.VolumeListOpts{ListOpts: hcloud.ListOpts{LabelSelector: "env=prod"}, Sort: []string{"id:asc"}})
			require.NoError(t, err)
			require.Len(t, all, 1)
			assert.Equal(t, made.Volume.ID, all[0].ID)
			return all[0]
		}
		v := list()
		assert.Equal(t, hcloud.VolumeStatusAvailable, v.Status)
		assert.Equal(t, 10, v.Size)
		assert.Nil(t, v.Server)

		attach, _, err := c.Volume.Attach(ctx, v, server)
		require.NoError(t, err)
		assert.Equal(t, "attach_volume", attach.Command)
		assert.Equal(t, []*hcloud.ActionResource{{ID: id, Type: hcloud.ActionResourceTypeServer}, {ID: v.ID, Type: hcloud.ActionResourceTypeVolume}}, attach.Resources)
		_, _, err = c.Volume.Detach(ctx, v)
		assert.True(t, hcloud.IsError(err, hcloud.ErrorCodeLocked), "%v", err)
		ended(attach)
		require.NotNil(t, list().Server)
		assert.Equal(t, id, list().Server.ID)

		detach, _, err := c.Volume.Detach(ctx, v)
		require.NoError(t, err)
		ended(detach)
		assert.Nil(t, list().Server)
		_, err = c.Volume.Delete(ctx, v)
		require.NoError(t, err)
		gone, _, err := c.Volume.GetByID(ctx, v.ID)
		require.NoError(t, err)
		assert.Nil(t, gone)
	})
}
