package cloud

import (
	"maps"
	"slices"
	"time"
)

// Volume is a disk.
type Volume struct {
	ID          string
	Size        int64  // bytes
	Type        string // the cloud's word
	IOPS        int    // per second
	Throughput  int    // MiB per second
	Encrypted   bool
	KMSKey      string
	Zone        string
	SnapshotID  string // that it was made from
	State       VolumeState
	CreatedAt   time.Time
	Tags        map[string]string
	Attachments []Attachment // none or one: no instance shares a volume
	Left        Attachment   // the last that has ended, Since when
	MultiAttach bool         // never
	// Modification is the last one, nil if there was none; ModifiedAt are the starts of all.
	Modification *Modification
	ModifiedAt   []time.Time
}

// VolumeState is where a volume is in its life.
type VolumeState string

// The states of a volume.
const (
	Creating  VolumeState = "creating"
	Available VolumeState = "available"
	InUse     VolumeState = "in-use"
	Deleting  VolumeState = "deleting"
	Deleted   VolumeState = "deleted"
	Broken    VolumeState = "error"
)

// Attachment is what ties a volume to an instance.
type Attachment struct {
	Instance            string
	Device              string // as it was asked for
	State               AttachmentState
	DeleteOnTermination bool
	Since               time.Time // when it was asked for
}

// AttachmentState is where an attachment is in its life.
type AttachmentState string

// The states of an attachment.
const (
	Attaching AttachmentState = "attaching"
	Attached  AttachmentState = "attached"
	Detaching AttachmentState = "detaching"
	Busy      AttachmentState = "busy" // asked to detach, and the instance does not let go
)

// Modification is a change of a volume's size or kind.
type Modification struct {
	State            ModificationState
	Start, End       time.Time
	Progress         int // percent
	Original, Target Shape
}

// Shape is what can be modified of a volume.
type Shape struct {
	Size       int64 // bytes
	Type       string
	IOPS       int
	Throughput int
}

// ModificationState is where a modification is in its life.
type ModificationState string

// The states of a modification.
const (
	Modifying  ModificationState = "modifying"
	Optimizing ModificationState = "optimizing" // the new size is there
	Completed  ModificationState = "completed"
	Failed     ModificationState = "failed"
)

// VolumeSpec is what a volume shall be.
type VolumeSpec struct {
	Shape      // Size 0 with SnapshotID is the snapshot's
	Encrypted  bool
	KMSKey     string
	Zone       string // "" is the default
	SnapshotID string // "" is a blank disk
	Tags       map[string]string
	Doomed     bool // it is accepted, then turns out to be impossible: it ends in error, and is gone
	Stays      bool // in error, if it is Doomed, until it is deleted
}

// Shape returns what can be modified of the volume.
func (v Volume) Shape() Shape { return Shape{v.Size, v.Type, v.IOPS, v.Throughput} }

func (v Volume) attachedTo(instance string) (Attachment, bool) {
	for _, a := range v.Attachments {
		if a.Instance == instance {
			return a, true
		}
	}
	return Attachment{}, false
}

func (v Volume) clone() Volume {
	v.Tags = maps.Clone(v.Tags)
	v.Attachments = slices.Clone(v.Attachments)
	v.ModifiedAt = slices.Clone(v.ModifiedAt)
	if v.Modification != nil {
		m := *v.Modification
		v.Modification = &m
	}
	return v
}

// Volume returns the truth about a volume.
func (c *Cloud) Volume(id string) (Volume, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.volumes[id].now()
	return v.clone(), ok
}

// Volumes returns the truth about all volumes, the oldest first.
func (c *Cloud) Volumes() []Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listVolumes(c.volumes)
}

// Volumes returns all volumes as a read shows them.
func (r *Request) Volumes() []Volume {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.c.listVolumes(seen(r.c, r.c.volumes))
}

