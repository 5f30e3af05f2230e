package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/providers"
)

// Find returns the volume of that name. If its description cannot be read or its image is lost, the error is not ErrNotFound.
func (p *Provider) Find(ctx context.Context, name string) (*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := p.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return p.volume(m)
}

func (p *Provider) find(ctx context.Context, name string) (*meta, error) {
	m, err := p.disks.find(p.cluster, name)
	if errors.Is(err, errLost) {
		unlock, e := p.lock(ctx)
		if e != nil {
			return nil, errors.Join(err, e)
		}
		defer unlock()
		m, err = p.disks.find(p.cluster, name)
	}
	if errors.Is(err, errMaking) {
		return nil, fmt.Errorf("%w: %w", providers.ErrNotFound, err)
	}
	return m, err
}

// List returns the volumes of the cluster. Its error names those that cannot be read.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	links, err := os.ReadDir(p.disks.names(p.cluster))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.ReadDir(filepath.Dir(p.disks.names(p.cluster)))
	}
	if err != nil {
		return nil, unreadable(err)
	}
	volumes, err := readAll(ctx, links, func(name string) (*providers.Volume, error) {
		m, err := p.disks.linked(p.cluster, name)
		if err == nil && !p.disks.has(m.ID, ready) {
			m, err = p.find(ctx, m.Name)
		}
		if err != nil {
			return nil, err
		}
		return p.volume(m)
	})
	slices.SortFunc(volumes, func(a, b *providers.Volume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, err
}

// readAll reads what names lead to, but for what has been removed. Its error names those that cannot be read.
func readAll[T any](ctx context.Context, names []fs.DirEntry, read func(name string) (T, error)) ([]T, error) {
	all, broken := []T{}, []error(nil)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if strings.HasSuffix(name.Name(), ".tmp") {
			continue
		}
		one, err := read(name.Name())
		switch {
		case err == nil:
			all = append(all, one)
		case !errors.Is(err, providers.ErrNotFound):
			broken = append(broken, err)
		}
	}
	return all, errors.Join(broken...)
}

// volume converts a description.
func (p *Provider) volume(m *meta) (*providers.Volume, error) {
	a, err := p.attachment(m)
	if err != nil {
		return nil, err
	}
	v := &providers.Volume{
		ID:         m.ID,
		Name:       m.Name,
		Size:       m.Size,
		CreatedAt:  m.Created,
		Serial:     m.ID + ready,
		Snapshot:   m.Snapshot,
		Record:     merge(m.Record, nil),
		Attachment: a,
		Details:    map[string]string{"image": p.disks.path(m.ID, ready)},
	}
	var tags []string
	for _, key := range slices.Sorted(maps.Keys(m.Tags)) {
		tags = append(tags, key+"="+m.Tags[key])
	}
	if tags != nil {
		v.Details["tags"] = strings.Join(tags, ",")
	}
	return v, nil
}

// attachment returns the attachment of a volume. One whose Attach was interrupted counts as attached: no other node may have
// it, and the holder's next Attach sets up the device.
func (p *Provider) attachment(m *meta) (providers.Attachment, error) {
	h := m.Holder
	if h == nil {
		return providers.Attachment{}, nil
	}
	if h.Node == p.node && h.Boot != p.boot { // register has not cleared it yet
		if devices, err := p.loopsOf(m.ID); err != nil || len(devices) == 0 {
			return providers.Attachment{}, err
		}
	}
	return providers.Attachment{Node: h.Node, State: providers.Attached}, nil
}

// checkFree returns ErrHeld if a node holds the volume, or this kernel has a device for it.
func (p *Provider) checkFree(m *meta) error {
	if a, err := p.attachment(m); err != nil {
		return err
	} else if a.State != providers.Detached {
		return &providers.HeldError{Volume: m.ID, Node: a.Node}
	}
	devices, err := p.loopsOf(m.ID)
	if err == nil && len(devices) > 0 {
		return inUse(m.ID, devices[0])
	}
	return err
}

// open opens a volume of this cluster. The caller closes lock.
func (p *Provider) open(ctx context.Context, id string) (m *meta, lock *os.File, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	m, lock, err = p.disks.open(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if m.Cluster != p.cluster {
		lock.Close()
		return nil, nil, providers.NotOurs(id)
	}
	return m, lock, nil
}

// Mark writes one entry of the volume's Record.
func (p *Provider) Mark(ctx context.Context, id, key, value string) error {
	entry := providers.Record{key: value}
	if err := providers.CheckRecord(entry); err != nil {
		return err
	}
	m, lock, err := p.open(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	if old, ok := m.Record[key]; ok && old == value {
		return nil
	}
	m.Record = merge(m.Record, entry)
	return p.disks.write(m)
}

// merge returns base with the entries of over written over it.
func merge(base, over providers.Record) providers.Record {
	r := providers.Record{}
	maps.Copy(r, base)
	maps.Copy(r, over)
	return r
}

// Forget keeps the image and its description, with the former name, for Adopt.
func (p *Provider) Forget(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, lock, err := p.disks.open(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	switch m.Cluster {
	case "":
		return nil
	case p.cluster:
	default:
		return providers.NotOurs(id)
	}
	if err := p.checkFree(m); err != nil {
		return err
	}
	named := *m
	m.Formerly = &former{Cluster: m.Cluster, Name: m.Name}
	m.Cluster, m.Name, m.Holder = "", "", nil
	if err := p.disks.write(m); err != nil {
		return err
	}
	return p.disks.unname(&named)
}

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
