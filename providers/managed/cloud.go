package managed

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Errors of a Cloud's functions, besides those of package providers.
var (
	// ErrUnmarked is in Disk.Damaged if a disk that blockvol made is shown without any marks. It can be adopted.
	ErrUnmarked = errors.New("the marks are not shown")
	// ErrDeleted is added to providers.ErrNotFound by Get if the cloud shows the disk as deleted, which is final.
	ErrDeleted = errors.New("it is deleted")

	// ErrTaken says that another disk or snapshot has the name that the new one would have in the cloud.
	ErrTaken = errors.New("another disk has this name")
	// ErrAttached says that the cloud has refused a request because a node holds the volume.
	ErrAttached = errors.New("the volume is attached")
)

// Disk is a disk as an answer of the cloud shows it.
type Disk[V any] struct {
	// Volume has all that the answer shows. Name and Cluster are empty unless the marks of a volume are whole.
	providers.Volume
	Cluster string // whose volume it is, by its marks
	Marked  bool   // it has at least some of the marks of a volume
	Claim   string // distinguishes one claim of a name from the next, where answers may be stale

	// Damaged says why the disk cannot be used as a volume: somebody has changed its marks, or the cloud has failed. Such a
	// volume is never reported as missing, since it may hold data.
	Damaged error

	Former   Former // whose volume it was, or was to be; empty if it is one, or if that is not known
	Leftover string // why a disk with the marks of a cluster is none of its volumes and never becomes one, in words

	Creating bool   // it cannot be attached yet
	Resizing bool   // a change of its size is under way
	Unready  string // the cloud's word for a state in which it cannot be adopted

	Native V         // the cloud's own description
	Asked  time.Time // when the cloud was asked, or earlier

	hidden      bool // this process has forgotten or deleted it
	settled     bool // Attachment is complete, and shown is what the answer shows
	shown       providers.Attachment
	nothingLeft bool // the attach has failed, and no node holds the volume
}

// NodeStatus is what a cloud says of a node.
type NodeStatus struct {
	Word      string // its state in the cloud's words
	Life      providers.Life
	Stopping  bool         // it is being powered off or destroyed, and comes to be Stopped or Gone without another request
	Addresses []netip.Addr // see providers.NodeState
}

