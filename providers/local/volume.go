package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

const (
	mib         = 1 << 20
	smallest    = 16 * mib // what the file systems need to make sense
	defaultSize = 1 << 30
)

// Find returns the volume of that name. Only this takes no answer from the directory for a "no": a description that
// cannot be read, and an image that is lost, are errors of their own.
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
		return nil, fmt.Errorf("%w: %q: %w", providers.ErrNotFound, name, err)
	}
	return m, err
}

// List returns the volumes of the cluster. Those that cannot be read are named in the error that comes with the others.
func (p *Provider) List(ctx context.Context) ([]*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	links, err := os.ReadDir(p.disks.names(p.cluster))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := p.disks.ids(making); err != nil {
			return nil, err
		}
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("cannot read the directory for volumes: %w: %w", providers.ErrUnavailable, err)
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
		m, err := p.disks.behind(p.cluster, link.Name())
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

// volume is what the contract shows of a description.
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

// attachment is what the recorded holder means now. One whose Attach was cut short counts as attached: nobody else may
// have the volume, and its own next Attach sets up the device.
func (p *Provider) attachment(m *meta) (providers.Attachment, error) {
	h := m.Holder
	if h == nil {
		return providers.Attachment{}, nil
	}
	if h.Node == p.node && h.Boot != p.boot { // not yet cleared by register
		if devices, err := p.loopsOf(m.ID); err != nil || len(devices) == 0 {
			return providers.Attachment{}, err
		}
	}
	return providers.Attachment{Node: h.Node, State: providers.Attached}, nil
}

// Create makes a volume. Its bytes take space only as they are written.
func (p *Provider) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := acceptable(spec); err != nil {
		return nil, fmt.Errorf("volume %q: %w", spec.Name, err)
	}
	for {
		m, err := p.create(ctx, spec)
		if err == nil {
			return p.volume(m)
		}
		if !errors.Is(err, errMaking) {
			return nil, fmt.Errorf("cannot create volume %q: %w", spec.Name, err)
		}
		// Another process copies a snapshot to a volume of this name. It ends in success, or with its process.
		if err := poll(ctx, func() (bool, error) {
			_, err := p.disks.find(p.cluster, spec.Name)
			return !errors.Is(err, errMaking), nil
		}); err != nil {
			return nil, busy(ctx, fmt.Sprintf("volume %q, which another process is creating", spec.Name))
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

// begin makes the empty image of a volume and opens the snapshot that it shall be filled from, if any. It returns no
// image if the volume is there already.
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
		defer func() {
			if err != nil {
				source.Close()
			}
		}()
	}
	if m.Size, err = roundUp(m.Size); err != nil {
		return nil, nil, nil, err
	}
	if err = p.sweep(); err != nil {
		return nil, nil, nil, err
	}
	if err = p.promise(m.Size); err != nil {
		return nil, nil, nil, err
	}
	image, err = p.disks.begin(m)
	return m, image, source, noSpace(err)
}

// sweep clears away what dead processes left. The caller holds the lock.
func (p *Provider) sweep() error {
	if err := p.disks.sweep(); err != nil {
		return err
	}
	if !p.hasSnapshots() {
		return nil
	}
	return p.snaps.sweep()
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

// source opens the snapshot that a volume shall be made from, and takes over what goes with it.
func (p *Provider) source(m *meta) (*os.File, error) {
	none := fmt.Errorf("%w: there is no snapshot %s in cluster %s", providers.ErrInvalid, m.Snapshot, p.cluster)
	if !p.snaps.valid(m.Snapshot) {
		return nil, none
	}
	snap, err := p.snaps.read(m.Snapshot)
	if errors.Is(err, fs.ErrNotExist) || err == nil && snap.Cluster != p.cluster {
		return nil, none
	} else if err != nil {
		return nil, err
	}
	f, err := os.Open(p.snaps.path(snap.ID, ready))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none
	} else if err != nil {
		return nil, err
	}
	// Shared with other copies, against DeleteSnapshot; whoever has it alone is finishing or destroying it.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("snapshot %s is being made or deleted: %w: %w", snap.ID, providers.ErrBusy, err)
	}
	switch {
	case m.Size == 0:
		m.Size = snap.Size
	case m.Size < snap.Size:
		f.Close()
		return nil, fmt.Errorf("%w: size %s is less than the %s of snapshot %s",
			providers.ErrInvalid, bytesize(m.Size), bytesize(snap.Size), snap.ID)
	}
	m.Record = merge(snap.Record, m.Record)
	return f, nil
}

// merge returns base with the entries of over, which win.
func merge(base, over providers.Record) providers.Record {
	r := providers.Record{}
	maps.Copy(r, base)
	maps.Copy(r, over)
	return r
}

