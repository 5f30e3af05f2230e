package local

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

func create(t *testing.T, p *Provider, name string, size int64) *providers.Volume {
	t.Helper()
	v, err := p.Create(t.Context(), providers.Spec{Name: name, Size: size})
	require.NoError(t, err)
	return v
}

func attach(t *testing.T, p *Provider, v *providers.Volume) string {
	t.Helper()
	require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
	devices, err := p.loopsOf(v.ID)
	require.NoError(t, err)
	require.Len(t, devices, 1)
	return devices[0]
}

func TestDevicesBypassTheCacheAndShowLargeSectors(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	device := attach(t, p, v)
	for file, want := range map[string]string{
		"loop/dio": "1", "loop/autoclear": "0", "queue/logical_block_size": "4096", "loop/partscan": "0",
	} {
		data, err := os.ReadFile(filepath.Join("/sys/block", device, file))
		require.NoError(t, err)
		assert.Equal(t, want, strings.TrimSpace(string(data)), file)
	}
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
}

// The volume's mount may be a container's own, in a mount namespace that nobody here can see.
func TestDetachNeverTakesWhatTheKernelHolds(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	v := create(t, a, "db", smallest)
	device := "/dev/" + attach(t, a, v)
	run(t, "mkfs.ext4", "-q", device)
	mnt := t.TempDir()

	container := exec.Command("unshare", "--mount", "--propagation", "private",
		"sh", "-c", `mount "$1" "$2" && echo mounted && cat`, "sh", device, mnt)
	in, err := container.StdinPipe()
	require.NoError(t, err)
	out, err := container.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, container.Start())
	t.Cleanup(func() { _ = in.Close(); _ = container.Wait() })
	_, err = io.ReadFull(out, make([]byte, len("mounted\n")))
	require.NoError(t, err)

	for _, p := range []*Provider{a, b} {
		for _, force := range []bool{false, true} {
			err := p.Detach(t.Context(), v.ID, "a", force)
			require.ErrorIs(t, err, providers.ErrBusy)
			require.ErrorContains(t, err, device)
		}
	}
	require.ErrorIs(t, b.Delete(t.Context(), v.ID), providers.ErrHeld)
	require.True(t, found(t, b, "db").HeldBy("a"))
	require.NoError(t, providertest.Attach(t.Context(), a, v.ID))

	require.NoError(t, in.Close())
	require.NoError(t, container.Wait())
	require.NoError(t, b.Detach(t.Context(), v.ID, "a", true))
}

// udev and blkid open devices in passing; the kernel then detaches only when they are done.
func TestDetachWaitsForWhoeverHasTheDeviceOpen(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	device := attach(t, p, v)
	reader, err := os.Open("/dev/" + device)
	require.NoError(t, err)
	defer reader.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = p.Detach(ctx, v.ID, "a", false)
	require.ErrorIs(t, err, providers.ErrBusy)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.True(t, found(t, p, "db").HeldBy("a"))

	// Attached again meanwhile, it must not vanish when the reader goes.
	require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
	reader.Close()
	kept, err := p.backing(device)
	require.NoError(t, err)
	require.Equal(t, v.Serial, kept)

	reader, err = os.Open("/dev/" + device)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Detach(t.Context(), v.ID, "a", false) }()
	for { // until the kernel has noted that the device goes at last close
		data, err := os.ReadFile(filepath.Join("/sys/block", device, "loop/autoclear"))
		require.NoError(t, err)
		if strings.TrimSpace(string(data)) == "1" {
			break
		}
	}
	reader.Close()
	require.NoError(t, <-done)
	require.False(t, found(t, p, "db").Held())
}

// A managed plugin's mount namespace ends with it; the attachment does not.
func TestAttachmentsOutliveTheMountNamespace(t *testing.T) {
	dir, bound := t.TempDir(), t.TempDir()
	m := newMachine(t, dir)
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private",
		"sh", "-c", `mount --bind "$1" "$2" && exec "$3"`, "sh", dir, bound, os.Args[0])
	cmd.Env = append(os.Environ(), "CHILD=operation", "OP=attach", "AT=0", "DIR="+bound, "NODE=a", "GORACE=atexit_sleep_ms=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)

	devices, err := p.loopsOf(v.ID)
	require.NoError(t, err)
	require.Len(t, devices, 1)
	path, err := os.ReadFile(filepath.Join("/sys/block", devices[0], "loop/backing_file"))
	require.NoError(t, err)
	t.Logf("in another namespace the backing file is %q", path)
	assert.Equal(t, attach(t, p, v), devices[0], "the device is used again")
	require.True(t, found(t, p, "db").HeldBy("a"))
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
}

