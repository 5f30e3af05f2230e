package local

import (
	"context"
	"os"

	"github.com/blockvol/blockvol/providers"
)

// Modify enlarges the image, and its device if this kernel has one, while it is in use.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	if err := providers.CheckOnlyGrows("local", change); err != nil {
		return nil, err
	}
	m, lock, err := p.open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	size := m.Size
	if change.Size != 0 {
		if size, err = roundUp(change.Size); err != nil {
			return nil, err
		}
	}
	if size < m.Size {
		return nil, invalid("%s has %s already, and a volume cannot shrink to %s", id, bytesize(m.Size), bytesize(size))
	}
	if err := p.enlarge(ctx, m, lock, size); err != nil {
		return nil, noSpace(err)
	}
	return p.volume(m)
}

// enlarge changes the image first, then the description, then the device. If it is interrupted, the next call continues.
func (p *Provider) enlarge(ctx context.Context, m *meta, image *os.File, size int64) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	if more := size - info.Size(); more > 0 {
		if err := p.enlargeImage(ctx, image, more, size); err != nil {
			return err
		}
	}
	if m.Size != size {
		m.Size = size
		if err := p.disks.write(m); err != nil {
			return err
		}
	}
	devices, err := p.loopsOf(m.ID)
	if err != nil {
		return err
	}
	for _, device := range devices {
		if err := p.regrow(device, image.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (p *Provider) enlargeImage(ctx context.Context, image *os.File, more, size int64) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.promise(more); err != nil {
		return err
	}
	if err := p.disks.step("truncate", image.Name()); err != nil {
		return err
	}
	if err := os.Truncate(image.Name(), size); err != nil {
		return err
	}
	return image.Sync()
}
