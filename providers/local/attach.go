package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Attach gives the volume's image a loop device on this node. The device exists when Attach returns.
func (p *Provider) Attach(ctx context.Context, id, node string) error {
	if node != p.node {
		return errors.Join(ctx.Err(), invalid("node %q attaches its volumes itself, and this is node %s", node, p.node))
	}
	if err := p.register(ctx); err != nil {
		return err
	}
	m, lock, err := p.open(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	if m.Holder != nil && m.Holder.Node != p.node {
		return &providers.HeldError{Volume: id, Node: m.Holder.Node}
	}
	if attached, err := p.keepDevice(m, lock); err != nil || attached {
		return err
	}
	info, err := lock.Stat()
	if err != nil {
		return err
	}
	if info.Size() < m.Size {
		return fmt.Errorf("%w image: %s has %d bytes but must have %d; it was not changed", errDamaged, lock.Name(), info.Size(), m.Size)
	}
	if err := p.setHolder(m); err != nil {
		return err
	}
	if err = p.disks.step("set up", id); err == nil {
		err = p.setUp(ctx, id)
	}
	if err != nil {
		m.Holder = nil
		return errors.Join(err, p.disks.write(m))
	}
	return nil
}

// keepDevice makes a device that the image already has stay. It reports whether there is one.
func (p *Provider) keepDevice(m *meta, image *os.File) (attached bool, err error) {
	devices, err := p.loopsOf(m.ID)
	if err != nil {
		return false, err
	}
	for _, device := range devices {
		switch kept, err := p.keep(device, image.Name()); {
		case err != nil:
			return false, err
		case !kept:
			continue
		case m.Holder == nil:
			return false, inUse(m.ID, device)
		case m.Holder.Boot != p.boot:
			return true, p.setHolder(m)
		}
		return true, nil
	}
	return false, nil
}

// setHolder records this node as the holder.
func (p *Provider) setHolder(m *meta) error {
	m.Holder = &holder{Node: p.node, Boot: p.boot, At: time.Now().UTC().Truncate(time.Second)}
	return p.disks.write(m)
}

// Detach removes the loop device of the volume's image, which may belong to another engine on this machine. It returns when the
// device is gone.
func (p *Provider) Detach(ctx context.Context, id, node string, force bool) error {
	m, lock, err := p.open(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if m.Holder == nil || m.Holder.Node != node {
		return nil
	}
	if node != p.node && m.Holder.Boot != p.boot && !force {
		// The device may be in another kernel, where only the node itself can remove it.
		return fmt.Errorf("%w: node %s has held %s since another boot, perhaps of another machine, and must detach it itself", providers.ErrBusy, node, id)
	}
	if err := p.clear(ctx, id); err != nil {
		return err
	}
	m.Holder = nil
	return p.disks.write(m)
}

// clear removes the image's devices from this kernel and waits until they are gone.
func (p *Provider) clear(ctx context.Context, id string) error {
	devices, err := p.loopsOf(id)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if err := p.tearDown(device, id); err != nil {
			return err
		}
		// The device stays until the last program closes it. udev, for one, opens it now and then.
		if err := poll(ctx, "some program to close /dev/"+device, func() (bool, error) {
			name, err := p.backing(device)
			return name != id+ready, err
		}); err != nil {
			return err
		}
	}
	return nil
}
