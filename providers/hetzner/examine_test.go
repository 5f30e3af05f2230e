package hetzner

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
)

func wrong(found []providers.Finding) (codes []string) {
	for _, f := range found {
		if f.Severity != providers.OK {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

func TestDoctorFindsThatTheTokenIsOfAnotherProject(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		node := w.node("fsn1")
		w.cloud.Inject(cloud.Rule{Action: "GET /v1/servers/{id}", Fault: cloud.Fail, Code: "not_found"})
		found := w.on(node).Examine(t.Context())
		require.Equal(t, []string{"node-unknown"}, wrong(found), "%v", found)
		assert.Contains(t, found[0].Message, "server "+node)
		assert.Contains(t, found[0].Remedy, "docs/hetzner.md")
	})
}

// A golden image with the setting makes machines that call themselves by one id.
func TestDoctorFindsASettingThatNamesAnotherServer(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		node, other := w.node("fsn1"), w.node("fsn1")
		p, err := New(Config{Cluster: "main", Token: cloudtest.Token(tokenSetting, w.front.Token(node)), Server: other, Transport: w.front.Transport(node)})
		require.NoError(t, err)
		found := p.Examine(t.Context())
		require.Equal(t, []string{"setting-wrong"}, wrong(found), "%v", found)
		assert.Contains(t, found[0].Message, serverSetting)
	})
}

func TestDoctorFindsATokenThatWasRevoked(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		node := w.node("fsn1")
		token := w.front.Token(node)
		w.front.Revoke(token)
		found := w.on(node).Examine(t.Context())
		require.Equal(t, []string{"credentials-refused"}, wrong(found), "%v", found)
		assert.Contains(t, found[0].Message, "revoked")
		for _, f := range found {
			assert.NotContains(t, f.Message+f.Remedy, token)
		}
	})
}
