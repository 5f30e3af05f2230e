package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// Node returns this engine's id.
func (p *Provider) Node(ctx context.Context) (providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return providers.Node{}, err
	}
	_ = p.register(ctx) // Attach reports why it fails
	return providers.Node{ID: p.node}, nil
}

// visit is when an engine last registered.
type visit struct {
	Boot string    `json:"boot"`
	At   time.Time `json:"at"`
}

func (p *Provider) visitFile(node string) string {
	return filepath.Join(p.dir, "nodes", node+".json")
}

func (p *Provider) lastVisit(node string) (visit, error) {
	var v visit
	file := p.visitFile(node)
	data, err := os.ReadFile(file)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil || v.Boot == "" {
		return v, fmt.Errorf("%w: %s: remove it if node %s is gone", errDamaged, file, node)
	}
	return v, nil
}

// NodeState reports Stopped if the node last registered in an earlier boot of this machine. A node of this boot counts as
// running even if its plugin does not run: its containers may still write.
func (p *Provider) NodeState(ctx context.Context, node string) (providers.NodeState, error) {
	if err := ctx.Err(); err != nil {
		return providers.NodeState{}, err
	}
	if node == p.node {
		return providers.NodeState{Life: providers.Running, Evidence: "it is this node"}, nil
	}
	unclear := func(format string, a ...any) (providers.NodeState, error) {
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf(format, a...)}, nil
	}
	if !nodeID.MatchString(node) {
		return unclear("%q is no id of a node", node)
	}
	v, err := p.lastVisit(node)
	if errors.Is(err, fs.ErrNotExist) {
		return unclear("no node %s has used %s", node, p.dir)
	} else if err != nil {
		return unclear("%v", err)
	}
	if v.Boot == p.boot {
		return providers.NodeState{
			Life:     providers.Running,
			Evidence: fmt.Sprintf("node %s has used %s since this machine was started", node, p.dir),
			Remedy:   "start its engine again, or reboot this machine",
		}, nil
	}
	local, err := onThisMachineOnly(p.dir)
	if err != nil {
		return providers.NodeState{}, err
	}
	if !local {
		return unclear("node %s used %s under another boot, which may be of another machine: the file system can be shared", node, p.dir)
	}
	return providers.NodeState{
		Life: providers.Stopped,
		Evidence: fmt.Sprintf("the machine has rebooted since node %s used %s at %s (boot %s then, %s now)",
			node, p.dir, v.At.Format(time.RFC3339), v.Boot, p.boot),
	}, nil
}

// onThisMachineOnly reports whether dir is on a file system that no other kernel can have mounted.
func onThisMachineOnly(dir string) (bool, error) {
	const zfs, bcachefs = 0x2fc12fc1, 0xca451a4e
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("the type of the file system of %s is unknown: %w", dir, err)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC,
		zfs, bcachefs:
		return true, nil
	}
	return false, nil
}

// register records, once per boot, that this engine runs, and clears what it held in earlier boots. Without the latter, those
// volumes would count as held by a running node, and no other node could take them over.
func (p *Provider) register(ctx context.Context) error {
	p.registering.Lock()
	defer p.registering.Unlock()
	if err := ctx.Err(); err != nil || p.registered {
		return err
	}
	v, err := p.lastVisit(p.node)
	if err == nil && v.Boot == p.boot {
		p.registered = true
		return nil
	}
	ids, err := p.disks.ids(ready)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.clearEarlierBoot(ctx, id); err != nil {
			return err
		}
	}
	data, err := json.Marshal(visit{Boot: p.boot, At: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	file := p.visitFile(p.node)
	if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
		err = p.disks.replace(file, data)
	}
	if err != nil {
		return fmt.Errorf("node %s cannot be registered: %w", p.node, err)
	}
	p.registered = true
	return nil
}

// clearEarlierBoot removes the volume's holder if that was this node in an earlier boot.
func (p *Provider) clearEarlierBoot(ctx context.Context, id string) error {
	stale := func(m *meta) bool {
		return m.Holder != nil && m.Holder.Node == p.node && m.Holder.Boot != p.boot
	}
	if m, err := p.disks.read(id); err != nil || !stale(m) {
		return nil // a damaged description is reported by the calls for that volume
	}
	m, lock, err := p.disks.open(ctx, id)
	if errors.Is(err, providers.ErrNotFound) || errors.Is(err, errDamaged) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// A container's boot id can change without its kernel's (LXC, systemd-nspawn). The device is then still there.
	devices, err := p.loopsOf(id)
	if err != nil || !stale(m) || len(devices) > 0 {
		return err
	}
	m.Holder = nil
	return p.disks.write(m)
}

// Slots counts the volumes of this node. Their number has no limit but the kernel's, which makes loop devices as they are needed.
func (p *Provider) Slots(ctx context.Context) (slots providers.Slots, err error) {
	all, err := p.List(ctx)
	for _, v := range all {
		if v.HeldBy(p.node) {
			slots.Used++
		}
	}
	return slots, err
}
