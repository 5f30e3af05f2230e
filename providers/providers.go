// Package providers is the contract that every cloud keeps towards the driver: what a volume, a node and a snapshot are,
// what each call guarantees, and the errors that the driver acts upon.
//
// A provider translates; it takes no decision about data. Whether a volume may be formatted, taken from another node or
// deleted is the driver's business. In return the provider answers truly: it never guesses that a volume does not exist
// because the cloud could not be asked, and never reports a success that it has not seen.
//
// Every call may come twice, late, or after a crash of the process, from several goroutines at once, and from several
// nodes at once. A call that has already been carried out succeeds again with the same answer.
package providers

import (
	"cmp"
	"context"
	"net/netip"
	"time"
)

// MaxStale is how stale an answer of a cloud may be: it shows all that was written this long before the question.
const MaxStale = 10 * time.Second

// Provider is one cloud, seen from one node, restricted to the volumes of one cluster. Volumes that do not have the
// cluster's mark do not exist for it, with the sole exception of Adopt.
//
// Constructors check their settings and make no call to the cloud, so that the plugin can listen at once.
type Provider interface {
	// Node tells which node this is. The answer does not change while the process runs and is kept by the provider.
	Node(ctx context.Context) (Node, error)

	// NodeState tells what the cloud itself says about a node, this one or another.
	NodeState(ctx context.Context, node string) (NodeState, error)

	// Supports lists the options of Spec beyond name and size that this cloud has, by their names in Docker's options
	// ("type", "iops", "throughput", "encrypted", "kms-key", "zone", "snapshot", "tags"), sorted.
	Supports() []string

	// Buses are those on which this cloud's disks appear to the kernel, by its names for them: nvme, scsi, virtio, loop. What
	// shows a volume's Serial on another bus is not the volume's disk.
	Buses() []string

	// Find returns the volume of that exact name, wherever in the region it is.
	// Errors: ErrNotFound only if the cloud said so; ErrAmbiguous if several have the name, naming their ids.
	Find(ctx context.Context, name string) (*Volume, error)

	// List returns all volumes of the cluster, sorted by name. Some that cannot be read do not hide the others: those are
	// returned with an error that names the rest; with an error and a list that is nil, none could be read. Volumes may share their
	// maps, so the caller changes none of them.
	List(ctx context.Context) ([]*Volume, error)

	// Create makes the volume and returns it once it can be attached. If a volume of that name exists, whoever made it,
	// that one is returned unchanged: the caller compares. Two nodes that create one name at once get one volume. One made
	// from a snapshot gets the snapshot's Record, with the entries of spec.Record written over it.
	// Errors: ErrInvalid for a specification that the cloud does not accept, ErrNoSpace for a quota or a full pool.
	Create(ctx context.Context, spec Spec) (*Volume, error)

	// Adopt makes an existing disk, named by the cloud's id, a volume of this cluster under spec.Name. The disk's
	// contents, size and type stay as they are. The Record that it has from an earlier life with blockvol is kept, and
	// the entries of spec.Record are written over it.
	// Errors: ErrNotFound, ErrInvalid if it belongs to another name or cluster or is held.
	Adopt(ctx context.Context, id string, spec Spec) (*Volume, error)

	// Forget removes name and cluster from a volume and leaves the disk with its data and its Record, for a later Adopt.
	// Errors: ErrHeld.
	Forget(ctx context.Context, id string) error

	// Delete destroys the volume and its data. A volume that is not there is success.
	// Errors: ErrHeld if any node holds it.
	Delete(ctx context.Context, id string) error

	// Attach asks for the volume to be attached to the named node and returns as soon as the cloud has taken the request;
	// the caller waits for the device to appear, and asks Find seldom to learn of failure. A provider whose disks are this
	// machine's own refuses other nodes as ErrInvalid.
	// Errors: *HeldError (ErrHeld) if another node has it, ErrAttachLimit, ErrBusy to try again a little later.
	Attach(ctx context.Context, id, node string) error

	// Detach asks for the volume to be detached from the named node and returns as soon as the cloud has taken the
	// request; a volume that the node does not hold is success. The caller has made sure that nothing is mounted.
	// With force the cloud takes it from a node that does not co-operate: data that node had not written is lost, so
	// the driver forces only on evidence that the node is gone, and such a call must not be sent again after ctx.
	// Errors: ErrBusy.
	Detach(ctx context.Context, id, node string, force bool) error

	// Mark writes one entry of the volume's Record. It returns after the cloud has stored it.
	Mark(ctx context.Context, id, key, value string) error
}

