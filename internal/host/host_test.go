package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAFileIsReplacedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	file, part := filepath.Join(dir, "file"), filepath.Join(dir, "file.part")
	content := func() string {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(data)
	}
	require.NoError(t, ReplaceFile(file, part, []byte("first"), nil))
	assert.Equal(t, "first", content())
	require.NoError(t, os.Symlink(file, part), "left by somebody: it is not written through")
	require.NoError(t, ReplaceFile(file, part, []byte("second"), nil))
	assert.Equal(t, "second", content())

	failure := errors.New("no")
	for _, fatal := range []string{"write", "rename"} {
		var steps []string
		err := ReplaceFile(file, part, []byte("third"), func(op, path string) error {
			steps = append(steps, op+" "+filepath.Base(path))
			if op == fatal {
				return failure
			}
			return nil
		})
		require.ErrorIs(t, err, failure)
		assert.Equal(t, "second", content())
		assert.Equal(t, []string{"write file.part", "rename file"}[:len(steps)], steps)
		assert.Equal(t, fatal+" ", steps[len(steps)-1][:len(fatal)+1])
		assert.NoFileExists(t, part)
	}
}

func TestABootHasOneIdentity(t *testing.T) {
	id, err := BootID()
	require.NoError(t, err)
	assert.Len(t, id, 36)
	again, err := BootID()
	require.NoError(t, err)
	assert.Equal(t, id, again)
}