func TestAfterARebootTheNodeItselfStartsAfresh(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a := m.provider(t, "a", "main")
	v, w := create(t, a, "db", smallest), create(t, a, "other", smallest)
	attach(t, a, v)
	attach(t, a, w)
	m.reboot(t, "a")

	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	assert.False(t, found(t, a, "db").Held(), "to the node itself")
	assert.True(t, found(t, b, "db").HeldBy("a"), "to others, who must ask")
	var held *providers.HeldError
	require.ErrorAs(t, providertest.Attach(t.Context(), b, v.ID), &held)
	assert.Equal(t, "a", held.Node)
	require.ErrorIs(t, b.Delete(t.Context(), v.ID), providers.ErrHeld)
	require.ErrorIs(t, b.Detach(t.Context(), v.ID, "a", false), providers.ErrBusy)
	state, err := b.NodeState(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, providers.Stopped, state.Life)
	assert.Contains(t, state.Evidence, "rebooted")

	attach(t, a, v)
	state, err = b.NodeState(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, providers.Running, state.Life)
	assert.Equal(t, "start its engine again, or reboot this machine", state.Remedy)
	require.ErrorIs(t, providertest.Attach(t.Context(), b, v.ID), providers.ErrHeld)
	assert.False(t, found(t, b, "other").Held(), "now that the node is back, what it no longer holds is free")
	attach(t, b, w)
	require.NoError(t, b.Detach(t.Context(), w.ID, "b", false))
	require.NoError(t, a.Detach(t.Context(), v.ID, "a", false))
}

// reboot puts what the node holds, and its last visit, into an earlier boot, and takes its devices.
func (m *machine) reboot(t *testing.T, node string) {
	t.Helper()
	p := m.provider(t, node, "main")
	ids, err := p.disks.all()
	require.NoError(t, err)
	for _, id := range ids {
		d, err := p.disks.read(id)
		require.NoError(t, err)
		if d.Holder != nil && d.Holder.Node == node {
			require.NoError(t, p.clear(t.Context(), id))
			d.Holder.Boot = "before the reboot"
			require.NoError(t, p.disks.write(d))
		}
	}
	require.NoError(t, p.disks.replace(p.visitFile(node), []byte(`{"boot":"before the reboot"}`)))
}

// The boot id of a container can change without its kernel's. What the kernel has attached is attached.
func TestAnotherBootIDIsNoEvidenceAgainstTheKernel(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	b.boot = "the same kernel in another container"
	v := create(t, a, "db", smallest)
	device := "/dev/" + attach(t, a, v)
	holder, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	require.NoError(t, err)
	defer holder.Close()
	require.ErrorIs(t, b.Detach(t.Context(), v.ID, "a", true), providers.ErrBusy)
	require.ErrorIs(t, providertest.Attach(t.Context(), b, v.ID), providers.ErrHeld)

	a = m.provider(t, "a", "main")
	a.boot = "yet another"
	assert.True(t, found(t, a, "db").HeldBy("a"))
	require.NoError(t, providertest.Attach(t.Context(), a, v.ID))
	require.True(t, found(t, a, "db").HeldBy("a"))
	holder.Close()
	require.NoError(t, a.Detach(t.Context(), v.ID, "a", false))
}

func TestOnASharedFileSystemAnotherBootIsUnclear(t *testing.T) {
	upper, work, mnt := t.TempDir(), t.TempDir(), t.TempDir()
	base := mounted(t, "ext4", 64<<20)
	for dir, name := range map[*string]string{&upper: "upper", &work: "work"} {
		*dir = filepath.Join(base, name)
		require.NoError(t, os.Mkdir(*dir, 0o700))
	}
	run(t, "mount", "-t", "overlay", "overlay", "-o", "lowerdir="+t.TempDir()+",upperdir="+upper+",workdir="+work, mnt)
	t.Cleanup(func() { run(t, "umount", mnt) })
	m := newMachine(t, mnt)
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	a.overcommit = true
	v := create(t, a, "db", smallest)
	device := attach(t, a, v)
	assert.Equal(t, device, attach(t, a, v))
	m.reboot(t, "a")
	state, err := b.NodeState(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, providers.Unclear, state.Life)
	assert.NotEmpty(t, state.Evidence)
}

