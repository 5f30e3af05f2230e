package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// Snapshot copies the image: at one instant where files can share blocks (xfs, btrfs), also while the volume is in use. Elsewhere
// it copies byte by byte, and only a volume that no node holds.
func (p *Provider) Snapshot(ctx context.Context, id string, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	if err := providers.CheckRecord(spec.Record); err != nil {
		return nil, err
	}
	m, image, err := p.open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	snap, err := p.snapshot(ctx, m, image, spec)
	if err != nil {
		return nil, noSpace(err)
	}
	return showSnapshot(snap), nil
}

func showSnapshot(m *meta) *providers.Snapshot {
	record := maps.Clone(m.Record)
	if record == nil {
		record = providers.Record{}
	}
	return &providers.Snapshot{
		ID: m.ID, Volume: m.Volume, Name: m.Of, Size: m.Size, CreatedAt: m.Created, State: providers.SnapshotComplete, Record: record,
	}
}

// FindSnapshot returns a snapshot of the cluster.
func (p *Provider) FindSnapshot(ctx context.Context, id string) (*providers.Snapshot, error) {
	none := fmt.Errorf("%w: there is no snapshot %.40q of cluster %q", providers.ErrNotFound, id, p.cluster)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !p.snaps.valid(id) || !p.snaps.has(id, ready) {
		return nil, none
	}
	m, err := p.snaps.read(id)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && m.Cluster != p.cluster:
		return nil, none
	case err != nil:
		return nil, err
	}
	return showSnapshot(m), nil
}

// ListSnapshots returns the snapshots of the cluster, the oldest first. Its error names those that cannot be read.
func (p *Provider) ListSnapshots(ctx context.Context) ([]*providers.Snapshot, error) {
	if !p.hasSnapshots() {
		return nil, ctx.Err()
	}
	links, err := os.ReadDir(p.snaps.names(p.cluster)) // others' do not concern this one
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ctx.Err()
	} else if err != nil {
		return nil, unreadable(err)
	}
	all, err := readAll(ctx, links, func(name string) (*providers.Snapshot, error) {
		m, err := p.snaps.linked(p.cluster, name)
		switch {
		case err != nil:
			return nil, err
		case !p.snaps.has(m.ID, ready):
			return nil, providers.ErrNotFound
		}
		return showSnapshot(m), nil
	})
	slices.SortFunc(all, providers.OlderSnapshot)
	return all, err
}

func (p *Provider) snapshot(ctx context.Context, m *meta, image *os.File, spec providers.SnapshotSpec) (*meta, error) {
	snap, f, err := p.beginSnapshot(ctx, m, image, m.ID+": "+spec.Description, spec.Record)
	if err != nil || f == nil {
		return snap, err
	}
	defer f.Close()
	err = spec.Taking(ctx, func(context.Context) error { return reflink(f, image) })
	if errors.Is(err, errors.ErrUnsupported) {
		if err = p.checkFree(m); err == nil {
			err = fill(ctx, f, image)
		} else {
			err = fmt.Errorf("%w: the file system of %s has no instant copies (xfs and btrfs have): stop what uses the volume", err, p.dir)
		}
	}
	if err == nil {
		err = p.snaps.commit(snap.ID, f)
	}
	if err != nil && !p.snaps.has(snap.ID, ready) {
		err = errors.Join(err, p.abandon(ctx, &p.snaps, snap.ID))
	}
	return snap, err
}

// beginSnapshot creates the empty image of a snapshot. If the snapshot exists, it returns no image. The caller has opened the
// volume's image, so no other process is creating the same snapshot.
func (p *Provider) beginSnapshot(ctx context.Context, m *meta, image *os.File, name string, record providers.Record) (*meta, *os.File, error) {
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if err := p.snaps.make(); err != nil {
		return nil, nil, err
	}
	if snap, err := p.snaps.find(p.cluster, name); !errors.Is(err, providers.ErrNotFound) {
		return snap, nil, err
	}
	info, err := image.Stat()
	if err != nil {
		return nil, nil, err
	}
	snap := &meta{
		Cluster: p.cluster, Name: name, Size: info.Size(), Record: maps.Clone(m.Record), Tags: m.Tags,
		Volume: m.ID, Of: m.Name, Needs: allocated(info),
	}
	if snap.Record == nil {
		snap.Record = providers.Record{}
	}
	maps.Copy(snap.Record, record)
	if err := p.makeRoom(snap.Needs); err != nil {
		return nil, nil, err
	}
	f, err := p.snaps.begin(snap)
	return snap, f, err
}

// DeleteSnapshot deletes the copy. Volumes created from it do not need it.
func (p *Provider) DeleteSnapshot(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil || !p.hasSnapshots() {
		return err
	}
	snap, lock, err := p.snaps.open(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return p.tidy(ctx)
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if snap.Cluster != p.cluster {
		return nil
	}
	return p.destroy(ctx, &p.snaps, id)
}

// tidy is sweep for callers without the lock.
func (p *Provider) tidy(ctx context.Context) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return p.sweep()
}

// hasSnapshots reports whether a snapshot was ever created in this directory.
func (p *Provider) hasSnapshots() bool {
	_, err := os.Stat(filepath.Join(p.snaps.dir, "names")) // make creates it last
	return !errors.Is(err, fs.ErrNotExist)
}

// fill copies source to an empty file that is at least as large. Holes stay holes.
func fill(ctx context.Context, to, source *os.File) error {
	if err := reflink(to, source); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	info, err := source.Stat()
	if err != nil {
		return err
	}
	const chunk = 16 * mib // after each, the context is checked
	for at := int64(0); at < info.Size(); {
		data, err := source.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // the rest is a hole
			return nil
		} else if err != nil {
			return err
		}
		hole, err := source.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = data; at < hole; at = min(at+chunk, hole) {
			if err := ctx.Err(); err != nil {
				return err
			}
			to, from := io.NewOffsetWriter(to, at), io.NewSectionReader(source, at, min(chunk, hole-at))
			if _, err := io.Copy(to, from); err != nil {
				return err
			}
		}
	}
	return nil
}

// reflink makes to share all blocks of source, as they are at one instant. Errors: errors.ErrUnsupported if the file system
// cannot do that.
func reflink(to, source *os.File) error {
	err := unix.IoctlFileClone(int(to.Fd()), int(source.Fd()))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV):
		return errors.ErrUnsupported
	}
	return err
}