// Cloud is one cloud, restricted to one cluster: its facts, and how it is asked. V is the cloud's own description of a disk.
//
// Each function makes the requests that its name says, and returns what the answer means. Optional fields may be zero.
type Cloud[V any] struct {
	// Facts, mostly for people.

	Name       string          // "Hetzner Cloud"
	Machine    string          // what it calls a node: "server"
	Cluster    string          // CLUSTER
	Options    []string        // see providers.Provider.Supports
	Buses      []string        // see providers.Provider.Buses
	Sizes      providers.Sizes // Least and Most 0: Create and Modify check sizes themselves
	Zone       string          // what it calls the zone of a volume: "location"; empty: its volumes have none
	Unname     string          // what an operator removes to take its name from a volume: "the label x"
	IDForm     string          // what ids of volumes look like: "which is a number"
	StopWord   string          // how it says that a node is made to stop: "power off"
	NodeAdvice string          // what to check if the cloud does not know this node: "check LINODE_INSTANCE_ID"
	Manual     string          // the page of the manual with its permissions and settings: "docs/hetzner.md"
	FenceRight string          // what the credentials must have to power nodes off and on: "the scope droplet:update"; empty: refusals say it
	IsID       func(id string) bool
	IsNode     func(id string) bool

	// Stale says that answers may not show what was written up to providers.MaxStale before the question. Then an answer without something is
	// believed only if it must show it; until then the question is asked again.
	Stale bool

	// Locks says that the cloud refuses a change of a volume with providers.ErrBusy while another is under way. Then this process
	// makes changes of one volume one after another, and repeats them while the cloud is busy.
	Locks bool

	// Questions.

	// Self is providers.Provider.Node.
	Self func(ctx context.Context) (providers.Node, error)

	// Status returns what the cloud says of a node. Errors: providers.ErrNotFound only if the cloud said so.
	Status func(ctx context.Context, node string) (NodeStatus, error)

	// Show translates an answer. It asks nothing.
	Show func(V) Disk[V]

	// Named returns the disks that may be the volumes of these names, by name. It is called with at most NamesAtOnce names.
	Named       func(ctx context.Context, names []string) (map[string][]V, error)
	NamesAtOnce int

	// All returns the disks that may be volumes of the cluster.
	All func(ctx context.Context) ([]V, error)

	// Held returns those that the node may hold. nil: the cloud cannot choose them, and All is asked.
	Held func(ctx context.Context, node string) ([]V, error)

	// Known returns the disks that have any of blockvol's marks, of whatever cluster, with as few requests as a list takes; they may be
	// more than those.
	Known func(ctx context.Context) ([]V, error)

	// Get returns a disk by its id, whoever it belongs to. Errors: providers.ErrNotFound only if the cloud said so, with ErrDeleted if
	// it shows the disk as deleted.
	Get func(ctx context.Context, id string) (V, error)

	// Settle completes a disk's Attachment, if the cloud shows the rest in another answer. Optional.
	Settle func(ctx context.Context, d Disk[V]) (Disk[V], error)

	// Rivals returns the disks that may be the volumes of the name, from an answer that shows all claims before it. Claim may have
	// given another disk the name at the same moment. Optional: nil if the cloud itself lets only one disk have a name.
	Rivals func(ctx context.Context, name string) ([]V, error)

	// Permissions tries what the credentials must allow besides Status and All, without a change. It returns what it has tried, in a
	// sentence, and an error for each refusal. Optional.
	Permissions func(ctx context.Context) (tried string, refusals []error)

	// Quotas returns the account's limits on what blockvol makes. Errors: providers.ErrDenied. Optional.
	Quotas func(ctx context.Context) ([]Quota, error)

	// Clock returns how far the cloud's clock was ahead of this node's in its last answer; false if there was none. Optional.
	Clock func() (ahead time.Duration, known bool)

	// TryFence finds out, without doing it, whether the credentials allow PowerOff and PowerOn: off and on are the refusals. It returns
	// what it has tried, in a sentence; empty: the cloud does not tell. Optional.
	TryFence func(ctx context.Context) (tried string, off, on error)

	// Nodes.

	// PowerOff asks for the node's power to be cut off, and PowerOn for the node to be started: once, so that no request is sent again
	// that the cloud may have taken. After a refusal the node's status is asked for. Errors: those of providers.Fencer; ErrPowered.
	PowerOff, PowerOn func(ctx context.Context, node string) error

	// Volumes.

	// CheckSpec refuses what the cloud does not accept in tags, names or records. Errors: providers.ErrInvalid.
	CheckSpec func(spec providers.Spec) error

	// Create makes a disk of that size with all the marks of a volume; gib 0 is the cloud's default. After ErrTaken it is called
	// again with the next turn, up to Turns times (0: once), unless there is a volume of the name by then. Taken returns the error
	// for a name whose turns are all taken.
	Create func(ctx context.Context, spec providers.Spec, gib int64, turn int) (V, error)
	Turns  int
	Taken  func(ctx context.Context, name string, refusal error) error

	// AbsentFor is how long Create relies on a Find that has found no volume of the name: callers look first, and the cloud itself
	// refuses a second volume of the name.
	AbsentFor time.Duration

	// Await waits until a volume that is being created can be attached. Optional.
	Await func(ctx context.Context, d Disk[V]) (V, error)

	// Mark writes one entry of the Record. MarksAlone says that it needs no read before; then only the ID of the disk is set.
	Mark       func(ctx context.Context, d Disk[V], key, value string) error
	MarksAlone bool

	// Tags returns the tags that are not blockvol's, as providers.Spec has them. Optional: nil if its volumes cannot be copied.
	Tags func(V) map[string]string

	// Claim gives the disk the marks of a volume of the cluster, with name, Record and tags. Its own tags and Record stay.
	Claim func(ctx context.Context, d Disk[V], spec providers.Spec) (V, error)

	// Release takes cluster and name from the disk, and marks it with Former, if that is not empty, for Show. The Record stays.
	Release func(ctx context.Context, d Disk[V]) error

	// Delete destroys the disk. Errors: ErrAttached.
	Delete func(ctx context.Context, d Disk[V]) error

	// Resize asks for a larger size. ResizeDetached says that only a volume that no node holds can be resized.
	Resize         func(ctx context.Context, d Disk[V], gib int64) error
	ResizeDetached bool

	// Plugins are other plugins for Docker on this cloud, by name. Optional.
	Plugins map[string]Plugin[V]

	// Attachments.

	// Queue is whether changes of one node by this process wait for each other.
	Queue Queueing

	// BeforeAttach is called before Attach waits for its turn. Optional.
	BeforeAttach func(ctx context.Context, id string) error

	// Attach asks once for a volume to be attached to the node, and returns the cloud's id of that operation if there is one.
	// Errors: providers.ErrBusy for a node that is busy; ErrVolumeBusy; ErrAttached; providers.ErrAttachLimit.
	Attach func(ctx context.Context, id, node string) (operation string, err error)

	// Explain explains a refusal by the state of the volume, and returns nil if it cannot. Optional.
	Explain func(ctx context.Context, d Disk[V], node string, refusal error) error

	// Detach asks once for a volume to be detached from the node. Errors: those of Attach, and ErrNotAttached. DetachesAnyHolder says
	// that the request does not name the node.
	Detach            func(ctx context.Context, id, node string, force bool) (operation string, err error)
	DetachesAnyHolder bool

	// ShowsOperations says that answers show an attach or a detach that is under way. Otherwise this process remembers them.
	ShowsOperations bool

	// AttachTime and DetachTime are how long an attach and a detach are taken to be under way before the cloud is asked for their
	// state. A detach whose state cannot be asked for has failed after that time.
	AttachTime, DetachTime time.Duration

	// OperationState returns the state of an operation, and why it failed. Optional.
	OperationState func(ctx context.Context, id, operation string) (state State, problem string, err error)

	// Running returns the operation of a volume that is under way, whoever asked for it; nil if there is none. Optional.
	Running func(ctx context.Context, id string) (*Operation, error)
}

// Queueing is whether changes of one node by this process wait for each other.
type Queueing int

// The ways to queue.
const (
	Unqueued       Queueing = iota // each at once
	Queued                         // one after another, each repeated while the node is busy
	QueuedWhenBusy                 // as Queued once the node was busy
)
