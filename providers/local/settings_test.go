package local

import (
	"os"
	"path/filepath"
	"testing"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSettings(t *testing.T) {
	env := func(pairs ...string) func(string) string {
		return func(key string) string {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == key {
					return pairs[i+1]
				}
			}
			return ""
		}
	}
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	p, err := FromEnv(env("LOCAL_DIR", dir, "LOCAL_OVERCOMMIT", "true"), "node-1", "main", nil, nil)
	require.NoError(t, err)
	assert.True(t, p.(*Provider).overcommit)
	assert.DirExists(t, dir)
	p, err = FromEnv(env("LOCAL_DIR", dir), "node-1", "main", nil, nil)
	require.NoError(t, err)
	assert.False(t, p.(*Provider).overcommit)
	log, logged := logtest.NewNullLogger()
	p, err = FromEnv(env("LOCAL_DIR", dir, "LOCAL_OVERCOMMIT", "maybe"), "node-1", "main", log, nil)
	require.NoError(t, err, "volumes that exist are served")
	assert.False(t, p.(*Provider).overcommit)
	assert.Contains(t, logged.LastEntry().Message, `LOCAL_OVERCOMMIT is "maybe"`)

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, wrong := range []struct {
		env           func(string) string
		node, cluster string
		word          string
	}{
		{env("LOCAL_DIR", "relative"), "a", "main", "LOCAL_DIR"},
		{env("LOCAL_DIR", file), "a", "main", "LOCAL_DIR"},
		{env("LOCAL_DIR", dir), "", "main", "node id"},
		{env("LOCAL_DIR", dir), "../a", "main", "node id"},
		{env("LOCAL_DIR", dir), "a", "", "CLUSTER"},
	} {
		_, err := FromEnv(wrong.env, wrong.node, wrong.cluster, nil, nil)
		require.ErrorContains(t, err, wrong.word)
	}
}
