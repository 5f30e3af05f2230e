package mount

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	require.NoError(t, err)
	return n
}

// inUse tells whether the volume has users. If that cannot be told, it has.
func (h *Host) inUse(ctx context.Context, disk Device, targets ...string) (bool, error) {
	users, err := h.Users(ctx, disk, targets...)
	return err != nil || len(users) > 0, err
}

// inNewNamespace runs the script in a copy of this mount namespace, as a container or a service has one, and keeps a process there.
// The returned function ends it.
func inNewNamespace(t *testing.T, propagation, script string) (end func()) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--propagation", propagation, "--", "sh", "-e", "-c", script+"\necho ready\nexec sleep 1000")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err, "%s", line)
	require.Equal(t, "ready\n", line)
	return end
}

const bindElsewhere = `d=$(mktemp -d); mount --bind "$VOL" "$d"; `

// inContainer keeps a process that has the volume like a container: by a bind mount of its own.
func inContainer(t *testing.T, path string) (end func()) {
	t.Helper()
	t.Setenv("VOL", path)
	t.Setenv("TMPDIR", t.TempDir())
	return inNewNamespace(t, "slave", bindElsewhere+`mount --make-private "$d"`)
}

// Each case is a way for another process of the machine to get the volume's mount.
func TestAMountThatRemainsAfterUnstageIsUse(t *testing.T) {
	for _, fstype := range FSTypes() {
		for _, c := range []struct {
			name, propagation, script string
			used                      bool // whether Users returns any
			released                  bool // whether the disk is free after Unstage all the same
		}{
			{"a service that follows our mounts", "slave", "true", false, true},
			{"a service that shares our mounts", "shared", "true", false, true},
			{"dockerd's namespace, and one that follows it", "slave", `mount --make-rshared /; unshare --mount --propagation slave sleep 1000 & sleep 0`, false, true},
			{"a namespace cut off, with nobody in the volume", "private", "true", false, true}, // the directory is removed
			{"a namespace cut off, with a process in the volume", "private", `cd "$VOL"`, false, false},
			{"a container", "slave", bindElsewhere + `mount --make-private "$d"`, true, false},
			{"a container whose bind is a peer of ours", "shared", bindElsewhere, true, false},
			{"a container whose bind follows ours", "shared", bindElsewhere + `mount --make-slave "$d"`, true, false},
			{"a container with a whole copy of the host, cut off", "slave", `d=$(mktemp -d); mount --rbind "$PUB" "$d"; mount --make-rprivate "$d"`, false, true},
			{"a container with a whole copy of the host, cut off, with a process in the volume", "slave", `d=$(mktemp -d); mount --rbind "$PUB" "$d"; mount --make-rprivate "$d"; cd "$d/vol"`, false, false},
			{"a container with a whole copy of the host, which follows", "slave", `d=$(mktemp -d); mount --rbind "$PUB" "$d"; mount --make-rslave "$d"`, false, true},
			{"a service that mounted something inside", "slave", `mkdir "$VOL/sub"; mount -t tmpfs none "$VOL/sub"; cd "$VOL"`, true, false},
			{"a directory of it in place of the copy", "private", `d=$(mktemp -d); mount --bind "$VOL" "$d"; mkdir "$d/sub"; umount "$VOL"; mount --bind "$d/sub" "$VOL"; umount "$d"`, true, true},
		} {
			t.Run(fstype+" "+c.name, func(t *testing.T) {
				ctx := context.Background()
				h := newHost(t)
				d := formatted(t, h, fstype)
				path := stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
				t.Setenv("VOL", path)
				t.Setenv("PUB", h.published)
				t.Setenv("TMPDIR", t.TempDir())
				end := inNewNamespace(t, c.propagation, c.script)

				used, err := h.inUse(ctx, d.Device)
				require.NoError(t, err)
				assert.Equal(t, c.used, used)

				require.NoError(t, h.Unstage(ctx, "vol"))
				if c.released {
					d.isFree(h)
					return
				}
				// The kernel says the same.
				busy, err := h.Busy(d.Device)
				require.NoError(t, err)
				require.True(t, busy)
				short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				err = h.WaitFree(short, d.Device)
				require.ErrorIs(t, err, ErrBusy)
				if fstype != "btrfs" || !strings.Contains(c.script, "cd ") { // the device numbers of whose files are not known any more
					require.ErrorContains(t, err, "(sleep), which", "the error names the process")
				}
				used, err = h.inUse(ctx, d.Device)
				require.NoError(t, err)
				assert.True(t, used, "this is not a copy of the staged mount")
				end()
				d.isFree(h)
				used, err = h.inUse(ctx, d.Device)
				require.NoError(t, err)
				assert.False(t, used)
			})
		}
	}
}