// Somebody at a shell is no node, and is not taken for one.
func TestAnImageThatSomebodyElseAttachedIsHeld(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	device := strings.TrimSpace(run(t, "losetup", "--find", "--show", p.disks.path(v.ID, ready)))
	for name, call := range map[string]func() error{
		"attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
		"delete": func() error { return p.Delete(t.Context(), v.ID) },
		"forget": func() error { return p.Forget(t.Context(), v.ID) },
	} {
		err := call()
		require.ErrorIs(t, err, providers.ErrHeld, name)
		require.ErrorContains(t, err, device)
	}
	run(t, "losetup", "--detach", device)
	require.NoError(t, p.Delete(t.Context(), v.ID))
}

// A copy of the whole directory, attached elsewhere: two devices would have one identity.
func TestAnotherFileOfTheSameNameIsRefused(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	other := filepath.Join(t.TempDir(), v.Serial)
	require.NoError(t, os.WriteFile(other, make([]byte, smallest), 0o600))
	device := strings.TrimSpace(run(t, "losetup", "--find", "--show", other))
	err := providertest.Attach(t.Context(), p, v.ID)
	require.ErrorIs(t, err, providers.ErrBusy)
	require.ErrorContains(t, err, device)
	run(t, "losetup", "--detach", device)
	require.False(t, found(t, p, "db").Held())
}

func TestADeviceWithoutANodeIsExplained(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	p.dev = t.TempDir()
	err := providertest.Attach(t.Context(), p, v.ID)
	require.ErrorContains(t, err, "bind the host's /dev")
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.False(t, found(t, p, "db").Held(), "a failed attach leaves no holder")

	require.NoError(t, unix.Mknod(filepath.Join(p.dev, "loop-control"), unix.S_IFCHR|0o600, int(unix.Mkdev(10, 237))))
	require.ErrorContains(t, providertest.Attach(t.Context(), p, v.ID), "bind the host's /dev")
}

func TestAFullFileSystemPromisesNothing(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := mounted(t, fstype, 512<<20)
			m := newMachine(t, dir)
			p := m.provider(t, "a", "main")
			v := create(t, p, "db", 200<<20)
			_, err := p.Create(t.Context(), providers.Spec{Name: "more", Size: 300 << 20})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			for _, word := range []string{"300 MiB", "200 MiB are promised", "free in " + dir, "LOCAL_OVERCOMMIT"} {
				require.ErrorContains(t, err, word)
			}
			notFound(t, p, "more")
			_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 500 << 20})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			require.Equal(t, v, found(t, p, "db"))

			// What is written is no longer promised, and no longer free.
			before, err := p.promised()
			require.NoError(t, err)
			image, err := os.OpenFile(p.disks.path(v.ID, ready), os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = image.Write(make([]byte, 150<<20))
			require.NoError(t, errors.Join(err, image.Sync(), image.Close()))
			after, err := p.promised()
			require.NoError(t, err)
			assert.InDelta(t, 150<<20, before-after, 1<<20)

			// A snapshot needs as much again, shared or not: the volume may be written anew.
			_, err = p.Snapshot(t.Context(), v.ID, "one")
			require.NoError(t, err)
			_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: 150 << 20})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			_, err = p.Snapshot(t.Context(), v.ID, "two")
			require.ErrorIs(t, err, providers.ErrNoSpace)
			require.NoError(t, p.DeleteSnapshot(t.Context(), firstSnapshot(p)))
			_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: 150 << 20})
			require.NoError(t, err)

			p.overcommit = true
			create(t, p, "promises", 1<<30)
			assert.Len(t, list(t, p), 3)
		})
	}
}

func list(t *testing.T, p *Provider) []*providers.Volume {
	t.Helper()
	l, err := p.List(t.Context())
	require.NoError(t, err)
	return l
}

// Out of space for so much as a description, changes fail clearly and what there is stays.
func TestWithoutAByteLeftNothingIsLost(t *testing.T) {
	dir := mounted(t, "ext4", 64<<20)
	m := newMachine(t, dir)
	p := m.provider(t, "a", "main")
	p.overcommit = true
	v := create(t, p, "db", smallest)
	attach(t, p, v)
	fill, err := os.Create(filepath.Join(dir, "fill"))
	require.NoError(t, err)
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = fill.Write(make([]byte, size))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
	}
	require.NoError(t, fill.Close())

	require.ErrorIs(t, p.Mark(t.Context(), v.ID, "key", strings.Repeat("x", 255)), providers.ErrNoSpace)
	_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: smallest})
	require.ErrorIs(t, err, providers.ErrNoSpace)
	notFound(t, p, "more")
	require.Equal(t, "db", list(t, p)[0].Name)

	require.NoError(t, os.Remove(fill.Name()))
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
	require.NoError(t, p.Mark(t.Context(), v.ID, "key", "x"))
	create(t, p, "more", smallest)
	m.clean(t)
}

