package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

const (
	mib         = 1 << 20
	smallest    = 16 * mib // file systems need about as much
	defaultSize = 1 << 30
)

// Create creates a volume, as a sparse file. Without a snapshot, its cost does not depend on how many volumes there are.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(ctx.Err(), p.checkSpec(spec)); err != nil {
		return nil, err
	}
	for {
		m, err := p.create(ctx, spec)
		if err == nil {
			return p.volume(m)
		}
		if !errors.Is(err, errMaking) {
			return nil, err
		}
		// Another process copies a snapshot to a volume of this name, and will complete it or die.
		if err := poll(ctx, "the process that creates volume "+spec.Name, func() (bool, error) {
			_, err := p.disks.find(p.cluster, spec.Name)
			return !errors.Is(err, errMaking), nil
		}); err != nil {
			return nil, err
		}
	}
}

func (p *Provider) create(ctx context.Context, spec providers.Spec) (*meta, error) {
	m, f, source, err := p.begin(ctx, spec)
	if err != nil || f == nil {
		return m, err
	}
	defer f.Close()
	if source != nil {
		defer source.Close()
		err = fill(ctx, f, source)
	}
	if err == nil {
		err = p.disks.commit(m.ID, f)
	}
	if err != nil && !p.disks.has(m.ID, ready) {
		err = errors.Join(err, p.abandon(ctx, &p.disks, m.ID))
	}
	return m, noSpace(err)
}

// begin creates the empty image of a volume, and opens the snapshot to fill it from, if any. If the volume exists, it returns
// no image.
func (p *Provider) begin(ctx context.Context, spec providers.Spec) (m *meta, image, source *os.File, err error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	defer unlock()
	if m, err = p.disks.find(p.cluster, spec.Name); !errors.Is(err, providers.ErrNotFound) {
		return m, nil, nil, err
	}
	m = &meta{
		Cluster: p.cluster, Name: spec.Name, Size: spec.Size,
		Record: maps.Clone(spec.Record), Tags: spec.Tags, Snapshot: spec.Snapshot,
	}
	if spec.Snapshot != "" {
		if source, err = p.source(m); err != nil {
			return nil, nil, nil, err
		}
	}
	if m.Size, err = roundUp(m.Size); err == nil {
		err = p.makeRoom(m.Size)
	}
	if err == nil {
		image, err = p.disks.begin(m)
	}
	if err != nil && source != nil {
		source.Close()
	}
	return m, image, source, noSpace(err)
}

// makeRoom removes what dead processes left, and sets size bytes aside. The caller holds the lock.
func (p *Provider) makeRoom(size int64) error {
	if err := p.sweep(); err != nil {
		return err
	}
	return p.promise(size)
}

// sweep removes what dead processes left. The caller holds the lock.
func (p *Provider) sweep() error {
	if err := p.disks.sweep(); err != nil || !p.hasSnapshots() {
		return err
	}
	return p.snaps.sweep()
}

// source opens the snapshot that a volume is created from. It completes size and Record of the volume's description.
func (p *Provider) source(m *meta) (*os.File, error) {
	none := invalid("there is no snapshot %s in cluster %s", m.Snapshot, p.cluster)
	if !p.snaps.valid(m.Snapshot) {
		return nil, none
	}
	snap, err := p.snaps.read(m.Snapshot)
	if errors.Is(err, fs.ErrNotExist) || err == nil && snap.Cluster != p.cluster {
		return nil, none
	} else if err != nil {
		return nil, err
	}
	if m.Size != 0 && m.Size < snap.Size {
		return nil, invalid("size %s is less than the %s of snapshot %s", bytesize(m.Size), bytesize(snap.Size), snap.ID)
	}
	f, err := os.Open(p.snaps.path(snap.ID, ready))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none
	} else if err != nil {
		return nil, err
	}
	// Shared with other copies. Whoever has it exclusively completes or deletes the snapshot.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: snapshot %s is being created or deleted: %w", providers.ErrBusy, snap.ID, err)
	}
	m.Size, m.Record = max(m.Size, snap.Size), merge(snap.Record, m.Record)
	return f, nil
}

// abandon removes an image that the caller began and cannot complete. If that fails, the next sweep does it.
func (p *Provider) abandon(ctx context.Context, s *imageDir, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	err = s.erase(id)
	unlock()
	if err != nil {
		return err
	}
	return s.drop(id)
}

// roundUp returns the size in bytes that a volume of that size gets.
func roundUp(size int64) (int64, error) {
	switch {
	case size == 0:
		return defaultSize, nil
	case size < smallest:
		return 0, invalid("size %s is less than %s, the smallest for a file system", bytesize(size), bytesize(smallest))
	case size > math.MaxInt64-mib:
		return 0, invalid("size %d is larger than any disk", size)
	}
	return (size + mib - 1) / mib * mib, nil
}

func (p *Provider) checkSpec(spec providers.Spec) error {
	if !utf8.ValidString(spec.Name) {
		return invalid("the name %q is not UTF-8", spec.Name)
	}
	if spec.Zone != "" {
		return invalid("volumes of local have no zone: leave it out")
	}
	return errors.Join(providers.CheckName(spec.Name), providers.CheckRecord(spec.Record),
		providers.CheckOptions("local", spec, p.Supports()))
}

// Adopt gives a forgotten volume a name, whatever its former cluster was.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := errors.Join(ctx.Err(), p.checkSpec(spec)); err != nil {
		return nil, err
	}
	m, lock, err := p.disks.open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m.Cluster == p.cluster && m.Name == spec.Name {
		return p.volume(m)
	}
	if m.Cluster != "" {
		return nil, invalid("%s is volume %q of cluster %s already", id, m.Name, m.Cluster)
	}
	if err := p.checkFree(m); err != nil {
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	}
	switch other, err := p.disks.find(p.cluster, spec.Name); {
	case err == nil:
		return nil, invalid("the name %q belongs to %s", spec.Name, other.ID)
	case !errors.Is(err, providers.ErrNotFound):
		return nil, err
	}
	m.Cluster, m.Name, m.Formerly = p.cluster, spec.Name, nil
	m.Record = merge(m.Record, spec.Record)
	m.Tags = merge(m.Tags, spec.Tags)
	// The link does not count until the description has the name.
	if err := p.disks.name(m); err != nil {
		return nil, err
	}
	if err := p.disks.write(m); err != nil {
		return nil, err
	}
	return p.volume(m)
}
