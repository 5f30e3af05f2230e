package local

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

// DeleteSnapshot while Create copies from it.
func TestASnapshotIsNotDeletedUnderACopy(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := t.TempDir()
			if fstype == "xfs" {
				dir = mounted(t, "xfs", 1<<30)
			}
			m := newMachine(t, dir)
			a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
			v := create(t, a, "db", smallest)
			img := a.disks.path(v.ID, ready)
			f, err := os.OpenFile(img, os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(bytes.Repeat([]byte("precious"), 1<<17), 0)
			require.NoError(t, err)
			require.NoError(t, f.Sync())
			f.Close()
			s, err := a.Snapshot(t.Context(), v.ID, "x")
			require.NoError(t, err)
			// the instant after Create has opened the snapshot and let go of the lock
			begun, image, source, err := a.begin(t.Context(), providers.Spec{Name: "copy", Snapshot: s.ID})
			require.NoError(t, err)
			short, cancel := context.WithTimeout(t.Context(), time.Second)
			_ = b.DeleteSnapshot(short, s.ID) // it may wait, or refuse
			cancel()
			err = fill(t.Context(), image, source)
			if err == nil {
				err = a.disks.commit(begun.ID, image)
			}
			image.Close()
			source.Close()
			if err != nil {
				return // an error is fine
			}
			c, err := a.Find(t.Context(), "copy")
			require.NoError(t, err)
			data, err := os.ReadFile(a.disks.path(c.ID, ready))
			require.NoError(t, err)
			assert.True(t, bytes.HasPrefix(data, []byte("precious")), "Create succeeded, and the volume is empty")
		})
	}
}

// A device that changes hands between the look and the clear.
func TestDetachLeavesADeviceThatIsAnotherVolumesNow(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a := m.provider(t, "a", "main")
	v, w := create(t, a, "db", smallest), create(t, a, "other", smallest)
	device := attach(t, a, v)
	a.disks.before = func(op, path string) error {
		if op == "clear" && path == device {
			a.disks.before = nil
			run(t, "losetup", "-d", "/dev/"+device) // as errors here tell operators to; or an earlier, lazy clear takes effect
			b := m.provider(t, "b", "main")
			require.NoError(t, providertest.Attach(t.Context(), b, w.ID))
			got, err := b.loopsOf(w.ID)
			require.NoError(t, err)
			require.Equal(t, []string{device}, got)
		}
		return nil
	}
	require.NoError(t, a.Detach(t.Context(), v.ID, "a", false))
	got, err := a.loopsOf(w.ID)
	require.NoError(t, err)
	assert.Equal(t, []string{device}, got, "the other volume, attached to b, has lost its device")
	a.disks.before = nil
	_ = m.provider(t, "b", "main").Detach(t.Context(), w.ID, "b", false)
}

// A copy of the image under another path, attached by the operator and open.
func TestDetachLeavesTheDeviceOfACopy(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a := m.provider(t, "a", "main")
	v := create(t, a, "db", smallest)
	attach(t, a, v)
	backup := filepath.Join(t.TempDir(), v.ID+".img")
	run(t, "cp", "--sparse=always", a.disks.path(v.ID, ready), backup)
	copyDev := strings.TrimSpace(run(t, "losetup", "--find", "--show", backup))
	_ = a.Detach(t.Context(), v.ID, "a", false) // busy, while the copy has the image's name
	out := run(t, "losetup", "-j", backup)
	if assert.NotEmpty(t, out, "the operator's device of a backup was cleared") {
		run(t, "losetup", "-d", copyDev)
		_ = a.Detach(t.Context(), v.ID, "a", false)
	}
}

// An image that was removed by mistake while it is attached.
func TestAHeldVolumeWhoseImageIsLostIsNotDeleted(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	v := create(t, a, "db", smallest)
	device := attach(t, a, v)
	defer run(t, "losetup", "-d", "/dev/"+device)
	require.NoError(t, os.Remove(a.disks.path(v.ID, ready)))
	require.ErrorIs(t, b.Delete(t.Context(), v.ID), providers.ErrHeld)
	_, err := b.Create(t.Context(), providers.Spec{Name: "db", Size: smallest})
	require.Error(t, err, "a second volume of the name")
}

// Power cut after Modify, on btrfs.
func TestAnEnlargementIsDurable(t *testing.T) {
	for _, fstype := range []string{"btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			mdir := t.TempDir()
			mnt := filepath.Join(mdir, "mnt")
			require.NoError(t, os.Mkdir(mnt, 0o700))
			img := filepath.Join(mdir, "image")
			require.NoError(t, os.WriteFile(img, nil, 0o600))
			require.NoError(t, os.Truncate(img, 2<<30))
			run(t, "mkfs."+fstype, "-q", img)
			run(t, "mount", "-o", "loop", img, mnt)
			m := newMachine(t, mnt)
			a := m.provider(t, "a", "main")
			v := create(t, a, "db", smallest)
			unix.Sync()
			_, err := a.Modify(t.Context(), v.ID, providers.Change{Size: 4 * smallest})
			require.NoError(t, err)
			// the disk as a power cut would leave it
			back := filepath.Join(filepath.Dir(mnt), "image")
			cut := filepath.Join(t.TempDir(), "cut")
			loop := strings.SplitN(run(t, "losetup", "-j", back), ":", 2)[0]
			require.NotEmpty(t, loop)
			run(t, "dd", "if="+back, "of="+cut, "bs=1M", "conv=sparse", "status=none")
			at := t.TempDir()
			run(t, "umount", mnt)
			opt := "loop"
			if fstype == "xfs" {
				opt += ",nouuid"
			}
			run(t, "mount", "-o", opt, cut, at)
			defer run(t, "umount", at)
			info, err := os.Stat(filepath.Join(at, "disks", v.ID+".img"))
			require.NoError(t, err)
			d, err := os.ReadFile(filepath.Join(at, "disks", v.ID+".json"))
			require.NoError(t, err)
			if strings.Contains(string(d), "67108864") {
				assert.EqualValues(t, 4*smallest, info.Size(), "described larger than it is: Attach refuses it as damaged")
			}
		})
	}
}