func TestAReadOnlyDirectoryIsReadAndSaysSo(t *testing.T) {
	dir := mounted(t, "ext4", 64<<20)
	m := newMachine(t, dir)
	v := create(t, m.provider(t, "a", "main"), "db", smallest)
	run(t, "mount", "-o", "remount,ro", dir)
	p := m.provider(t, "a", "main")
	_, err := p.Node(t.Context())
	require.NoError(t, err)
	require.Equal(t, v, found(t, p, "db"))
	require.Len(t, list(t, p), 1)
	for name, call := range map[string]func() error{
		"create": func() error {
			_, err := p.Create(t.Context(), providers.Spec{Name: "more", Size: smallest})
			return err
		},
		"attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
		"mark":   func() error { return p.Mark(t.Context(), v.ID, "key", "x") },
		"delete": func() error { return p.Delete(t.Context(), v.ID) },
	} {
		err := call()
		require.ErrorIs(t, err, unix.EROFS, name)
		require.ErrorContains(t, err, dir, name)
	}
	_, err = New(Config{Dir: filepath.Join(dir, "sub"), Node: "a", Cluster: "main"})
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, "LOCAL_DIR")
}

func TestADirectoryThatWentAwayIsNotEmpty(t *testing.T) {
	m := newMachine(t, filepath.Join(t.TempDir(), "volumes"))
	p := m.provider(t, "a", "main")
	create(t, p, "db", smallest)
	require.NoError(t, os.Rename(m.dir, m.dir+".away"))
	_, err := p.Find(t.Context(), "db")
	require.ErrorIs(t, err, providers.ErrUnavailable)
	require.NotErrorIs(t, err, providers.ErrNotFound)
	_, err = p.List(t.Context())
	require.ErrorIs(t, err, providers.ErrUnavailable)
	require.Error(t, providertest.Attach(t.Context(), p, "vol-0123456789abcdef"))
	require.NoError(t, os.Rename(m.dir+".away", m.dir))
	found(t, p, "db")
}

func TestADamagedDescriptionHarmsNoOtherVolume(t *testing.T) {
	damages := map[string]func(file string) error{
		"torn":      func(file string) error { return os.Truncate(file, 40) },
		"empty":     func(file string) error { return os.Truncate(file, 0) },
		"missing":   os.Remove,
		"of newer":  func(file string) error { return os.WriteFile(file, []byte(`{"version":2,"novelty":[]}`), 0o600) },
		"of others": func(file string) error { return os.WriteFile(file, []byte(`{"version":1,"id":"x","size":1}`), 0o600) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			p := m.provider(t, "a", "main")
			v, other := create(t, p, "db", smallest), create(t, p, "other", smallest)
			file := p.disks.path(v.ID, ".json")
			require.NoError(t, damage(file))
			calls := map[string]func() error{
				"find":   func() error { _, err := p.Find(t.Context(), "db"); return err },
				"create": func() error { _, err := p.Create(t.Context(), providers.Spec{Name: "db"}); return err },
				"attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
				"delete": func() error { return p.Delete(t.Context(), v.ID) },
			}
			for name, call := range calls {
				err := call()
				require.ErrorIs(t, err, errDamaged, name)
				require.NotErrorIs(t, err, providers.ErrNotFound, name)
				require.ErrorContains(t, err, file, name)
			}
			volumes, err := p.List(t.Context())
			require.ErrorIs(t, err, errDamaged)
			require.ErrorContains(t, err, file)
			assert.Equal(t, []*providers.Volume{other}, volumes)

			create(t, p, "more", smallest)
			attach(t, p, other)
			require.NoError(t, p.Detach(t.Context(), other.ID, "a", false))
			_, err = os.Stat(p.disks.path(v.ID, ready))
			require.NoError(t, err, "the image stays")
		})
	}
}