// AsProvider is a constructor's result as the contract has it.
func AsProvider[P Provider](p P, err error) (Provider, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Snapshotter is a Provider that can take snapshots, and create volumes from them (Spec.Snapshot).
type Snapshotter interface {
	// Snapshot copies the volume as it is at one instant, and returns once that instant has passed: what is written to the volume
	// from then on is not in the copy. The copy may be incomplete for long after that; until it is complete the volume must not be
	// deleted. The volume's Record goes with it, with the entries of spec.Record written over it. Calls with the same volume and
	// description make one snapshot, and another only if that has failed.
	// Errors: ErrHeld if this cloud cannot take a consistent copy while the volume is in use; ErrNotFound.
	Snapshot(ctx context.Context, id string, spec SnapshotSpec) (*Snapshot, error)

	// FindSnapshot returns a snapshot of the cluster. Errors: ErrNotFound.
	FindSnapshot(ctx context.Context, id string) (*Snapshot, error)

	// ListSnapshots returns all snapshots of the cluster, the oldest first. Some that cannot be read do not hide the others: those are
	// returned with an error that names the rest, which are not being copied any more; with an error and a list that is nil, none could be
	// read.
	ListSnapshots(ctx context.Context) ([]*Snapshot, error)

	// DeleteSnapshot destroys a snapshot. One that is not there is success.
	DeleteSnapshot(ctx context.Context, id string) error
}

// HeldLister is a Provider that can list the volumes of one node, at less cost than List if others have many.
type HeldLister interface {
	// ListHeld returns the volumes that the cloud says the node holds, sorted by name. As with List, some that cannot be read do not hide
	// the others.
	ListHeld(ctx context.Context, node string) ([]*Volume, error)
}

// Modifier is a Provider that can change a volume, also while it is in use. Its file system is the driver's business.
type Modifier interface {
	// Modify makes the volume what change says, and returns it once the cloud shows it so; its device follows by itself.
	// A size is rounded up to what the cloud sells. A volume that is so already is success, however often it is asked for
	// and however recent its last change; a Change of nothing is too.
	// Errors: ErrInvalid for a size below the volume's, a value out of range, or one that this cloud does not have, and
	// then nothing is changed; ErrBusy while an earlier change is not finished, or too recent for another: the sentence
	// says when there can be one; ErrNoSpace; ErrNotFound.
	Modify(ctx context.Context, id string, change Change) (*Volume, error)
}

// SlotCounter is a Provider that knows how many disks its node can have.
type SlotCounter interface {
	// Slots counts the places for disks of this node, as the cloud tells now.
	Slots(ctx context.Context) (Slots, error)
}

// Slots are a node's places for disks.
type Slots struct {
	Most int // disks that the node can have; 0 if nothing but the machine sets a limit
	Used int // places that are taken, also by disks and devices that are no volumes where they need one
}

// Fencer is a Provider that can power off other nodes.
//
// PowerOff and PowerOn return as soon as the cloud has taken the request, or is carrying out such a one already: NodeState tells when
// it is done. A call may come twice, and must not be sent again after ctx.
// Errors: ErrDenied if the credentials do not allow it, ErrBusy to try again a little later, ErrNotFound if the node is gone, ErrInvalid for
// this node itself, or one that the cloud powers off for nobody. After any other error the node's state has to be asked for before the next
// call: the cloud may have taken the request.
type Fencer interface {
	// PowerOff cuts the node off from its power, without its help, as if the plug were pulled. It is carried out on no node but that one,
	// which may be running, frozen, or off already.
	PowerOff(ctx context.Context, node string) error

	// PowerOn starts the node again. One that runs is left as it is.
	PowerOn(ctx context.Context, node string) error

	// ExamineFence tells whether the credentials allow PowerOff and PowerOn, as far as the cloud tells without doing it.
	ExamineFence(ctx context.Context) Finding
}

// PluginLister is a Provider that can list the disks of other plugins for Docker on its cloud.
type PluginLister interface {
	// Plugins are the names of those plugins, sorted; empty if it knows of none.
	Plugins() []string

	// PluginDisks lists the disks that a plugin has made or used, sorted by name, as far as the cloud shows that: without those that belong
	// to a cluster of blockvol, and only where this node can have them attached.
	// Errors: ErrInvalid for a plugin that is not among Plugins.
	PluginDisks(ctx context.Context, plugin string) ([]PluginDisk, error)
}

// PluginDisk is a disk of another plugin.
type PluginDisk struct {
	ID        string
	Name      string // the volume's name there
	Size      int64  // bytes
	Zone      string
	CreatedAt time.Time // zero if the cloud does not tell
	Node      string    // that holds it; empty if none does
	Marked    bool      // it has that plugin's own mark; otherwise it merely has a name, as all its disks have
}

// OrphanLister is a Provider that can list disks of the cluster that are no volumes.
type OrphanLister interface {
	// Orphans lists the disks that blockvol has made or adopted and that are no volumes, sorted by the name that they had: those of this
	// cluster, and those of which the cloud does not show whose they were. It takes no request for each disk.
	Orphans(ctx context.Context) ([]Orphan, error)
}

// Orphan is a disk that is no volume.
type Orphan struct {
	ID        string
	Name      string // of the volume that it was, or was to be; empty if that is not known
	Kind      OrphanKind
	Detail    string // more, in words; may be empty
	Size      int64  // bytes
	Zone      string // empty where the cloud has none
	CreatedAt time.Time
	Node      string // that holds it; empty if none does, or the cloud does not tell in a list
}

// OrphanKind is why a disk is no volume.
type OrphanKind string

// The kinds of orphans.
const (
	OrphanKept       OrphanKind = "kept"       // the volume was forgotten and its disk kept, for a later Adopt
	OrphanUnclaimed  OrphanKind = "unclaimed"  // the same, and of which cluster it was is not known
	OrphanUnreadable OrphanKind = "unreadable" // its marks are damaged, or the cloud cannot use it
	OrphanAmbiguous  OrphanKind = "ambiguous"  // another disk has the same name
	OrphanUnfinished OrphanKind = "unfinished" // what an interrupted create or delete has left
)

// TagReader is a Provider that tells the operator's own tags of a volume.
type TagReader interface {
	// Tags returns the tags of a volume that are not blockvol's, as the cloud has them now and Spec.Tags takes them. Errors: ErrNotFound.
	Tags(ctx context.Context, id string) (map[string]string, error)
}

// Change is what shall be different of a volume. A zero field stays as it is.
type Change struct {
	Size       int64  // bytes; volumes only grow
	Type       string // the cloud's word for the kind of disk
	IOPS       int    // per second
	Throughput int    // MiB per second
}

// Spec is what a volume shall be. A zero field is the cloud's default.
type Spec struct {
	Name       string            // Docker's name, exact, up to 255 bytes
	Size       int64             // bytes; rounded up to what the cloud sells; 0 with Snapshot is the snapshot's own size
	Type       string            // the cloud's word for the kind of disk
	IOPS       int               // per second
	Throughput int               // MiB per second
	Encrypted  bool              // encrypted by the cloud, at rest
	KMSKey     string            // the key to encrypt with, in the cloud's notation
	Zone       string            // where; default is the zone of this node
	Snapshot   string            // id of the snapshot to copy from
	Tags       map[string]string // the operator's own tags
	Record     Record            // what the driver has to know again, on any node
}

// Record is what the driver keeps with the volume in the cloud, because any node may be the next to mount it. Keys are
// lower-case words, up to 16 bytes; values are UTF-8, up to 255 bytes. Providers keep both whole, whatever the rules of
// their cloud's tags, and do not interpret them.
type Record map[string]string

// Volume is a disk of the cloud, as the cloud described it when it was asked.
//
// No two volumes of a cloud that are there at once, and could be attached to one node, have the same Serial; and a volume
// keeps it for life, whatever its name becomes. But where the cloud takes it from the name, a volume that is made after another
// was deleted may have that one's. So a Serial tells apart what is attached now, and the ID alone what was from what is. See
// mount.Device for how it is read.
type Volume struct {
	ID         string            // the cloud's own, never used again for another disk
	Name       string            // Docker's, exact
	Size       int64             // bytes
	Zone       string            // empty where the cloud has none
	CreatedAt  time.Time         // zero if the cloud does not tell
	Serial     string            // the identity that the kernel will show for its device, see below
	Snapshot   string            // the snapshot it was made from, by the cloud's own record; empty if none
	Record     Record            // never nil
	Attachment Attachment        // the node that holds it
	Details    map[string]string // effective values for people, under the names of Docker's options where there is one
}

// Attachment tells which node holds a volume.
type Attachment struct {
	Node    string // empty if no node holds it
	State   AttachState
	Problem string // the cloud's reason if State is AttachFailed
}

// AttachState is where an attachment stands.
type AttachState string

// The states of an attachment. A volume in any of them but Detached is held.
const (
	Detached     AttachState = ""
	Attaching    AttachState = "attaching"
	Attached     AttachState = "attached"
	Detaching    AttachState = "detaching"
	AttachFailed AttachState = "failed"
)

// Held tells whether any node holds the volume, on its way in or out included.
func (v *Volume) Held() bool { return v.Attachment.State != Detached }

// HeldBy tells whether that node holds the volume.
func (v *Volume) HeldBy(node string) bool { return v.Held() && v.Attachment.Node == node }

// Node is the machine that this process runs on.
type Node struct {
	ID   string // the cloud's own
	Zone string // empty where the cloud has none
}

// NodeState is the cloud's word on a node.
type NodeState struct {
	Life     Life
	Evidence string // what the cloud said, for the log: `instance i-0abc is "terminated"`
	Remedy   string // what an operator can do there to free the node's volumes: "stop instance i-0abc in EC2"; empty if nothing

	Addresses []netip.Addr // the private ones of a node that the cloud knows; none if it does not tell them, or if there are none
}

// Life is whether a node can still write to a volume that it holds.
type Life string

// What a cloud can say of a node. Only Stopped and Gone are evidence that it writes no more.
const (
	Running Life = "running"
	Stopped Life = "stopped"
	Gone    Life = "gone"
	Unclear Life = "unclear"
)

// SnapshotSpec is what a snapshot shall be.
type SnapshotSpec struct {
	Description string // for people, and what tells this snapshot of the volume from others
	Record      Record

	// Hold, if set, calls take and returns its error. The instant is within that call, and nothing else is that can wait, so the
	// volume's file system can be made to hold still for it. It is not called for a snapshot that exists.
	Hold func(ctx context.Context, take func(ctx context.Context) error) error
}

// Taking calls take, by Hold if that is set.
func (s SnapshotSpec) Taking(ctx context.Context, take func(ctx context.Context) error) error {
	if s.Hold == nil {
		return take(ctx)
	}
	return s.Hold(ctx, take)
}

// Snapshot is a copy of a volume at one instant.
type Snapshot struct {
	ID        string
	Volume    string // id of the volume it was taken from
	Name      string // that volume's name then; empty if it is not known
	Size      int64  // bytes, of a volume made from it
	CreatedAt time.Time
	State     SnapshotState
	Detail    string // how far an incomplete one is, or why one has failed, in the cloud's words; may be empty
	Record    Record // never nil
}

// SnapshotState is where a snapshot stands.
type SnapshotState string

// The states of a snapshot.
const (
	SnapshotComplete SnapshotState = "complete"
	SnapshotCreating SnapshotState = "creating" // the cloud is copying
	SnapshotFailed   SnapshotState = "failed"   // it will never be usable
)

// OlderSnapshot compares snapshots by age.
func OlderSnapshot(a, b *Snapshot) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
}
