package cloud

import (
	"maps"
	"time"
)

// Snapshot is a copy of a volume at one point in time.
type Snapshot struct {
	ID          string
	VolumeID    string
	Size        int64 // bytes, of the volume
	Description string
	State       SnapshotState
	Progress    int // percent
	Encrypted   bool
	KMSKey      string
	StartedAt   time.Time
	CompletedAt time.Time
	Tags        map[string]string
}

// SnapshotState is a state of a snapshot.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotPending   SnapshotState = "pending"
	SnapshotCompleted SnapshotState = "completed"
	SnapshotError     SnapshotState = "error"
	SnapshotDeleting  SnapshotState = "deleting" // only after Request.RetireSnapshot
)

func (s Snapshot) clone() Snapshot {
	s.Tags = maps.Clone(s.Tags)
	return s
}

// Snapshots returns the current state of all snapshots, the oldest first, regardless of Lag.
func (c *Cloud) Snapshots() []Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return list(c.snapshots, current, nil, olderSnapshot)
}

// Snapshots returns all snapshots, subject to Lag.
func (r *Request) Snapshots() []Snapshot {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return list(r.c.snapshots, seen[Snapshot](r.c), nil, olderSnapshot)
}

func olderSnapshot(a, b Snapshot) int { return byAge(a.StartedAt, b.StartedAt, a.ID, b.ID) }

// CreateSnapshot begins to copy a volume. The Backend decides at which time its copy is taken.
//
// Errors: ErrNoVolume, ErrState.
func (r *Request) CreateSnapshot(volume, description string, tags map[string]string) (Snapshot, error) {
	c := r.c
	c.mu.Lock()
	v, ok := c.volumes[volume].now()
	if !ok || v.State == Deleting || v.State == Deleted {
		c.mu.Unlock()
		return Snapshot{}, ErrNoVolume
	}
	if v.State != Available && v.State != InUse {
		c.mu.Unlock()
		return Snapshot{}, ErrState
	}
	s := Snapshot{
		ID: c.id(ASnapshot), VolumeID: volume, Size: v.Size, Description: description, State: SnapshotPending,
		Encrypted: v.Encrypted, KMSKey: v.KMSKey, StartedAt: c.Now(), Tags: maps.Clone(tags),
	}
	if s.Tags == nil {
		s.Tags = map[string]string{}
	}
	c.snapshots[s.ID] = &history[Snapshot]{}
	c.snapshots[s.ID].put(s, false, c.cfg.Lag)
	c.mu.Unlock()
	c.later(0, func() { c.copied(s.ID, volume, r.never) })
	return s.clone(), nil
}

// copied makes the copy and completes the snapshot later.
func (c *Cloud) copied(id, volume string, never bool) {
	state := SnapshotCompleted
	if c.cfg.Backend != nil {
		c.exclusively(volume, func() {
			if err := c.cfg.Backend.CopyDisk(volume, id); err != nil {
				c.problem("making snapshot %s of %s: %w", id, volume, err)
				state = SnapshotError
			}
		})
	}
	if never {
		return
	}
	c.later(c.times().Snapshot, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if s, ok := c.snapshots[id].now(); ok {
			s.State, s.Progress, s.CompletedAt = state, 100, c.Now()
			c.snapshots[id].put(s, false, c.cfg.Lag)
		}
	})
}

// RetireSnapshot begins to delete a snapshot, which is SnapshotDeleting meanwhile.
//
// Errors: ErrNoSnapshot.
func (r *Request) RetireSnapshot(id string) error {
	c := r.c
	c.mu.Lock()
	s, ok := c.snapshots[id].now()
	if ok {
		s.State = SnapshotDeleting
		c.snapshots[id].put(s, false, c.cfg.Lag)
	}
	c.mu.Unlock()
	if !ok {
		return ErrNoSnapshot
	}
	c.later(c.times().Delete, func() { _ = r.DeleteSnapshot(id) })
	return nil
}

// DeleteSnapshot deletes a snapshot at once.
//
// Errors: ErrNoSnapshot.
func (r *Request) DeleteSnapshot(id string) error {
	c := r.c
	c.mu.Lock()
	s, ok := c.snapshots[id].now()
	if !ok {
		c.mu.Unlock()
		return ErrNoSnapshot
	}
	c.snapshots[id].put(s, true, c.cfg.Lag)
	c.mu.Unlock()
	if c.cfg.Backend != nil {
		c.later(0, func() { c.dropCopy(s) })
	}
	return nil
}

// dropCopy deletes the data of a deleted snapshot, once no volume that was created from it needs it.
func (c *Cloud) dropCopy(s Snapshot) {
	if len(c.VolumesThat(func(v Volume) bool { return v.SnapshotID == s.ID && v.State == Creating })) > 0 {
		c.later(c.times().Create+time.Millisecond, func() { c.dropCopy(s) })
		return
	}
	c.exclusively(s.VolumeID, func() { // after a pending copy
		if err := c.cfg.Backend.DeleteSnapshot(s.ID); err != nil {
			c.problem("deleting %s: %w", s.ID, err)
		}
	})
}

// EditTags edits the tags of volumes, instances and snapshots. If edit fails for one, none is changed.
//
// Errors: those of edit, and ErrNoVolume, ErrNoInstance or ErrNoSnapshot with the missing ID.
func (r *Request) EditTags(ids []string, edit func(id string, tags map[string]string) error) (missing string, err error) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var apply []func()
	for _, id := range ids {
		var tags map[string]string
		if i, ok := c.instances[id].now(); ok {
			i = i.clone()
			tags = i.Tags
			apply = append(apply, func() { c.instances[id].put(i, false, c.cfg.Lag) })
		} else if s, ok := c.snapshots[id].now(); ok {
			s = s.clone()
			tags = s.Tags
			apply = append(apply, func() { c.snapshots[id].put(s, false, c.cfg.Lag) })
		} else if v, ok := c.volumes[id].now(); ok && v.State != Deleted {
			v = v.clone()
			tags = v.Tags
			apply = append(apply, func() { c.volumes[id].put(v, false, c.cfg.Lag) })
		} else {
			return id, absent(id)
		}
		if err := edit(id, tags); err != nil {
			return "", err
		}
	}
	for _, put := range apply {
		put()
	}
	return "", nil
}

func absent(id string) error {
	switch {
	case len(id) > 2 && id[:2] == "i-":
		return ErrNoInstance
	case len(id) > 5 && id[:5] == "snap-":
		return ErrNoSnapshot
	default:
		return ErrNoVolume
	}
}

// Tags returns the current tags of a volume, an instance or a snapshot, or nil if it does not exist.
func (r *Request) Tags(id string) map[string]string {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if i, ok := c.instances[id].now(); ok {
		return maps.Clone(i.Tags)
	}
	if s, ok := c.snapshots[id].now(); ok {
		return maps.Clone(s.Tags)
	}
	v, _ := c.volumes[id].now()
	return maps.Clone(v.Tags)
}