func TestALostImageIsNotAVolumeThatNeverWas(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	image := p.disks.path(v.ID, ready)
	require.NoError(t, os.Rename(image, image+".aside"))
	_, err := p.Find(t.Context(), "db")
	require.ErrorIs(t, err, errLost)
	require.NotErrorIs(t, err, providers.ErrNotFound)
	require.ErrorContains(t, err, image)
	_, err = p.Create(t.Context(), providers.Spec{Name: "db"})
	require.ErrorIs(t, err, errLost)
	_, err = p.List(t.Context())
	require.ErrorIs(t, err, errLost)

	require.NoError(t, os.Rename(image+".aside", image))
	require.Equal(t, v, found(t, p, "db"))

	require.NoError(t, os.Truncate(image, smallest/2))
	require.ErrorIs(t, providertest.Attach(t.Context(), p, v.ID), errDamaged)
	require.False(t, found(t, p, "db").Held())

	require.NoError(t, os.Remove(image))
	require.NoError(t, p.Delete(t.Context(), v.ID))
	notFound(t, p, "db")
	m.clean(t)
}

func TestACopyKeepsHoles(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", 1<<30)
	image, err := os.OpenFile(p.disks.path(v.ID, ready), os.O_RDWR, 0)
	require.NoError(t, err)
	defer image.Close()
	for _, at := range []int64{0, 512<<20 + 8192, 1<<30 - 4096} {
		_, err := image.WriteAt([]byte("here"), at)
		require.NoError(t, err)
	}
	snap, err := p.Snapshot(t.Context(), v.ID, "one")
	require.NoError(t, err)
	c, err := p.Create(t.Context(), providers.Spec{Name: "copy", Snapshot: snap.ID, Size: 2 << 30})
	require.NoError(t, err)
	for file, size := range map[string]int64{p.snaps.path(snap.ID, ready): 1 << 30, p.disks.path(c.ID, ready): 2 << 30} {
		f, err := os.Open(file)
		require.NoError(t, err)
		defer f.Close()
		info, err := f.Stat()
		require.NoError(t, err)
		assert.Equal(t, size, info.Size())
		assert.LessOrEqual(t, allocated(info), int64(64<<10))
		for _, at := range []int64{0, 512<<20 + 8192, 1<<30 - 4096} {
			word := make([]byte, 4)
			_, err := f.ReadAt(word, at)
			require.NoError(t, err)
			assert.Equal(t, "here", string(word))
		}
	}
}

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

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"vol-0123456789abcdef","cluster":"main","name":"db","size":16777216,` +
		`"created":"2026-11-23T16:14:31Z","record":{"layout":"data"},"holder":{"node":"a","boot":"b","at":"2026-11-23T16:14:31Z"}}`))
	f.Add([]byte(`{"version":1,"id":"vol-0123456789abcdef","size":1,"formerly":{"cluster":"main","name":"db"}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"size":1} {}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			return
		}
		// What is accepted is written back, and read as the same.
		s := imageDir{dir: t.TempDir(), prefix: "vol-"}
		require.NoError(t, s.make())
		m.ID = s.newID()
		require.NoError(t, s.write(m))
		again, err := s.read(m.ID)
		require.NoError(t, err)
		want, err := json.Marshal(m)
		require.NoError(t, err)
		got, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	})
}

// As after losetup -d by hand.
func TestALostDeviceComesWithTheNextAttach(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	run(t, "losetup", "--detach", "/dev/"+attach(t, p, v))
	require.Equal(t, providers.Attachment{Node: "a", State: providers.Attached}, found(t, p, "db").Attachment)
	attach(t, p, v)
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
}

func TestSweepingAHalfMadeVolumeLeavesItsSuccessorTheName(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	dead := &meta{Cluster: "main", Name: "db", Size: smallest}
	f, err := p.disks.begin(dead)
	require.NoError(t, err)
	defer f.Close() // held while its successor is made, as by somebody who looks at it
	require.NoError(t, os.Remove(p.disks.link("main", "db")))
	v := create(t, p, "db", smallest)
	require.True(t, p.disks.has(dead.ID, making))
	f.Close()
	require.NoError(t, p.tidy(t.Context()))
	require.Equal(t, v, found(t, p, "db"))
	m.clean(t)
}

func TestAReaderNeverTakesAVolumeOnTheMoveForDamaged(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p, reader := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for range 150 {
			v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: smallest})
			if err == nil {
				err = p.Delete(t.Context(), v.ID)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	id := "vol-0123456789abcdef"
	for {
		v, err := reader.Find(t.Context(), "db")
		if err == nil {
			id = v.ID
		} else {
			require.ErrorIs(t, err, providers.ErrNotFound)
		}
		if err := reader.Mark(t.Context(), id, "key", "x"); err != nil {
			require.ErrorIs(t, err, providers.ErrNotFound)
		}
		list(t, reader)
		select {
		case err := <-done:
			require.NoError(t, err)
			return
		default:
		}
	}
}
