package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockvol/blockvol/providers"
)

// Attach gives the volume's image a loop device; it is there when Attach returns. Only an engine itself can do so.
func (p *Provider) Attach(ctx context.Context, id, node string) error {
	if node != p.node {
		return errors.Join(ctx.Err(), fmt.Errorf("%w: node %q attaches its volumes itself, and this is node %s", providers.ErrInvalid, node, p.node))
	}
	if err := p.register(ctx); err != nil {
		return err
	}
	m, lock, err := p.own(ctx, id)
	if err != nil {
		return fmt.Errorf("cannot attach %s: %w", id, err)
	}
	defer lock.Close()
	mine := m.Holder != nil && m.Holder.Node == p.node
	if m.Holder != nil && !mine {
		return &providers.HeldError{Volume: id, Node: m.Holder.Node}
	}
	devices, err := p.loopsOf(id)
	if err != nil {
		return err
	}
	for _, device := range devices {
		kept, err := p.keep(device, lock)
		if err != nil {
			return fmt.Errorf("cannot attach %s: %w", id, err)
		}
		if kept && !mine {
			return fmt.Errorf("cannot attach: %w", inUse(id, device))
		}
		if kept {
			if m.Holder.Boot != p.boot {
				return p.holds(m)
			}
			return nil
		}
	}
	info, err := lock.Stat()
	if err != nil {
		return err
	}
	if info.Size() < m.Size {
		return fmt.Errorf("cannot attach %s: %w image: %s has %d bytes and should have %d; nothing was changed",
			id, errDamaged, lock.Name(), info.Size(), m.Size)
	}
	if err := p.holds(m); err != nil {
		return fmt.Errorf("cannot attach %s: %w", id, err)
	}
	if err = p.disks.step("set up", id); err == nil {
		err = p.setUp(ctx, id)
	}
	if err != nil {
		m.Holder = nil
		return fmt.Errorf("cannot attach %s: %w", id, errors.Join(err, p.disks.write(m)))
	}
	return nil
}

// Detach takes the loop device from the volume's image, this node's or that of another engine on this machine. It
// returns when the device is gone.
func (p *Provider) Detach(ctx context.Context, id, node string, force bool) error {
	m, lock, err := p.own(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	} else if err != nil {
		return fmt.Errorf("cannot detach %s: %w", id, err)
	}
	defer lock.Close()
	if m.Holder == nil || m.Holder.Node != node {
		return nil
	}
	if node != p.node && m.Holder.Boot != p.boot && !force {
		// Its kernel is not this one, as far as can be seen, so only the node itself could let go.
		return fmt.Errorf("cannot detach %s: %w: node %s holds it since another boot, perhaps of another machine, and has to detach it itself",
			id, providers.ErrBusy, node)
	}
	if err := p.clear(ctx, id); err != nil {
		return fmt.Errorf("cannot detach %s: %w", id, err)
	}
	m.Holder = nil
	if err := p.disks.write(m); err != nil {
		return fmt.Errorf("cannot detach %s: %w", id, err)
	}
	return nil
}

// clear takes the image's devices from this kernel and waits until they are gone.
func (p *Provider) clear(ctx context.Context, id string) error {
	devices, err := p.loopsOf(id)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if err := p.tearDown(device, id); err != nil {
			return err
		}
		// While another program has it open, as udev does in passing, the device stays until that is closed.
		err := poll(ctx, func() (bool, error) {
			name, err := p.backing(device)
			return name != id+ready, err
		})
		if ctx.Err() != nil && err != nil {
			return busy(ctx, "some program to close /dev/"+device)
		} else if err != nil {
			return err
		}
	}
	return nil
}
