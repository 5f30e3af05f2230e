package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

func TestLocalKeepsTheContract(t *testing.T) {
	t.Run("ext4", func(t *testing.T) {
		providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
			c := newMachine(t, t.TempDir()).cloud()
			c.SnapshotNeedsDetached = true
			return c
		}})
	})
	for _, fstype := range []string{"xfs", "btrfs"} { // which share blocks between files
		t.Run(fstype, func(t *testing.T) {
			dir := mounted(t, fstype, 2<<30)
			providertest.Run(t, providertest.Harness{New: func(t *testing.T) *providertest.Cloud {
				sub := filepath.Join(dir, digest(t.Name()))
				t.Cleanup(func() { assert.NoError(t, os.RemoveAll(sub)) })
				return newMachine(t, sub).cloud()
			}})
		})
	}
}

// machine is a directory with the engines that share it.
type machine struct {
	t   *testing.T
	dir string

	mu      sync.Mutex
	stopped map[string]bool
	fault   map[string]*atomic.Value // by node: the providertest.Fault it meets
}

// newMachine returns a machine, and checks at the end that no loop device of dir is left.
func newMachine(t *testing.T, dir string) *machine {
	t.Helper()
	t.Cleanup(func() {
		p := &Provider{dev: "/dev", sysfs: "/sys", disks: imageDir{dir: dir, prefix: "vol-"}}
		ids, _ := p.disks.ids(ready)
		for _, id := range ids {
			devices, err := p.loopsOf(id)
			assert.NoError(t, err)
			for _, device := range devices {
				assert.True(t, t.Failed(), "%s is left as %s", id, device)
				assert.NoError(t, p.tearDown(device, id))
			}
		}
	})
	return &machine{t: t, dir: dir, stopped: map[string]bool{}, fault: map[string]*atomic.Value{}}
}

func (m *machine) provider(t *testing.T, node, cluster string) *Provider {
	t.Helper()
	p, err := New(Config{Dir: m.dir, Node: node, Cluster: cluster})
	require.NoError(t, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped[node] {
		p.boot = "before the reboot"
	}
	return p
}

func (m *machine) cloud() *providertest.Cloud {
	return &providertest.Cloud{
		Size: smallest,
		Invalid: []providers.Spec{
			{Size: smallest - 1},
			{Size: 1<<63 - 1},
			{Size: smallest, Type: "gp3"},
			{Size: smallest, Zone: "a"},
			{Size: smallest, Encrypted: true},
			{Size: smallest, Snapshot: "../../etc/passwd"},
			{Size: smallest, Record: providers.Record{"Upper": "x"}},
			{Size: smallest, Record: providers.Record{"layout": strings.Repeat("x", 256)}},
		},
		Provider: func(t *testing.T, node, cluster string) providers.Provider {
			t.Helper()
			p := m.provider(t, node, cluster)
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.fault[node] == nil {
				m.fault[node] = new(atomic.Value)
				m.fault[node].Store(providertest.Fault(""))
			}
			fault := m.fault[node]
			p.disks.before = func(string, string) error {
				if fault.Load() == providertest.Refuse {
					return unix.EIO
				}
				return nil
			}
			p.snaps.before = p.disks.before
			if node == "stops" { // it lives in an earlier boot from the start
				p.boot = "before the reboot"
			}
			return &unreliable{Provider: p, fault: fault}
		},
		Device: func(t *testing.T, _ string, v *providers.Volume) string {
			t.Helper()
			p := m.provider(t, "looks", "any")
			devices, err := p.loops()
			require.NoError(t, err)
			require.Len(t, devices[v.Serial], 1)
			return "/dev/" + devices[v.Serial][0]
		},
		// A reboot removes the loop devices.
		Stop: func(t *testing.T, node string) {
			t.Helper()
			p := m.provider(t, node, "any")
			ids, err := p.disks.ids(ready)
			require.NoError(t, err)
			for _, id := range ids {
				if d, err := p.disks.read(id); err == nil && d.Holder != nil && d.Holder.Node == node {
					require.NoError(t, p.clear(t.Context(), id))
				}
			}
		},
		Break: func(t *testing.T, node string, fault providertest.Fault) func() {
			t.Helper()
			m.fault[node].Store(fault)
			repair := func() {}
			if fault == providertest.Hang {
				repair = m.holdAllLocks(t)
			}
			return func() { m.fault[node].Store(providertest.Fault("")); repair() }
		},
	}
}

// holdAllLocks is a process that hangs while it has all locks.
func (m *machine) holdAllLocks(t *testing.T) (release func()) {
	t.Helper()
	files := []string{filepath.Join(m.dir, "lock")}
	images, err := filepath.Glob(filepath.Join(m.dir, "disks", "*.img"))
	require.NoError(t, err)
	var held []*os.File
	for _, file := range append(files, images...) {
		f, err := os.Open(file)
		require.NoError(t, err)
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
		held = append(held, f)
	}
	return func() {
		for _, f := range held {
			f.Close()
		}
	}
}

var errLostAnswer = errors.New("the answer is lost")

// unreliable is a Provider whose answers can be lost.
type unreliable struct {
	*Provider
	fault *atomic.Value
}

func (u *unreliable) answer(err error) error {
	if u.fault.Load() == providertest.LoseAnswer {
		return errLostAnswer
	}
	return err
}

func (u *unreliable) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	v, err := u.Provider.Create(ctx, spec)
	return v, u.answer(err)
}

func (u *unreliable) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	v, err := u.Provider.Adopt(ctx, id, spec)
	return v, u.answer(err)
}

func (u *unreliable) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	v, err := u.Provider.Modify(ctx, id, change)
	return v, u.answer(err)
}

func (u *unreliable) Snapshot(ctx context.Context, id string, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	s, err := u.Provider.Snapshot(ctx, id, spec)
	return s, u.answer(err)
}

func (u *unreliable) Forget(ctx context.Context, id string) error {
	return u.answer(u.Provider.Forget(ctx, id))
}

func (u *unreliable) Delete(ctx context.Context, id string) error {
	return u.answer(u.Provider.Delete(ctx, id))
}

func (u *unreliable) Attach(ctx context.Context, id, node string) error {
	return u.answer(u.Provider.Attach(ctx, id, node))
}

func (u *unreliable) Detach(ctx context.Context, id, node string, force bool) error {
	return u.answer(u.Provider.Detach(ctx, id, node, force))
}

func (u *unreliable) Mark(ctx context.Context, id, key, value string) error {
	return u.answer(u.Provider.Mark(ctx, id, key, value))
}

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

func list(t *testing.T, p *Provider) []*providers.Volume {
	t.Helper()
	l, err := p.List(t.Context())
	require.NoError(t, err)
	return l
}
