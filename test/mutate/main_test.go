package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A guard that is not in the source has been removed, or changed and must be reviewed.
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

// The tool must distinguish a guard that a test notices, one that no test notices, and one that does not build.
func TestGuardWithoutATestSurvives(t *testing.T) {
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
	killer, err := g.remove(t.Context(), root, filepath.Join(t.TempDir(), "noticed"), "^$", time.Minute)
	require.NoError(t, err)
	assert.Equal(t, "TestTheLimitHolds", killer)

	g.code = "n < 0"
	killer, err = g.remove(t.Context(), root, filepath.Join(t.TempDir(), "survives"), "^$", time.Minute)
	require.NoError(t, err)
	assert.Empty(t, killer)

	g.without = "unknown"
	_, err = g.remove(t.Context(), root, filepath.Join(t.TempDir(), "broken"), "^$", time.Minute)
	require.ErrorContains(t, err, "does not build")

	g.code = "return"
	_, err = g.remove(t.Context(), root, filepath.Join(t.TempDir(), "ambiguous"), "^$", time.Minute)
	require.ErrorContains(t, err, "occurs 3 times")
}

// Changes by rule: each kind is made, and only those that no test notices survive.
func TestMutantsThatNoTestNoticesSurvive(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module m\n\ngo 1.26\n",
		"m.go": `package m

import "errors"

var errMany = errors.New("too many")

func check(n int) error {
	if n > 10 && n != 12 {
		return errMany
	}
	return nil
}

func Sum(all []int) (sum int, err error) {
	if err := check(len(all)); err != nil {
		return 0, err
	}
	for i := 0; i < len(all); i++ {
		sum = sum + all[i]
	}
	seen(sum)
	return sum, nil
}

var last int

func seen(n int) { last = n }

func unreached(n int) bool { return n == 1 }
`,
		"m_test.go": `package m

import "testing"

func TestSum(t *testing.T) {
	if sum, err := Sum([]int{1, 2}); sum != 3 || err != nil {
		t.Fatal(sum, err)
	}
	if _, err := Sum(make([]int, 11)); err != errMany {
		t.Fatal(err)
	}
}

func TestSkipped(t *testing.T) { t.Fatal("it must be skipped") }
`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o600))
	}
	trial, err := prepare(t.Context(), root, ".", ".", t.TempDir(), regexp.MustCompile("Skipped"))
	require.NoError(t, err)
	var survivors []string
	kinds := map[kind]bool{}
	for n := 1; n < len(trial.mutants); n++ {
		if trial.try(t.Context(), n) == "" {
			survivors = append(survivors, trial.mutants[n].String())
		} else {
			kinds[trial.mutants[n].kind] = true
		}
	}
	assert.Equal(t, []string{
		"m.go:8: n > 10: with the boundary moved",
		"m.go:8: n != 12: taken for true",
		"m.go:21: seen(sum): left out",
		"m.go:27: last = n: left out",
		"m.go:29: n == 1: taken for false",
		"m.go:29: n == 1: taken for true",
	}, survivors)
	assert.Len(t, kinds, 6, "of each kind one is noticed")
}
