package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/blockvol/blockvol/providers"
)

// Delete deletes the volume's image, or what is left of the volume if its image is lost.
func (p *Provider) Delete(ctx context.Context, id string) error {
	m, lock, err := p.open(ctx, id)
	if errors.Is(err, providers.ErrNotFound) || errors.Is(err, errLost) {
		return p.deleteRest(ctx, id)
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := p.checkFree(m); err != nil {
		return err
	}
	return p.destroy(ctx, &p.disks, id)
}

// destroy deletes an image that the caller has opened.
func (p *Provider) destroy(ctx context.Context, s *imageDir, id string) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	size, own, unknown := space(s.path(id, ready), p.hasSnapshots())
	err = s.markDeleted(id)
	if err == nil && unknown == nil && s == &p.disks { // what the end of a snapshot frees is left to the next measurement
		p.giveBack(size, own)
	}
	unlock()
	if err != nil {
		return err
	}
	if err := s.drop(id); err != nil {
		return fmt.Errorf("it is deleted, but its space is not free yet: %w", err)
	}
	return nil
}

// deleteRest removes what is left of a volume without an image: Delete was interrupted, or the image is lost.
func (p *Provider) deleteRest(ctx context.Context, id string) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.sweep(); err != nil {
		return err
	}
	if !p.disks.valid(id) {
		return nil
	}
	m, err := p.disks.read(id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && m.Cluster != p.cluster {
		return nil
	} else if err != nil {
		return err
	}
	if !errors.Is(p.disks.check(id), errLost) {
		return nil
	}
	if err := p.checkFree(m); err != nil { // its device still has the bytes
		return err
	}
	return p.disks.erase(id)
}
