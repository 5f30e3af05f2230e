package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const asServer = "copy-tree"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == asServer {
		if err := Serve(context.Background(), os.Args[2], os.Args[3], os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func silent(Progress) {}

// directories are a tree with all that a tree can have, and an empty directory of another owner.
func directories(t *testing.T) (source, target string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	source, target = filepath.Join(t.TempDir(), "source"), t.TempDir()
	script := `
mkdir "$1"; cd "$1"; umask 022
mkdir -p a/b "a dir with spaces"; printf hello >a/b/file; : >empty
printf 'not\nprintable\001' >"$(printf 'new\nline\377')"
ln a/b/file "a dir with spaces/other name"; ln -s ../nowhere a/link; ln empty a/empty
mkfifo fifo; mknod zero c 1 5
chown 999:998 a/b/file; chmod 4751 empty; chown 1:2 a; chmod 1777 a; chown -h 5:6 a/link
truncate --size 64M sparse; printf x | dd of=sparse bs=1 seek=40000000 conv=notrunc status=none
dd if=/dev/urandom of=random bs=1M count=3 status=none
touch --date 2001-02-03T04:05:06.7 a/b/file; touch --no-dereference --date 1999-01-01 a/link
chown 70:71 .; chmod 2750 .; touch --date 2002-03-04 a/b a .`
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", script, "sh", source).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, unix.Lsetxattr(filepath.Join(source, "random"), "trusted.blockvol", []byte("value"), 0))
	require.NoError(t, unix.Lsetxattr(source, "trusted.top", []byte("value"), 0))
	return source, target
}

// requireSame compares two trees with the programs of the machine.
func requireSame(t *testing.T, source, target string) {
	t.Helper()
	list := func(dir string) string {
		// Sorted, with inodes as the first name of each file.
		out, err := exec.CommandContext(t.Context(), "sh", "-ec", `cd "$1"; find . -path ./lost+found -prune -o -printf '%P|%y|%m|%U:%G|%T@|%l|%n\n' | grep -v '^lost+found' | sed 's/|\(d|.*\)|[0-9]*$/|\1/' | LC_ALL=C sort
find . -type f -path './[!l]*' -exec sha256sum {} + | LC_ALL=C sort; getfattr -Rdm- . 2>/dev/null || true`, "sh", dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Equal(t, list(source), list(target))
}

func TestACopyIsTheSame(t *testing.T) {
	source, target := directories(t)
	require.NoError(t, os.Mkdir(filepath.Join(target, lostAndFound), 0o700))
	before := fmt.Sprint(mustStat(t, source))
	var phases []Phase
	size, err := Apart(t.Context(), source, target, func(p Progress) { phases = append(phases, p.Phase) }, asServer)
	require.NoError(t, err)
	assert.EqualValues(t, 14, size.Files)
	assert.Contains(t, phases, Verifying)
	assert.Equal(t, before, fmt.Sprint(mustStat(t, source)), "the source is as it was, its access times too")
	requireSame(t, source, target)
	for name, want := range map[string]string{"random": "trusted.blockvol", ".": "trusted.top"} {
		value := make([]byte, 10)
		n, err := unix.Lgetxattr(filepath.Join(target, name), want, value)
		require.NoError(t, err)
		assert.Equal(t, "value", string(value[:n]))
	}
	var sparse unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(target, "sparse"), &sparse))
	assert.Less(t, sparse.Blocks*512, int64(1<<20), "holes stay holes")

	requireSame(t, source, target)
	require.NoError(t, os.Chmod(target, 0o700))
	again, err := Apart(t.Context(), source, target, silent, asServer)
	require.NoError(t, err, "it was killed before it could answer")
	assert.Equal(t, size, again)
	requireSame(t, source, target)
	require.NoError(t, os.WriteFile(filepath.Join(target, "empty"), []byte("x"), 0o600))
	_, err = Apart(t.Context(), source, target, silent, asServer)
	require.ErrorIs(t, err, ErrNotEmpty, "another tree with the same names at its top")
}

// mustStat is what the kernel tells of each file of a tree, access times included.
func mustStat(t *testing.T, root string) (all []unix.Stat_t) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		err = errors.Join(err, unix.Lstat(path, &st))
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			st.Atim = unix.Timespec{} // which this look changes
		}
		all = append(all, st)
		return err
	}))
	return all
}

