package managed

import (
	"context"
	"errors"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// What a cloud's functions return besides the errors of package providers.
var (
	// ErrUnmarked is in Disk.Damaged if a disk of ours is shown without any marks. It can be adopted.
	ErrUnmarked = errors.New("the marks are not shown")
	// ErrDeleted is added to providers.ErrNotFound by a Get that shows a disk as deleted: no later answer shows anything else.
	ErrDeleted = errors.New("it is deleted")

	// ErrTaken says that the name which a volume would have in the cloud is another disk's.
	ErrTaken = errors.New("another disk has this name")
	// ErrAttached says that the cloud has refused a request because a node holds the volume.
	ErrAttached = errors.New("the volume is attached")
)

// Disk is a disk as an answer of the cloud shows it.
type Disk[V any] struct {
	// Volume has all that the answer shows. Name is empty, as is Cluster, unless the marks of a volume are whole.
	providers.Volume
	Cluster string // whose volume it is, by its marks
	Marked  bool   // it has the marks of a volume, or some of them
	Claim   string // tells one claim of a name from the next, where answers may be old

	// Damaged says why the disk cannot serve as the volume that it is, or was: somebody has changed its marks, or the cloud
	// has failed. Such a volume is never called missing, since it may hold data.
	Damaged error

	Creating bool   // it cannot be attached yet
	Resizing bool   // a change of its size is under way
	Unready  string // the cloud's word for a state in which it cannot be adopted

	Native V         // the cloud's own description
	Asked  time.Time // when the cloud was asked, or before

	hidden      bool // it has lost its name by what this process has written
	settled     bool // Attachment is complete, and shown is what the answer shows
	shown       providers.Attachment
	nothingLeft bool // the attach that has failed has left nothing: no node holds the volume
}

// Cloud is one cloud, restricted to one cluster: its facts, and how it is asked. V is its own description of a disk.
//
// A function makes the requests that its name says, and returns what the answer means. Fields that are called optional may be zero.
type Cloud[V any] struct {
	// Facts, mostly for people.

	Name       string          // "Hetzner Cloud"
	Machine    string          // what it calls a node: "server"
	Cluster    string          // CLUSTER
	Options    []string        // see providers.Provider.Supports
	Buses      []string        // see providers.Provider.Buses
	Sizes      providers.Sizes // Least and Most 0: Create and Modify check sizes themselves
	Zone       string          // what it calls the zone of a volume: "location"; empty: zones say nothing about a volume
	Unname     string          // what takes its name from a volume: "the label x"
	IDForm     string          // what ids of volumes look like: "which is a number"
	StopWord   string          // how it says that a node is made to stop: "power off"
	NodeAdvice string          // what to check if the cloud does not know this node: "check LINODE_INSTANCE_ID"
	IsID       func(id string) bool
	IsNode     func(id string) bool

	// Stale is a cloud whose answers may not show what was written up to Lag before the question. That something is not there is
	// then believed only of an answer that must show it; the question is asked again until then.
	Stale bool

	// Locks is a cloud that refuses a change of a volume as providers.ErrBusy while another is under way. Changes of one volume
	// by this process are then made one after another, and again while the cloud is busy.
	Locks bool

	// Questions.

	// Self is providers.Provider.Node.
	Self func(ctx context.Context) (providers.Node, error)

	// Status is the cloud's word on one of its nodes, and what it means. Errors: providers.ErrNotFound only if the cloud said so.
	Status func(ctx context.Context, node string) (word string, life providers.Life, err error)

	// Show translates an answer. It asks nothing.
	Show func(V) Disk[V]

	// Named returns what may be the volumes of these names, at most NamesAtOnce, by name.
	Named       func(ctx context.Context, names []string) (map[string][]V, error)
	NamesAtOnce int

	// All returns what may be volumes of the cluster.
	All func(ctx context.Context) ([]V, error)

	// Get returns a disk by its id, whoever it belongs to. Errors: providers.ErrNotFound only if the cloud said so, with ErrDeleted if
	// that is for good.
	Get func(ctx context.Context, id string) (V, error)

	// Settle completes a disk's Attachment with what its answer does not show, where that is a question of its own. Optional.
	Settle func(ctx context.Context, d Disk[V]) (Disk[V], error)

	// Rivals returns what may be the volumes of the name for certain, where Claim may have given another disk that name at the
	// same moment. Optional: nil if the cloud itself lets one disk have a name.
	Rivals func(ctx context.Context, name string) ([]V, error)

	// Volumes.

	// CheckSpec refuses what the cloud does not accept in tags, names or records. Errors: providers.ErrInvalid.
	CheckSpec func(spec providers.Spec) error

	// Create makes a disk with all the marks of a volume, of as many GiB as Sizes says; 0 is the cloud's default. After ErrTaken it
	// is called again with the next turn, up to Turns times (0: once), unless there is a volume of the name by then. Taken explains
	// that the names of all turns are other disks'.
	Create func(ctx context.Context, spec providers.Spec, gib int64, turn int) (V, error)
	Turns  int
	Taken  func(ctx context.Context, name string, refusal error) error

	// AbsentFor is how long Create believes a Find that has found no volume of the name: the caller has just looked, and the cloud
	// itself refuses a second volume of the name.
	AbsentFor time.Duration

	// Await waits until a volume that is being created can be attached. Optional.
	Await func(ctx context.Context, d Disk[V]) (V, error)

	// Mark writes one entry of the Record. MarksAlone is a cloud where that needs no read: the disk has an ID only.
	Mark       func(ctx context.Context, d Disk[V], key, value string) error
	MarksAlone bool

	// Claim gives the disk the marks of a volume of the cluster, with name, Record and tags; what it had of its own stays.
	Claim func(ctx context.Context, d Disk[V], spec providers.Spec) (V, error)

	// Release takes cluster and name from the disk. The Record stays.
	Release func(ctx context.Context, d Disk[V]) error

	// Delete destroys the disk. Errors: ErrAttached.
	Delete func(ctx context.Context, d Disk[V]) error

	// Resize asks for more GiB. ResizeDetached is a cloud whose volumes can be resized while no node holds them.
	Resize         func(ctx context.Context, d Disk[V], gib int64) error
	ResizeDetached bool

	// Attachments.

	// Queue is how changes of one node by this process go together.
	Queue Queueing

	// BeforeAttach is called before Attach waits for its turn. Optional.
	BeforeAttach func(ctx context.Context, id string) error

	// Attach asks once for a volume to be attached to the node, and returns the cloud's id for that operation if there is one.
	// Errors: providers.ErrBusy for a node that is busy; ErrVolumeBusy; ErrAttached; providers.ErrAttachLimit.
	Attach func(ctx context.Context, id, node string) (operation string, err error)

	// Explain explains a refusal by how the volume stands; nil if it cannot. Optional.
	Explain func(ctx context.Context, d Disk[V], node string, refusal error) error

	// Detach asks once for a volume to be detached from the node. Errors: as those of Attach, and ErrNotAttached. DetachesAnyHolder
	// is a cloud whose request does not name the node.
	Detach            func(ctx context.Context, id, node string, force bool) (operation string, err error)
	DetachesAnyHolder bool

	// ShowsOperations is a cloud whose answers show an attach or a detach that is under way. For others this process remembers them.
	ShowsOperations bool

	// AttachTime and DetachTime are how long an attach and a detach are taken to be under way without asking what has become of
	// them. A detach that cannot be asked for, and takes longer, has failed.
	AttachTime, DetachTime time.Duration

	// OperationState asks what has become of an operation. Optional.
	OperationState func(ctx context.Context, id, operation string) (state State, problem string, err error)

	// Running returns the operation of a volume that is under way, by whomever it was asked for; nil if there is none. Optional.
	Running func(ctx context.Context, id string) (*Operation, error)
}

// Queueing is how changes of one node by this process go together.
type Queueing int

// The ways to queue.
const (
	Unqueued       Queueing = iota // each at once
	Queued                         // one after another, each again while the node is busy
	QueuedWhenBusy                 // as Queued once the node was busy
)
