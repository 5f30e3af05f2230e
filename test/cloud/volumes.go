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
	Type        string // as the cloud names it
	IOPS        int    // per second
	Throughput  int    // MiB per second
	Encrypted   bool
	KMSKey      string
	Zone        string
	SnapshotID  string // snapshot it was created from
	State       VolumeState
	CreatedAt   time.Time
	Tags        map[string]string
	Attachments []Attachment // at most one: volumes are not shared
	Left        Attachment   // the last one that has ended; Since is when it ended
	MultiAttach bool         // always false
	// Modification is the last one, or nil. ModifiedAt has the start times of all.
	Modification *Modification
	ModifiedAt   []time.Time
}

// VolumeState is a state of a volume.
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

// Attachment is the attachment of a volume to an instance.
type Attachment struct {
	Instance            string
	Device              string // as requested
	State               AttachmentState
	DeleteOnTermination bool
	Since               time.Time // when it was requested
}

// AttachmentState is a state of an attachment.
type AttachmentState string

// The states of an attachment.
const (
	Attaching AttachmentState = "attaching"
	Attached  AttachmentState = "attached"
	Detaching AttachmentState = "detaching"
	Busy      AttachmentState = "busy" // a detach was requested, but the instance still uses the device
)

// Modification is a change of a volume's size or type.
type Modification struct {
	State            ModificationState
	Start, End       time.Time
	Progress         int // percent
	Original, Target Shape
}

// Shape is the properties of a volume that can be modified.
type Shape struct {
	Size       int64 // bytes
	Type       string
	IOPS       int
	Throughput int
}

// ModificationState is a state of a modification.
type ModificationState string

// The states of a modification.
const (
	Modifying  ModificationState = "modifying"
	Optimizing ModificationState = "optimizing" // the new size is in effect
	Completed  ModificationState = "completed"
	Failed     ModificationState = "failed"
)

// VolumeSpec describes a volume to create.
type VolumeSpec struct {
	Shape      // Size 0 with SnapshotID: the snapshot's size
	Encrypted  bool
	KMSKey     string
	Zone       string // "" is the default
	SnapshotID string // "" for a blank disk
	Tags       map[string]string
	Doomed     bool // accepted, but then the volume ends in state error and disappears
	Stays      bool // with Doomed: stays in state error until it is deleted
}

// Shape returns the volume's current shape.
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

// Volume returns the current state of a volume, regardless of Lag.
func (c *Cloud) Volume(id string) (Volume, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.volumes[id].now()
	return v.clone(), ok
}

// Volumes returns the current state of all volumes, the oldest first, regardless of Lag.
func (c *Cloud) Volumes() []Volume { return c.VolumesThat(nil) }

// VolumesThat is Volumes for those that match. The match must not change the volume or call the cloud.
func (c *Cloud) VolumesThat(match func(Volume) bool) []Volume {
	c.mu.Lock()
	defer c.mu.Unlock()
	return list(c.volumes, current, match, olderVolume)
}

// AnyVolume reports whether a volume matches, with the rules of VolumesThat.
func (c *Cloud) AnyVolume(match func(Volume) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, object := range c.volumes {
		if v, exists := object.now(); exists && match(v) {
			return true
		}
	}
	return false
}

// Volumes returns all volumes, subject to Lag.
func (r *Request) Volumes() []Volume { return r.VolumesThat(nil) }

// VolumesThat is Volumes for those that match, with the rules of Cloud.VolumesThat.
func (r *Request) VolumesThat(match func(Volume) bool) []Volume {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return list(r.c.volumes, seen[Volume](r.c), match, olderVolume)
}

// Volume returns a volume, subject to Lag.
func (r *Request) Volume(id string) (Volume, bool) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	of := r.c.volumes[id]
	if of == nil {
		return Volume{}, false
	}
	v, exists := seen[Volume](r.c)(id, of)
	return v.clone(), exists
}

func olderVolume(a, b Volume) int { return byAge(a.CreatedAt, b.CreatedAt, a.ID, b.ID) }

// change edits an existing volume. The edit reports whether it changed anything. The caller holds the lock.
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

// settle is change for background operations: it takes the lock.
func (c *Cloud) settle(id string, edit func(*Volume) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.change(id, edit)
}

// gone removes a volume from the cloud.
func (c *Cloud) gone(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, _ := c.volumes[id].now()
	c.volumes[id].put(v, true, c.cfg.Lag)
}

// add adds a volume. The caller holds the lock.
func (c *Cloud) add(v Volume) {
	c.volumes[v.ID] = &history[Volume]{}
	c.volumes[v.ID].put(v, false, c.cfg.Lag)
	c.plugs[v.ID] = &plug{gate: make(chan struct{}, 1)}
}

// addRoot adds an instance's root volume. The caller holds the lock.
func (c *Cloud) addRoot(i Instance) {
	root := c.id(AVolume)
	c.add(Volume{
		ID: root, Size: 8 << 30, Type: "gp3", IOPS: 3000, Throughput: 125, Zone: i.Zone,
		State: InUse, CreatedAt: i.LaunchedAt, Tags: map[string]string{},
		Attachments: []Attachment{{i.ID, i.RootDevice, Attached, true, i.LaunchedAt}},
	})
	c.plugs[root].root = true
}

// CreateVolume begins to create a volume.
//
// Errors: ErrNoZone, ErrNoSnapshot, ErrState if the snapshot is not completed, ErrTooSmall.
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

// created completes a creation.
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

// DeleteVolume begins to delete a volume. Its state is Deleting, then Deleted, and then it is gone.
//
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

// destroy completes the deletion of a volume in state Deleting.
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

// ModifyVolume begins to modify a volume. Its Shape changes when the modification becomes Optimizing. Function allow returns
// the new shape or the cloud's error.
//
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

// modified completes the first half of a modification and begins the second.
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
