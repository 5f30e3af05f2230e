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

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// Snapshot copies the image: at once where the file system shares blocks between files (xfs, btrfs), and byte by byte
// elsewhere, which only a volume that nobody holds can wait for.
func (p *Provider) Snapshot(ctx context.Context, id, description string) (*providers.Snapshot, error) {
	if err := text("the description", description, 4096); err != nil {
		return nil, fmt.Errorf("cannot snapshot %s: %w", id, err)
	}
	m, image, err := p.own(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("cannot snapshot %s: %w", id, err)
	}
	defer image.Close()
	snap, err := p.snapshot(ctx, m, image, description)
	if err != nil {
		return nil, fmt.Errorf("cannot snapshot %s: %w", id, noSpace(err))
	}
	return &providers.Snapshot{ID: snap.ID, Volume: id, Size: snap.Size, CreatedAt: snap.Created}, nil
}

func (p *Provider) snapshot(ctx context.Context, m *meta, image *os.File, description string) (*meta, error) {
	snap, f, err := p.beginSnapshot(ctx, m, image, m.ID+": "+description)
	if err != nil || f == nil {
		return snap, err
	}
	defer f.Close()
	err = reflink(f, image)
	if errors.Is(err, errors.ErrUnsupported) {
		if err = p.free(m); err == nil {
			err = fill(ctx, f, image)
		} else {
			err = fmt.Errorf("%w: this file system cannot copy an image at once (xfs and btrfs can), and bytes would change during the copy: stop what uses the volume", err)
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

// beginSnapshot makes the empty image of a snapshot, or returns the snapshot, and no file, if it is there already. The
// caller has the volume's image open, so no other process is at the same snapshot.
func (p *Provider) beginSnapshot(ctx context.Context, m *meta, image *os.File, name string) (*meta, *os.File, error) {
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
		Volume: m.ID, Needs: allocated(info),
	}
	if err := p.sweep(); err != nil {
		return nil, nil, err
	}
	if err := p.promise(snap.Needs); err != nil {
		return nil, nil, err
	}
	f, err := p.snaps.begin(snap)
	return snap, f, err
}

// DeleteSnapshot destroys the copy. Volumes made from it do not need it.
func (p *Provider) DeleteSnapshot(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !p.hasSnapshots() {
		return nil
	}
	snap, lock, err := p.snaps.open(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return p.tidy(ctx)
	} else if err != nil {
		return fmt.Errorf("cannot delete snapshot %s: %w", id, err)
	}
	defer lock.Close()
	if snap.Cluster != p.cluster {
		return nil
	}
	if err := p.destroy(ctx, &p.snaps, id); err != nil {
		return fmt.Errorf("cannot delete snapshot %s: %w", id, err)
	}
	return nil
}

// hasSnapshots tells whether a snapshot was ever taken in this directory.
func (p *Provider) hasSnapshots() bool {
	_, err := os.Stat(filepath.Join(p.snaps.dir, "names")) // which comes last
	return !errors.Is(err, fs.ErrNotExist)
}

// fill copies source into an empty file that is as large or larger. Holes stay holes.
func fill(ctx context.Context, to, source *os.File) error {
	if err := reflink(to, source); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	info, err := source.Stat()
	if err != nil {
		return err
	}
	const chunk = 16 * mib // between two looks at the context
	for at := int64(0); at < info.Size(); {
		data, err := source.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
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
			if err := copyRange(to, source, at, min(chunk, hole-at)); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyRange(to, source *os.File, at, n int64) error {
	if _, err := source.Seek(at, io.SeekStart); err != nil {
		return err
	}
	if _, err := to.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(to, source, n)
	return err
}

// reflink makes to share all of source's blocks, at one instant. Error: errors.ErrUnsupported where the file system
// cannot.
func reflink(to, source *os.File) error {
	err := unix.IoctlFileClone(int(to.Fd()), int(source.Fd()))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV):
		return errors.ErrUnsupported
	}
	return err
}