// An engine that starts after a crash unmounts the plugin's mounts. Copies that a container has made of them stay.
func TestACopyOfARemovedMountIsNotUse(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	t.Setenv("PUB", h.published)
	t.Setenv("TMPDIR", t.TempDir())
	inNewNamespace(t, "slave", `d=$(mktemp -d); mount --rbind "$PUB" "$d"; mount --make-rprivate "$d"`)
	require.NoError(t, unix.Unmount(path, 0))
	busy, err := h.Busy(d.Device)
	require.NoError(t, err)
	require.True(t, busy, "by the copy")
	used, err := h.inUse(ctx, d.Device)
	require.NoError(t, err)
	assert.False(t, used)
	unstage(t, h, d, "vol") // removes the copy too
}

// A process that has changed its root sees only what is mounted below that.
func TestAllMountsOfAContainerWithAChrootedProcessAreSeen(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	t.Setenv("VOL", stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData}))
	t.Setenv("JAIL", t.TempDir())
	t.Setenv("TMPDIR", t.TempDir())
	end := inNewNamespace(t, "slave", bindElsewhere+`mount --make-private "$d"; mount --bind / "$JAIL"
sleep 1000 & echo ready; exec chroot "$JAIL" sleep 1000`) // the process that has changed its root is read first
	used, err := h.inUse(ctx, d.Device)
	require.NoError(t, err)
	assert.True(t, used)
	end()
	unstage(t, h, d, "vol")
}

func TestAMountThatNoProcessShowsIsUse(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC) // in no namespace
	require.NoError(t, err)
	require.NoError(t, h.Unstage(ctx, "vol"))
	used, err := h.inUse(ctx, d.Device)
	require.NoError(t, err)
	assert.True(t, used)
	require.NoError(t, unix.Close(fd))
	d.isFree(h)
}

// A pulled disk loses its node at once, but the kernel keeps its file system.
func TestADeviceWithoutANodeIsBusyWhileItsFileSystemIsMounted(t *testing.T) {
	h := newHost(t)
	for _, fstype := range FSTypes() {
		d := formatted(t, h, fstype)
		stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
		pulled := d.Device
		pulled.Path += "-pulled"
		busy, err := h.Busy(pulled)
		require.NoError(t, err)
		assert.True(t, busy, fstype)
		unstage(t, h, d, "vol")
		busy, err = h.Busy(pulled)
		require.NoError(t, err)
		assert.False(t, busy, fstype)
	}
}

func TestEverythingIsInUseIfProcessesAreHidden(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	inUse := func() bool {
		used, err := h.inUse(ctx, d.Device)
		require.NoError(t, err)
		return used
	}
	require.False(t, inUse())

	h.proc = t.TempDir()
	fake := func(pid, table string) {
		require.NoError(t, os.MkdirAll(filepath.Join(h.proc, pid), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(h.proc, pid, "mountinfo"), []byte(table), 0o600))
	}
	fake("7", "")
	assert.True(t, inUse(), "process 1 is hidden")
	fake("1", "")
	assert.False(t, inUse())
	require.NoError(t, os.Mkdir(filepath.Join(h.proc, "8"), 0o700)) // ended: no table
	assert.False(t, inUse())
	require.NoError(t, os.MkdirAll(filepath.Join(h.proc, "9", "mountinfo"), 0o700)) // cannot be read
	assert.True(t, inUse())

	h.proc = filepath.Join(h.proc, "nowhere")
	used, err := h.inUse(ctx, d.Device)
	require.Error(t, err)
	assert.True(t, used)
	unstage(t, h, d, "vol")
}

func TestADeviceThatACallWorksOnIsBusy(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, ext4Size)
	err := h.Format(context.Background(), d.Device, FormatSpec{FSType: "ext4", Size: d.Size, Begin: func(ctx context.Context) error {
		busy, err := h.Busy(d.Device)
		require.NoError(t, err)
		assert.True(t, busy)
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		_, err = h.Stage(short, d.Device, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return nil
	}})
	require.NoError(t, err)
	d.isFree(h)
}