// roundUp rounds a size in bytes up to what there is.
func roundUp(size int64) (int64, error) {
	switch {
	case size == 0:
		return defaultSize, nil
	case size < smallest:
		return 0, fmt.Errorf("%w: size %s is less than %s, the smallest that a file system is good for",
			providers.ErrInvalid, bytesize(size), bytesize(smallest))
	case size > math.MaxInt64-mib:
		return 0, fmt.Errorf("%w: size %d is larger than any disk", providers.ErrInvalid, size)
	}
	return (size + mib - 1) / mib * mib, nil
}

var recordKey = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

func acceptable(spec providers.Spec) error {
	if spec.Name == "" {
		return fmt.Errorf("%w: a volume needs a name", providers.ErrInvalid)
	}
	if err := text("the name", spec.Name, 255); err != nil {
		return err
	}
	if spec.Type != "" || spec.IOPS != 0 || spec.Throughput != 0 || spec.Encrypted || spec.KMSKey != "" || spec.Zone != "" {
		return fmt.Errorf("%w: on provider local a volume has a size, tags and a snapshot to come from, and no other property of a disk",
			providers.ErrInvalid)
	}
	for key, value := range spec.Record {
		if err := entry(key, value); err != nil {
			return err
		}
	}
	for key, value := range spec.Tags {
		if err := errors.Join(text("a tag's key", key, 1024), text("the value of tag "+key, value, 1024)); err != nil {
			return err
		}
	}
	return nil
}

// entry checks one entry of a Record against the contract.
func entry(key, value string) error {
	if !recordKey.MatchString(key) {
		return fmt.Errorf("%w: %q is no key of a record", providers.ErrInvalid, key)
	}
	return text("the value of "+key, value, 255)
}

