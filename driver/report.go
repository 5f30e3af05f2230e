package driver

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
)

// Here is what this node has of a volume, or does with it. Two volumes of it never have the same Name.
type Here struct {
	Name string
	ID   string // the disk's id in the cloud; empty if this node has nothing of the volume yet
	// State is "mounted", "attached", or "" if this node has nothing of the volume yet. A disk that is being attached or
	// detached is attached.
	State  string
	Device string // the disk's device on this node; empty if it was not seen
	Size   int64  // of the device, in bytes; 0 if it was not seen
	Uses   []node.Use
	Space  mount.Space // how full the file system was at MeasuredAt; both are zero if it is not mounted, or not measured yet

	MeasuredAt time.Time // at most a minute ago, unless the kernel does not answer

	Phase   volume.Phase // what is being done with the volume; empty if nothing
	Message string       // that in words, with its reason
	Since   time.Time    // since when; zero if nothing is being done at this moment

	// Of a volume with a schedule of snapshots: for when the latest complete one was due, and when one was due that is not complete;
	// each is zero if there is none.
	LastSnapshot, SnapshotDue time.Time

	Releasing time.Time // since when nobody uses the volume and its release is unfinished; zero if it is not being released
	Problem   string    // why its last release is not finished, or that its disk was taken from this node; empty if neither
}

// Here tells of the volumes that this node has or does something with, sorted by name. It knows all of it by heart: it waits for
// neither the cloud nor the kernel nor a call.
func (d *Driver) Here() []Here {
	d.mu.Lock()
	handles := make([]*handle, 0, len(d.volumes))
	for _, h := range d.volumes {
		handles = append(handles, h)
	}
	d.mu.Unlock()
	all := make([]Here, len(handles))
	for i, h := range handles {
		all[i] = h.report(h.Entry())
		all[i].LastSnapshot, all[i].SnapshotDue = d.scheduleOf(all[i].ID)
	}
	slices.SortFunc(all, func(a, b Here) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Identified tells whether the cloud has told which node this is, since the start.
func (d *Driver) Identified() bool { return d.nodeID.Load() != nil }

// Ready returns why the volumes of this node cannot be mounted now, or nil. It asks the kernel and the state directory, and may have
// to wait for them; it does not ask the cloud.
func (d *Driver) Ready(ctx context.Context) error {
	var identity error
	if !d.Identified() {
		identity = errors.New("the cloud has not told yet which node this is")
	}
	return errors.Join(identity, d.node.Ready(ctx))
}

// report is what this node has of the volume, whose entry is e; nil if it has none.
func (h *handle) report(e *node.Entry) Here {
	r := Here{Name: h.Name}
	if e != nil {
		r.ID, r.Uses, r.State = e.Volume, e.Uses, "attached"
		r.Releasing = h.ReleasingSince()
		if dev := h.Device(); dev.Path != "" {
			r.Device, r.Size = dev.Path, dev.Size
		}
		if h.Mountpoint() != "" {
			r.State = "mounted"
			r.Space, r.MeasuredAt = h.Space()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.step.Phase != "":
		r.Phase, r.Message, r.Since = h.step.Phase, h.words(), h.since
	case e != nil && e.Releasing:
		r.Phase, r.Message = volume.Releasing, volume.Releasing.Words()
	}
	switch {
	case e == nil:
	case e.Releasing && h.problem != nil:
		r.Problem = h.problem.Error()
	case e.Taken:
		r.Problem = "the disk was taken from this node while it was mounted: its file system is shut down; stop what uses it here"
	}
	return r
}