func TestATargetWithContentsIsLeftAlone(t *testing.T) {
	for name, prepare := range map[string]func(source, target string) error{
		"a file":                  func(_, target string) error { return os.WriteFile(filepath.Join(target, "x"), nil, 0o600) },
		"another unfinished copy": func(_, target string) error { return os.MkdirAll(filepath.Join(target, verified, "x"), 0o700) },
		"lost+found of both": func(source, target string) error {
			return errors.Join(os.Mkdir(filepath.Join(source, lostAndFound), 0o700), os.Mkdir(filepath.Join(target, lostAndFound), 0o700))
		},
		"a source with our own name": func(source, _ string) error { return os.Mkdir(filepath.Join(source, unverified), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			source, target := directories(t)
			require.NoError(t, prepare(source, target))
			there, err := names(target)
			require.NoError(t, err)
			_, err = Copy(t.Context(), source, target, silent)
			require.ErrorIs(t, err, ErrNotEmpty)
			now, err := names(target)
			require.NoError(t, err)
			assert.Equal(t, there, now)
		})
	}
}

func TestATargetThatIsTooSmallIsLeftEmpty(t *testing.T) {
	for _, limit := range []string{"size=1m", "nr_inodes=5"} {
		source, target := directories(t)
		require.NoError(t, unix.Mount("tmpfs", target, "tmpfs", 0, limit))
		_, err := Copy(t.Context(), source, target, silent)
		there, namesErr := names(target)
		require.NoError(t, unix.Unmount(target, 0))
		require.ErrorIs(t, err, ErrNoSpace, limit)
		require.NoError(t, namesErr)
		assert.Empty(t, there)
	}
}

