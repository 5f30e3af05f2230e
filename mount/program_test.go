package mount

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// withTool puts a program of that name first in PATH.
func withTool(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestAProbeThatFailsDoesNotMeanBlank(t *testing.T) {
	for name, c := range map[string]struct {
		tool, does string
		is         error
		says       string
	}{
		"blkid says nothing and no reason":          {"blkid", "exit 0", ErrUnreadable, "blkid ended with code 0"},
		"blkid had an error":                        {"blkid", "echo 'blkid: error: /dev/x: Input/output error' >&2; exit 2", ErrUnreadable, "Input/output error"},
		"blkid found something and exits with 2":    {"blkid", "echo TYPE=ext4; exit 2", ErrUnreadable, "blkid ended with code 2"},
		"blkid refuses its arguments":               {"blkid", "exit 4", ErrUnreadable, "blkid ended with code 4"},
		"blkid crashes":                             {"blkid", "kill -SEGV $$", nil, "blkid was killed or could not be started"},
		"blkid says something that is not known":    {"blkid", "echo hello", ErrUnreadable, "blkid ended with code 0 (hello)"},
		"blkid is torn between two":                 {"blkid", "exit 8", ErrNotBlank, "several formats at once"},
		"wipefs found something that blkid did not": {"wipefs", "echo 0x438,,,ext4", ErrNotBlank, "has ext4 and is not formatted"},
		"wipefs only prints a heading":              {"wipefs", "echo '# offset,uuid,label,type'", ErrNotBlank, unknownData},
		"wipefs had an error":                       {"wipefs", "exit 1", ErrUnreadable, "wipefs ended with code 1"},
		"wipefs complains":                          {"wipefs", "echo 'wipefs: cannot read' >&2; exit 0", ErrUnreadable, "cannot read"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := newDisk(t, ext4Size)
			withTool(t, c.tool, c.does)
			err := h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size})
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			require.ErrorContains(t, err, c.says)
			d.requireUntouched()
		})
	}
}

// Each program fails once, at each of its calls: that is the answer, and a retry that knows whether a format had begun succeeds.
func TestWhicheverProgramFailsARetryFormatsAndStages(t *testing.T) {
	ctx := context.Background()
	for _, tool := range []string{"blkid", "wipefs", "mkfs.ext4", "e2fsck"} {
		path, err := exec.LookPath(tool)
		require.NoError(t, err)
		failures := 0
		for failed := true; failed; {
			h, d := newHost(t), newDisk(t, ext4Size)
			begun, formatted := false, false
			bring := func() error {
				if !formatted {
					begin := func(context.Context) error { begun = true; return nil }
					if err := h.Format(ctx, d.Device, FormatSpec{FSType: "ext4", Size: d.Size, Begin: begin, Begun: begun}); err != nil {
						return err
					}
					formatted = true
				}
				_, err := h.Stage(ctx, d.Device, "data", StageSpec{FSType: "ext4", Layout: LayoutData})
				return err
			}
			t.Run(fmt.Sprintf("%s, call %d", tool, failures+1), func(t *testing.T) {
				calls := filepath.Join(t.TempDir(), "calls")
				withTool(t, tool, fmt.Sprintf(`echo >> %s; [ "$(wc -l < %s)" = %d ] && exit 16; exec %s "$@"`, calls, calls, failures+1, path))
				err := bring()
				failed = err != nil
				if !failed {
					return
				}
				failures++
				require.ErrorContains(t, err, tool)
				up, err := h.IsStaged(ctx, "data", d.Device)
				require.NoError(t, err)
				assert.False(t, up)
				d.isFree(h)
			})
			if failed {
				require.NoError(t, bring())
			}
			require.NoError(t, h.Unstage(ctx, "data"))
			if t.Failed() {
				return
			}
		}
		assert.Positive(t, failures, tool)
	}
}

func TestAMissingProgramIsNamed(t *testing.T) {
	for _, missing := range []string{"blkid", "wipefs", "mkfs.ext4"} {
		t.Run(missing, func(t *testing.T) {
			h := newHost(t)
			d := newDisk(t, ext4Size)
			dir := t.TempDir()
			for _, tool := range []string{"blkid", "wipefs", "mkfs.ext4"} {
				if tool != missing {
					path, err := exec.LookPath(tool)
					require.NoError(t, err)
					require.NoError(t, os.Symlink(path, filepath.Join(dir, tool)))
				}
			}
			t.Run("", func(t *testing.T) {
				t.Setenv("PATH", dir)
				begin := func(context.Context) error { t.Error("a format was recorded"); return nil }
				err := h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size, Begin: begin})
				require.ErrorIs(t, err, ErrNoTool)
				require.ErrorContains(t, err, missing)
			})
			d.requireUntouched()
		})
	}
}
