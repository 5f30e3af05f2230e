package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A guard that is not in the source any more was removed by somebody, or has changed and must be looked at.
func TestEveryGuardIsInTheSource(t *testing.T) {
	root, err := moduleRoot(t.Context())
	require.NoError(t, err)
	for _, g := range guards {
		mutant, err := g.mutant(root)
		require.NoError(t, err, g.protects)
		assert.NotEmpty(t, mutant)
		assert.NotEqual(t, g.code, g.without, g.protects)
	}
}

// The tool itself must tell a guard that a test notices from one that none does, and from one that does not build.
func TestAGuardThatNoTestNoticesSurvives(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"m.go":   "package m\n\nfunc Limit(n int) int {\n\tif n > 10 {\n\t\treturn 10\n\t}\n\tif n < 0 {\n\t\treturn 0\n\t}\n\treturn n\n}\n",
		"m_test.go": "package m\n\nimport \"testing\"\n\nfunc TestTheLimitHolds(t *testing.T) {\n" +
			"\tif Limit(11) != 10 {\n\t\tt.Fatal(\"over\")\n\t}\n}\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o600))
	}
	g := guard{file: "m.go", code: "n > 10", without: "false"}
	killer, err := g.remove(t.Context(), root, filepath.Join(t.TempDir(), "noticed"))
	require.NoError(t, err)
	assert.Equal(t, "TestTheLimitHolds", killer)

	g.code = "n < 0"
	killer, err = g.remove(t.Context(), root, filepath.Join(t.TempDir(), "survives"))
	require.NoError(t, err)
	assert.Empty(t, killer)

	g.without = "unknown"
	_, err = g.remove(t.Context(), root, filepath.Join(t.TempDir(), "broken"))
	require.ErrorContains(t, err, "does not build")

	g.code = "return"
	_, err = g.remove(t.Context(), root, filepath.Join(t.TempDir(), "ambiguous"))
	require.ErrorContains(t, err, "stands 3 times")
}