// own opens a volume of this cluster. The caller closes lock.
func (p *Provider) own(ctx context.Context, id string) (m *meta, lock *os.File, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	m, lock, err = p.disks.open(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if m.Cluster != p.cluster {
		lock.Close()
		return nil, nil, fmt.Errorf("%w: %s in cluster %s", providers.ErrNotFound, id, p.cluster)
	}
	return m, lock, nil
}

// free is nil if nobody holds the volume, on record or in this kernel.
func (p *Provider) free(m *meta) error {
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

func inUse(id, device string) error {
	return fmt.Errorf("%w: %s is the device /dev/%s, though no node has it on record: detach it with losetup -d", providers.ErrHeld, id, device)
}

// Adopt gives a forgotten volume a name again. Its former cluster does not matter.
func (p *Provider) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := acceptable(spec); err != nil {
		return nil, fmt.Errorf("volume %q: %w", spec.Name, err)
	}
	m, lock, err := p.disks.open(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("cannot adopt %s: %w", id, err)
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
		return nil, fmt.Errorf("%w: %s is volume %q of cluster %s already", providers.ErrInvalid, id, m.Name, m.Cluster)
	}
	if err := p.free(m); err != nil {
		return nil, fmt.Errorf("%w: %s is in use: %w", providers.ErrInvalid, id, err)
	}
	switch other, err := p.disks.find(p.cluster, spec.Name); {
	case err == nil:
		return nil, fmt.Errorf("%w: the name %q belongs to %s", providers.ErrInvalid, spec.Name, other.ID)
	case !errors.Is(err, providers.ErrNotFound):
		return nil, fmt.Errorf("cannot adopt %s as %q: %w", id, spec.Name, err)
	}
	m.Cluster, m.Name, m.Formerly = p.cluster, spec.Name, nil
	m.Record = merge(m.Record, spec.Record)
	if m.Tags == nil {
		m.Tags = map[string]string{}
	}
	maps.Copy(m.Tags, spec.Tags)
	// The link leads nowhere that counts until the description has the name.
	if err := p.disks.name(m); err != nil {
		return nil, fmt.Errorf("cannot adopt %s: %w", id, err)
	}
	if err := p.disks.write(m); err != nil {
		return nil, fmt.Errorf("cannot adopt %s: %w", id, err)
	}
	return p.volume(m)
}

// Forget leaves the image and its description, with the name that it had, for Adopt.
func (p *Provider) Forget(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m, lock, err := p.disks.open(ctx, id)
	if err != nil {
		return fmt.Errorf("cannot forget %s: %w", id, err)
	}
	defer lock.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if m.Cluster == "" {
		return nil
	}
	if m.Cluster != p.cluster {
		return fmt.Errorf("cannot forget %s: %w in cluster %s", id, providers.ErrNotFound, p.cluster)
	}
	if err := p.free(m); err != nil {
		return fmt.Errorf("cannot forget %s: %w", id, err)
	}
	named := *m
	m.Formerly = &former{Cluster: m.Cluster, Name: m.Name}
	m.Cluster, m.Name, m.Holder = "", "", nil
	if err := p.disks.write(m); err != nil {
		return fmt.Errorf("cannot forget %s: %w", id, err)
	}
	return p.disks.unname(&named)
}

// Delete destroys the volume's image, or what is left of the volume if its image is lost.
func (p *Provider) Delete(ctx context.Context, id string) error {
	m, lock, err := p.own(ctx, id)
	switch {
	case errors.Is(err, providers.ErrNotFound), errors.Is(err, errLost):
		return p.clearAway(ctx, id)
	case err != nil:
		return fmt.Errorf("cannot delete %s: %w", id, err)
	}
	defer lock.Close()
	if err := p.free(m); err != nil {
		return fmt.Errorf("cannot delete %s: %w", id, err)
	}
	if err := p.destroy(ctx, &p.disks, id); err != nil {
		return fmt.Errorf("cannot delete %s: %w", id, err)
	}
	return nil
}

// destroy removes an image that the caller has open.
func (p *Provider) destroy(ctx context.Context, s *imageDir, id string) error {
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	size, own, unknown := space(s.path(id, ready), p.hasSnapshots())
	err = s.markDeleted(id)
	if err == nil && unknown == nil && s == &p.disks { // how much the end of a snapshot frees is left to be measured
		p.giveBack(size, own)
	}
	unlock()
	if err != nil {
		return err
	}
	if err := s.drop(id); err != nil {
		return fmt.Errorf("it is gone, but its space is not free yet: %w", err)
	}
	return nil
}

// abandon removes an image that the caller began and cannot finish. What remains if that fails, the next sweep takes.
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

// clearAway removes what is left of a volume without an image: one that was half destroyed, or whose image is lost.
func (p *Provider) clearAway(ctx context.Context, id string) error {
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
	if !errors.Is(p.disks.standing(id), errLost) {
		return nil
	}
	if err := p.free(m); err != nil { // its bytes live on in the device
		return err
	}
	return p.disks.erase(id)
}

// Mark writes one entry of the volume's record.
func (p *Provider) Mark(ctx context.Context, id, key, value string) error {
	if err := entry(key, value); err != nil {
		return fmt.Errorf("cannot mark %s: %w", id, err)
	}
	m, lock, err := p.own(ctx, id)
	if err != nil {
		return fmt.Errorf("cannot mark %s: %w", id, err)
	}
	defer lock.Close()
	if old, ok := m.Record[key]; ok && old == value {
		return nil
	}
	m.Record = merge(m.Record, providers.Record{key: value})
	if err := p.disks.write(m); err != nil {
		return fmt.Errorf("cannot mark %s: %w", id, err)
	}
	return nil
}

// Modify enlarges the image, and the device if this kernel has one for it. An image has nothing else to change.
func (p *Provider) Modify(ctx context.Context, id string, change providers.Change) (*providers.Volume, error) {
	size, err := change.Size, error(nil)
	if size != 0 {
		size, err = roundUp(size)
	}
	if change.Type != "" || change.IOPS != 0 || change.Throughput != 0 {
		err = fmt.Errorf("%w: on provider local a volume's size can be changed, and no other property of a disk", providers.ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot change %s: %w", id, err)
	}
	m, lock, err := p.own(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("cannot change %s: %w", id, err)
	}
	defer lock.Close()
	unlock, err := p.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	size = cmp.Or(size, m.Size)
	if size < m.Size {
		return nil, fmt.Errorf("%w: %s has %s already, and a volume cannot shrink to %s",
			providers.ErrInvalid, id, bytesize(m.Size), bytesize(size))
	}
	if err := p.enlarge(m, lock, size); err != nil {
		return nil, fmt.Errorf("cannot enlarge %s to %s: %w", id, bytesize(size), err)
	}
	return p.volume(m)
}

func (p *Provider) enlarge(m *meta, image *os.File, size int64) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	if grow := size - info.Size(); grow > 0 {
		if err := p.promise(grow); err != nil {
			return err
		}
		if err := p.disks.step("truncate", image.Name()); err != nil {
			return err
		}
		if err := os.Truncate(image.Name(), size); err != nil {
			return err
		}
		if err := image.Sync(); err != nil { // before the description says so
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
		if err := p.regrow(device, image); err != nil {
			return err
		}
	}
	return nil
}

// holds records this node as the holder.
func (p *Provider) holds(m *meta) error {
	m.Holder = &holder{Node: p.node, Boot: p.boot, At: time.Now().UTC().Truncate(time.Second)}
	return p.disks.write(m)
}
