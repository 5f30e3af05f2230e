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
	var (
		volumes []*providers.Volume
		broken  []error
	)
	for _, link := range links {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if strings.HasSuffix(link.Name(), ".tmp") {
			continue
		}
		m, err := p.disks.linked(p.cluster, link.Name())
		if err == nil && !p.disks.has(m.ID, ready) {
			m, err = p.find(ctx, m.Name)
		}
		var v *providers.Volume
		if err == nil {
			v, err = p.volume(m)
		}
		switch {
		case err == nil:
			volumes = append(volumes, v)
		case !errors.Is(err, providers.ErrNotFound):
			broken = append(broken, err)
		}
	}
	slices.SortFunc(volumes, func(a, b *providers.Volume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, errors.Join(broken...)
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