func TestADifferenceIsFound(t *testing.T) {
	for name, change := range map[string]string{
		"a byte":           `printf y | dd of=random bs=1 seek=2000000 conv=notrunc status=none; touch --reference "$1/random" random`,
		"a byte in a hole": `printf y | dd of=sparse bs=1 seek=1000 conv=notrunc status=none; touch --reference "$1/sparse" sparse`,
		"a size":           `truncate --size 64000000 sparse; touch --reference "$1/sparse" sparse`,
		"a file more":      `: >a/b/more; touch --reference "$1/a/b" a/b`,
		"a file less":      `rm a/empty`,
		"a mode":           `chmod 4750 empty`,
		"an owner":         `chown 998 a/b/file`,
		"a group":          `chgrp 997 a/b/file`,
		"a link's owner":   `chown -h 6:6 a/link`,
		"a time":           `touch --date 2001-02-03T04:05:07.7 a/b/file`,
		"a part of a time": `touch --date 2001-02-03T04:05:06.8 a/b/file`,
		"a link":           `ln -sf ../elsewhere a/link; chown -h 5:6 a/link; touch --no-dereference --date 1999-01-01 a/link`,
		"a kind":           `rm fifo; : >fifo`,
		"a device":         `rm zero; mknod zero c 1 3; touch --reference "$1/zero" zero`,
		"a name less":      `cp --preserve=all a/b/file f; mv f a/b/file; touch --reference "$1/a/b" a/b`,
		"a name too many":  `rm empty; ln a/b/file empty`,
		"an attribute":     `setfattr -n trusted.blockvol -v other random`,
		"the top's mode":   `chmod 2755 .`,
		"the top's owner":  `chown 71 .`,
		"the top's time":   `touch --date 2002-03-05 .`,
	} {
		t.Run(name, func(t *testing.T) {
			source, target := directories(t)
			_, err := Copy(t.Context(), source, target, silent)
			require.NoError(t, err)
			require.NoError(t, compare(t.Context(), source, target, Size{}, true, silent))
			if strings.HasPrefix(change, "setfattr") {
				require.NoError(t, unix.Lsetxattr(filepath.Join(target, "random"), "trusted.blockvol", []byte("other"), 0))
			} else {
				out, err := exec.CommandContext(t.Context(), "sh", "-ec", `cd "$2"; `+change, "sh", source, target).CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			require.ErrorIs(t, compare(t.Context(), source, target, Size{}, true, silent), ErrDiffers)
		})
	}
}

// What a copy leaves behind that was killed.
func TestACopyThatWasCutShortStartsOver(t *testing.T) {
	source, target := directories(t)
	half := filepath.Join(target, unverified)
	require.NoError(t, os.MkdirAll(filepath.Join(half, "a", "other"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, "random"), []byte("half"), 0o600))
	_, err := Copy(t.Context(), source, target, silent)
	require.NoError(t, err)
	requireSame(t, source, target)
}

func TestACopyThatWasComparedIsFinished(t *testing.T) {
	source, target := directories(t)
	require.NoError(t, copyTo(t.Context(), source, filepath.Join(target, unverified), Size{}, silent))
	require.NoError(t, os.Rename(filepath.Join(target, unverified), filepath.Join(target, verified)))
	require.NoError(t, os.Rename(filepath.Join(target, verified, "a"), filepath.Join(target, "a")))
	_, err := Copy(t.Context(), source, target, silent)
	require.NoError(t, err)
	requireSame(t, source, target)
}

func TestACopyThatWasComparedAndChangedSinceIsNoSuccess(t *testing.T) {
	source, target := directories(t)
	require.NoError(t, copyTo(t.Context(), source, filepath.Join(target, verified), Size{}, silent))
	require.NoError(t, os.Chmod(filepath.Join(target, verified, "random"), 0o600))
	_, err := Copy(t.Context(), source, target, silent)
	require.ErrorIs(t, err, ErrDiffers)
}

// The process is killed sooner and later, until one has the time to end.
func TestKilledAtAnyTimeTheNextCopyEndsTheSame(t *testing.T) {
	source, target := directories(t)
	kills := 0
	for wait := time.Millisecond; ; wait += wait / 3 {
		cmd := exec.Command("unshare", "--mount", "/proc/self/exe", asServer, source, target)
		exe, err := os.Executable()
		require.NoError(t, err)
		cmd.Args[2] = exe
		cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		var out bytes.Buffer
		cmd.Stdout = &out
		require.NoError(t, cmd.Start())
		kill := time.AfterFunc(wait, func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
		err = cmd.Wait()
		if kill.Stop() && err == nil {
			require.Contains(t, out.String(), `"size":`)
			break
		}
		kills++
		there, err := names(target)
		require.NoError(t, err)
		if len(there) > 0 && there[0] == unverified {
			require.Len(t, there, 1, "nothing is at the top before the copy was compared")
		}
	}
	t.Logf("killed %d times", kills)
	requireSame(t, source, target)
}

// withCP makes cp another program, which can use the machine's as "$cp".
func withCP(t *testing.T, script string) {
	t.Helper()
	cp, err := exec.LookPath("cp")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cp"), []byte("#!/bin/sh\ncp="+cp+"\n"+script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestACopyThatDiffersIsNotShown(t *testing.T) {
	source, target := directories(t)
	withCP(t, `"$cp" "$@" || exit; case $* in *--version*) ;; *) for last; do :; done; chmod 600 "$last/random" ;; esac`)
	_, err := Copy(t.Context(), source, target, silent)
	require.ErrorIs(t, err, ErrDiffers)
	there, err := names(target)
	require.NoError(t, err)
	assert.Equal(t, []string{unverified}, there)
}

func TestWhatCannotBeCopiedIsAnError(t *testing.T) {
	source, target := directories(t)
	withCP(t, `case $* in *--version*) exec "$cp" "$@" ;; esac; echo "cp: no permission" >&2; exit 1`)
	_, err := Copy(t.Context(), source, target, silent)
	require.ErrorContains(t, err, "the copy failed: exit status 1: cp: no permission")
}

func TestAnotherCPIsRefused(t *testing.T) {
	source, target := directories(t)
	withCP(t, `echo "BusyBox v1.36.1 multi-call binary."`)
	_, err := Copy(t.Context(), source, target, silent)
	require.ErrorIs(t, err, ErrNoTool)
}

func TestAnInterruptEndsTheCopy(t *testing.T) {
	source, target := directories(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupt := errors.New("interrupted")
	cancel(interrupt)
	_, err := Copy(ctx, source, target, silent)
	require.Error(t, err)
	_, err = Copy(t.Context(), source, target, silent)
	require.NoError(t, err)
	requireSame(t, source, target)
}

func TestAnErrorOfTheOtherProcessKeepsItsKind(t *testing.T) {
	source, target := directories(t)
	require.NoError(t, os.WriteFile(filepath.Join(target, "x"), nil, 0o600))
	_, err := Apart(t.Context(), source, target, silent, asServer)
	require.ErrorIs(t, err, ErrNotEmpty)
	require.ErrorContains(t, err, "the target is not empty: it has x")
	var out bytes.Buffer
	require.NoError(t, Serve(t.Context(), filepath.Join(source, "none"), target, &out))
	assert.Contains(t, out.String(), "no such file or directory")
}
