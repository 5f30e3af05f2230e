package qemu_test

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster/qemu"
)

func TestSnapshotRestoresTheMachine(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.run("echo then >/memory; echo then | dd of=/dev/vda conv=fsync")
	require.NoError(t, g.SaveSnapshot("then"))
	g.run("echo now >/memory; echo now | dd of=/dev/vda conv=fsync")
	g.PowerOff()

	g.cfg.Snapshot = "then"
	again := start(t, g.cfg)
	assert.Equal(t, "then", again.run("cat /memory"))
	assert.Equal(t, "then", again.run("head -n 1 /dev/vda"))
}

func TestFailedSnapshotReportsTheCause(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		w.create(vol(0))
		w.attach("i-here", vol(0))
		require.ErrorContains(t, w.here.SaveSnapshot("no"), "saving snapshot no: Error: ")
		w.detach("i-here", vol(0))
		require.NoError(t, w.here.SaveSnapshot("yes"))
	})
}

func TestFailedStartReportsTheCause(t *testing.T) {
	t.Parallel()
	cfg, err := golden()
	require.NoError(t, err)
	cfg.Dir = t.TempDir()
	cfg.Root = filepath.Join(cfg.Dir, "missing.qcow2")
	_, err = qemu.Start(processes, cfg)
	require.ErrorContains(t, err, "missing.qcow2")
	assert.Empty(t, running(t, cfg.Dir))
}

func TestGuestPowerOffEndsTheMachine(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.run("(sleep 0.2; poweroff -f) >/dev/null 2>&1 &")
	select {
	case <-g.Ended():
	case <-time.After(20 * time.Second):
		t.Fatal("the machine has not ended")
	}
	g.PowerOff() // no effect
	require.Error(t, g.Freeze())
}

// After a power loss a machine boots from the data that it has flushed. After a reboot it has the same disks.
func TestPowerOffColdStartAndReboot(t *testing.T) {
	t.Parallel()
	onEachBus(t, func(t *testing.T, w *world) {
		w.create(vol(0))
		w.attach("i-here", vol(0))
		w.here.run("echo flushed | dd of=/dev/vda conv=fsync")
		w.here.PowerOff()
		assert.Empty(t, running(t, w.dir), "no server is left when its machine has ended")
		w.detach("i-here", vol(0))

		w.here.cfg.Snapshot = ""
		w.here = start(t, w.here.cfg)
		w.Register("i-here", w.here.Machine, w.here.questions())
		assert.Equal(t, "flushed", w.here.run("head -n 1 /dev/vda"))
		assert.Empty(t, w.here.run("shown"))

		w.attach("i-here", vol(0))
		w.here.run("echo kept | dd of=$(device %s) conv=fsync", w.serial(0))
		reset, once := make(chan struct{}), sync.Once{}
		w.here.Monitor().Watch(func(event qemu.Event) {
			if event.Name == "RESET" { // once for each way of rebooting that Linux tries
				once.Do(func() { close(reset) })
			}
		})
		w.here.run("(sleep 0.2; reboot -f) >/dev/null 2>&1 &")
		<-reset
		assert.Equal(t, "kept", w.here.run("head -n 1 $(device %s)", w.serial(0)))
		w.detach("i-here", vol(0))
	})
}

// A booting guest may miss a request to release a disk. QEMU accepts another after 5 s, and a guest takes 5 s of its own,
// during which the request could be cancelled (PCI Express, attention button).
func TestDiskDetachedDuringBootIsRemoved(t *testing.T) {
	t.Parallel()
	w := newStorage(t, qemu.EBS)
	cfg, err := golden()
	require.NoError(t, err)
	cfg.Dir, cfg.Root = filepath.Join(w.dir, "m"), filepath.Join(w.dir, "root.qcow2")
	require.NoError(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", cfg.Root, "1M").Run())
	g := start(t, cfg)
	w.Register("i-here", g.Machine, qemu.Guest{})
	for i := range 6 {
		w.create(vol(i))
		w.attach("i-here", vol(i))
	}
	for i := range 5 {
		time.Sleep(500 * time.Millisecond)
		require.NoError(t, w.Detach("i-here", vol(i), true))
	}
	g.run("true")
	require.Eventually(t, func() bool { return nodes(t, g.Machine) == 1 }, time.Minute, 100*time.Millisecond)
	assert.Equal(t, w.serial(5), g.run("shown"))
}