func (c *Cloud) listVolumes(from map[string]*history[Volume]) []Volume {
	all := live(from, func(a, b Volume) int { return byAge(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	for i := range all {
		all[i] = all[i].clone()
	}
	return all
}

// change edits a volume that exists; the edit returns whether it changed anything. The caller holds the lock.
func (c *Cloud) change(id string, edit func(*Volume) bool) bool {
	v, ok := c.volumes[id].now()
	if !ok {
		return false
	}
	v = v.clone()
	if !edit(&v) {
		return false
	}
	c.volumes[id].put(v, false, c.cfg.Lag)
	return true
}

// settle is change for what goes on in the background.
func (c *Cloud) settle(id string, edit func(*Volume) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.change(id, edit)
}

// gone takes a volume off the books.
func (c *Cloud) gone(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, _ := c.volumes[id].now()
	c.volumes[id].put(v, true, c.cfg.Lag)
}

// add enters a volume. The caller holds the lock.
func (c *Cloud) add(v Volume) {
	c.volumes[v.ID] = &history[Volume]{}
	c.volumes[v.ID].put(v, false, c.cfg.Lag)
	c.plugs[v.ID] = &plug{gate: make(chan struct{}, 1)}
}

// addRoot gives an instance its root volume. The caller holds the lock.
func (c *Cloud) addRoot(i Instance) {
	root := c.id(AVolume)
	c.add(Volume{
		ID: root, Size: 8 << 30, Type: "gp3", IOPS: 3000, Throughput: 125, Zone: i.Zone,
		State: InUse, CreatedAt: i.LaunchedAt, Tags: map[string]string{},
		Attachments: []Attachment{{i.ID, i.RootDevice, Attached, true, i.LaunchedAt}},
	})
	c.plugs[root].root = true
}

// CreateVolume begins to make a volume.
// Errors: ErrNoZone, ErrNoSnapshot, ErrState for a snapshot that is not completed, ErrTooSmall.
func (r *Request) CreateVolume(spec VolumeSpec) (Volume, error) {
	c := r.c
	c.mu.Lock()
	v, err := c.newVolume(spec)
	c.mu.Unlock()
	if err != nil || r.never {
		return v, err
	}
	c.later(c.times().Create, func() { c.created(v, spec) })
	return v.clone(), nil
}

func (c *Cloud) newVolume(spec VolumeSpec) (Volume, error) {
	zone, err := c.zone(spec.Zone)
	if err != nil {
		return Volume{}, err
	}
	if spec.SnapshotID != "" {
		s, ok := c.snapshots[spec.SnapshotID].now()
		switch {
		case !ok:
			return Volume{}, ErrNoSnapshot
		case s.State != SnapshotCompleted:
			return Volume{}, ErrState
		case spec.Size == 0:
			spec.Size = s.Size
		case spec.Size < s.Size:
			return Volume{}, ErrTooSmall
		}
		if s.Encrypted {
			spec.Encrypted = true
			if spec.KMSKey == "" {
				spec.KMSKey = s.KMSKey
			}
		}
	}
	tags := maps.Clone(spec.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	v := Volume{
		ID: c.id(AVolume), Size: spec.Size, Type: spec.Type, IOPS: spec.IOPS, Throughput: spec.Throughput,
		Encrypted: spec.Encrypted, KMSKey: spec.KMSKey, Zone: zone, SnapshotID: spec.SnapshotID,
		State: Creating, CreatedAt: c.Now(), Tags: tags,
	}
	c.add(v)
	return v, nil
}

// created ends a creation.
func (c *Cloud) created(v Volume, spec VolumeSpec) {
	if spec.Doomed {
		c.settle(v.ID, func(v *Volume) bool { v.State = Broken; return true })
		if !spec.Stays {
			c.later(c.times().Create, func() { c.gone(v.ID) })
		}
		return
	}
	c.exclusively(v.ID, func() {
		state := Available
		if c.cfg.Backend != nil {
			if err := c.cfg.Backend.CreateDisk(v.ID, v.Size, v.SnapshotID); err != nil {
				c.problem("creating %s: %w", v.ID, err)
				state = Broken
			} else {
				c.mu.Lock()
				c.plugs[v.ID].disk = true
				c.mu.Unlock()
			}
		}
		c.settle(v.ID, func(v *Volume) bool { v.State = state; return true })
	})
}

// DeleteVolume begins to destroy a volume. It is shown as deleting, then as deleted, then no more.
// Errors: ErrNoVolume, also while it is being deleted; ErrInUse; ErrState.
func (r *Request) DeleteVolume(id string) error {
	c := r.c
	c.mu.Lock()
	v, ok := c.volumes[id].now()
	var err error
	switch {
	case !ok || v.State == Deleting || v.State == Deleted:
		err = ErrNoVolume
	case len(v.Attachments) > 0:
		err = ErrInUse
	case v.State == Creating:
		err = ErrState
	default:
		c.change(id, func(v *Volume) bool { v.State = Deleting; return true })
	}
	c.mu.Unlock()
	if err == nil && !r.never {
		c.destroy(id)
	}
	return err
}

// destroy ends what is shown as deleting.
func (c *Cloud) destroy(id string) {
	c.mu.Lock()
	hasDisk := c.cfg.Backend != nil && c.plugs[id].disk
	c.mu.Unlock()
	c.later(c.times().Delete/2, func() {
		c.exclusively(id, func() {
			if hasDisk {
				if err := c.cfg.Backend.DeleteDisk(id); err != nil {
					c.problem("deleting %s: %w", id, err)
				}
			}
			c.settle(id, func(v *Volume) bool { v.State = Deleted; return true })
		})
		c.later(c.times().Delete/2, func() { c.gone(id) })
	})
}

// ModifyVolume begins to change a volume. Its Shape is the new one from when the modification is optimizing. What the
// cloud refuses, allow returns.
// Errors: ErrNoVolume, ErrState, and those of allow.
func (r *Request) ModifyVolume(id string, allow func(Volume) (target Shape, err error)) (Modification, error) {
	c := r.c
	c.mu.Lock()
	m, err := c.modify(id, allow)
	c.mu.Unlock()
	if err == nil && !r.never {
		c.later(c.times().Modify/2, func() { c.modified(id, m.Target) })
	}
	return m, err
}

func (c *Cloud) modify(id string, allow func(Volume) (Shape, error)) (Modification, error) {
	v, ok := c.volumes[id].now()
	switch {
	case !ok || v.State == Deleting || v.State == Deleted:
		return Modification{}, ErrNoVolume
	case v.State != Available && v.State != InUse:
		return Modification{}, ErrState
	}
	target, err := allow(v.clone())
	if err != nil {
		return Modification{}, err
	}
	m := Modification{State: Modifying, Start: time.Now(), Original: v.Shape(), Target: target}
	c.change(id, func(v *Volume) bool {
		v.Modification = &m
		v.ModifiedAt = append(v.ModifiedAt, m.Start)
		return true
	})
	return m, nil
}

// modified ends the first half of a modification, and begins the second.
func (c *Cloud) modified(id string, target Shape) {
	step := func(edit func(v *Volume, m *Modification)) bool {
		return c.settle(id, func(v *Volume) bool { edit(v, v.Modification); return true })
	}
	ok := false
	c.exclusively(id, func() {
		if v, exists := c.Volume(id); !exists || v.State == Deleting || v.State == Deleted {
			return
		}
		if c.cfg.Backend != nil {
			if err := c.cfg.Backend.ResizeDisk(id, target.Size); err != nil {
				c.problem("resizing %s: %w", id, err)
				step(func(_ *Volume, m *Modification) { m.State, m.End = Failed, time.Now() })
				return
			}
		}
		ok = step(func(v *Volume, m *Modification) {
			v.Size, v.Type, v.IOPS, v.Throughput = target.Size, target.Type, target.IOPS, target.Throughput
			m.State, m.Progress = Optimizing, 50
		})
	})
	if ok {
		c.later(c.times().Modify/2, func() {
			step(func(_ *Volume, m *Modification) { m.State, m.Progress, m.End = Completed, 100, time.Now() })
		})
	}
}
