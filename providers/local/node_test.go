package local

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

func TestANodeClearsItsAttachmentsAfterAReboot(t *testing.T) {
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

// reboot moves the node's attachments and its last visit to an earlier boot, and removes its devices.
func (m *machine) reboot(t *testing.T, node string) {
	t.Helper()
	p := m.provider(t, node, "main")
	ids, err := p.disks.ids(ready)
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

// The boot id of a container can change while the kernel runs on.
func TestADeviceThatExistsStaysAttachedUnderAnotherBootID(t *testing.T) {
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

func TestAnotherBootOnASharedFileSystemIsUnclear(t *testing.T) {
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
