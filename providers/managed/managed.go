// Package managed is the rule book that all clouds share: which disks are volumes of this cluster, how one is found by its exact
// name, created, adopted, forgotten, deleted, marked and resized, and which answers of a cloud may be out of date.
//
// A cloud's own package translates: it says how the cloud is asked (Cloud), and what its answers mean (Disk and the errors of
// this package and of package providers).
package managed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/keymutex"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/queue"
	"github.com/blockvol/blockvol/providers/recent"
	"github.com/blockvol/blockvol/providers/sanitize"
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

	NothingLeft bool // the attach that has failed has left nothing: no node holds the volume

	Creating bool   // it cannot be attached yet
	Resizing bool   // a change of its size is under way
	Unready  string // the cloud's word for a state in which it cannot be adopted

	Native V         // the cloud's own description
	Asked  time.Time // when the cloud was asked, or before
	hidden bool      // it has lost its name by what this process has written
}

// Cloud is one cloud, restricted to one cluster: its facts, and how it is asked. V is its own description of a disk.
//
// Its functions make the requests that their names say, and decide nothing else. Fields that are said to be optional may be
// zero.
type Cloud[V any] struct {
	Name    string          // for people: "Hetzner Cloud"
	Machine string          // what it calls a node: "server"
	Cluster string          // CLUSTER
	Options []string        // see providers.Provider.Supports
	Buses   []string        // see providers.Provider.Buses
	Sizes   providers.Sizes // Least and Most 0: Create and Modify check sizes themselves
	Zone    string          // what it calls the zone of a volume: "location"; empty: zones say nothing about a volume
	Unname  string          // what takes its name from a volume, for people: "the label x"
	IDForm  string          // what ids of volumes look like: "which is a number"
	IsID    func(id string) bool
	Log     logrus.FieldLogger // optional

	// Stale is a cloud whose answers may not show what was written up to Lag before the question. That something is not there is
	// then believed only of an answer that must show it; the question is asked again until then.
	Stale bool

	// Locks is a cloud that refuses a change of a volume as providers.ErrBusy while another is under way. Changes of one volume
	// by this process are then made one after another, and again while the cloud is busy.
	Locks bool

	// ResizeDetached is a cloud whose volumes can be resized while no node holds them.
	ResizeDetached bool

	// MarksAlone is a cloud where one entry of a Record can be written without a read of the others.
	MarksAlone bool

	// Self is providers.Provider.Node.
	Self func(ctx context.Context) (providers.Node, error)

	// Show translates an answer.
	Show func(V) Disk[V]

	// Named returns what may be the volumes of these names, at most NamesAtOnce, by name.
	Named       func(ctx context.Context, names []string) (map[string][]V, error)
	NamesAtOnce int

	// All returns what may be volumes of the cluster.
	All func(ctx context.Context) ([]V, error)

	// Get returns a disk by its id, whoever it belongs to. Errors: providers.ErrNotFound only if the cloud said so.
	Get func(ctx context.Context, id string) (V, error)

	// Settle completes a disk's Attachment with what its answer does not show, where that is a question of its own. Optional.
	Settle func(ctx context.Context, d Disk[V]) (Disk[V], error)

	// Queue is how changes of one node by this process go together.
	Queue Queueing

	// BeforeAttach is called before Attach waits for its turn. Optional.
	BeforeAttach func(ctx context.Context, id string) error

	// Attach asks once for a volume to be attached to the node, and returns the cloud's id for that operation if there is one.
	// Errors: providers.ErrBusy for a node that is busy; ErrVolumeBusy; ErrAttached; providers.ErrAttachLimit.
	Attach func(ctx context.Context, id, node string) (operation string, err error)

	// Explain explains a refusal by how the volume stands; nil if it cannot. Optional.
	Explain func(ctx context.Context, d Disk[V], node string, refusal error) error

	// Detach asks once for a volume to be detached from the node. Errors: as those of Attach, and ErrNotAttached.
	Detach func(ctx context.Context, id, node string, force bool) (operation string, err error)

	// DetachesAnyHolder is a cloud whose request does not name the node.
	DetachesAnyHolder bool

	// ShowsOperations is a cloud whose answers show an attach or a detach that is under way.
	ShowsOperations bool

	// AttachTime and DetachTime are how long an attach and a detach are taken to be under way without asking what has become of
	// them. A detach that cannot be asked for, and takes longer, has failed.
	AttachTime, DetachTime time.Duration

	// OperationState asks what has become of an operation. Optional.
	OperationState func(ctx context.Context, id, operation string) (state State, problem string, err error)

	// Running returns the operation of a volume that is under way, by whomever it was asked for; nil if there is none. Optional.
	Running func(ctx context.Context, id string) (*Operation, error)

	// NodeAdvice is what to check if the cloud does not know this node: "check LINODE_INSTANCE_ID".
	NodeAdvice string

	// CheckSpec refuses what the cloud does not accept in tags, names or records. Errors: providers.ErrInvalid.
	CheckSpec func(spec providers.Spec) error

	// AbsentFor is how long Create believes a Find that has found no volume of the name: the caller has just looked, and the cloud
	// itself refuses a second volume of the name.
	AbsentFor time.Duration

	// Create makes a disk with all the marks of a volume, of as many GiB as Sizes says; 0 is the cloud's default. After ErrTaken it
	// is called again with the next turn, up to Turns times (0: once), unless there is a volume of the name by then.
	Create func(ctx context.Context, spec providers.Spec, gib int64, turn int) (V, error)
	Turns  int

	// Await waits until a volume that is being created can be attached. Optional.
	Await func(ctx context.Context, d Disk[V]) (V, error)

	// Taken explains that the names of all turns are other disks'.
	Taken func(ctx context.Context, name string, refusal error) error

	// Mark writes one entry of the Record. With MarksAlone, the disk has an ID only.
	Mark func(ctx context.Context, d Disk[V], key, value string) error

	// Claim gives the disk the marks of a volume of the cluster, with name, Record and tags; what it had of its own stays.
	Claim func(ctx context.Context, d Disk[V], spec providers.Spec) (V, error)

	// Release takes cluster and name from the disk. The Record stays.
	Release func(ctx context.Context, d Disk[V]) error

	// Rivals returns what may be the volumes of the name for certain, where Claim may have given another disk that name at the
	// same moment. Optional: nil if the cloud itself lets one disk have a name.
	Rivals func(ctx context.Context, name string) ([]V, error)

	// Delete destroys the disk. Errors: ErrAttached.
	Delete func(ctx context.Context, d Disk[V]) error

	// Resize asks for more GiB, and returns as soon as the cloud has taken the request.
	Resize func(ctx context.Context, d Disk[V], gib int64) error

	// Status is the cloud's word on one of its nodes, and what it means. Errors: providers.ErrNotFound only if the cloud said so.
	Status func(ctx context.Context, node string) (word string, life providers.Life, err error)
	IsNode func(id string) bool
}

// Queueing is how changes of one node by this process go together.
type Queueing int

// The ways to queue.
const (
	Unqueued       Queueing = iota // each at once
	Queued                         // one after another, each again while the node is busy
	QueuedWhenBusy                 // as Queued once the node was busy
)

// Provider keeps the contract of providers.Provider and Modifier for a Cloud.
type Provider[V any] struct {
	cloud      Cloud[V]
	byName     *batch.Batcher[[]Disk[V]]
	ours       recent.Map[string, bool] // by id: whether a disk is a volume of this cluster
	absent     recent.Map[string, bool] // by name: whether there was no volume of the name
	memory     memory
	holders    holders  // by id of a volume
	operations sync.Map // by id of a volume: the last Operation that this process knows
	nodes      queue.Queue
	changes    keymutex.KeyMutex // of a volume by this process, by id
}

// New makes a Provider. It calls nobody.
func New[V any](cloud Cloud[V]) *Provider[V] {
	p := &Provider[V]{cloud: cloud, memory: memory{on: cloud.Stale}}
	p.byName = batch.New(p.askNamed, cloud.NamesAtOnce)
	return p
}

// Node tells which node this is.
func (p *Provider[V]) Node(ctx context.Context) (providers.Node, error) { return p.cloud.Self(ctx) }

// Supports lists the options that the cloud's volumes have.
func (p *Provider[V]) Supports() []string { return slices.Clone(p.cloud.Options) }

// Buses returns those on which the cloud's disks appear.
func (p *Provider[V]) Buses() []string { return slices.Clone(p.cloud.Buses) }

// IsOurs tells whether a disk is a volume of this cluster.
func (p *Provider[V]) IsOurs(d Disk[V]) bool { return d.Name != "" && d.Cluster == p.cloud.Cluster }

// show translates an answer to a question that was asked at that time, learns from it, and completes it with what this process has
// written since.
func (p *Provider[V]) show(v V, asked time.Time) Disk[V] {
	d := p.cloud.Show(v)
	d.Asked = asked
	if p.memory.on {
		if p.Hides(d) {
			d.Name, d.Cluster, d.Marked, d.hidden = "", "", false, true
		} else if p.IsOurs(d) {
			d.Size = p.memory.complete(d.ID, d.Record, d.Size)
		}
	}
	p.ours.Put(d.ID, asked, p.IsOurs(d))
	return d
}

func lifeOf[V any](d Disk[V]) life { return life{d.ID, d.Name, d.Claim} }

// Hides tells whether the volume has lost its name, or its disk, although answers may still show it. The disk is as Show returns it.
func (p *Provider[V]) Hides(d Disk[V]) bool { return p.memory.hides(lifeOf(d)) }

// Hide notes that the cloud has failed at a volume which it may show for so long.
func (p *Provider[V]) Hide(d Disk[V], atMost time.Duration) { p.memory.hide(lifeOf(d), atMost) }

// Lose notes that the cloud has no such disk, by its answer to a write.
func (p *Provider[V]) Lose(id string) {
	p.memory.lose(id)
	p.gone(id, time.Now(), providers.ErrNotFound)
}

// Resized notes that the volume has so many bytes now.
func (p *Provider[V]) Resized(id string, bytes int64) { p.memory.resize(id, bytes) }

// Volume is the contract's description of a volume of this cluster. The cloud is asked about its attachment only if told so.
// Errors: providers.ErrNotFound if it turns out to be no such volume any more.
func (p *Provider[V]) Volume(ctx context.Context, d Disk[V], ask bool) (*providers.Volume, error) {
	when := askNever
	if ask {
		when = askLater
	}
	d, err := p.settle(ctx, d, when)
	switch {
	case err != nil:
		return nil, err
	case !p.IsOurs(d):
		return nil, providers.NotOurs(d.ID)
	}
	return &d.Volume, nil
}

// Get returns a disk by its id, whoever it belongs to. Errors: providers.ErrNotFound.
func (p *Provider[V]) Get(ctx context.Context, id string) (Disk[V], error) {
	if !p.cloud.IsID(id) {
		if err := ctx.Err(); err != nil {
			return Disk[V]{}, err
		}
		return Disk[V]{}, fmt.Errorf("%w: %q is no id of a volume of %s, %s", providers.ErrNotFound, sanitize.Clip(id), p.cloud.Name, p.cloud.IDForm)
	}
	for retry := (pace.Backoff{Most: time.Second}); ; {
		ours, there := p.memory.known(id)
		asked := time.Now()
		d, err := p.getOnce(ctx, id)
		certain := true // otherwise the answer may be of a time before the disk was created, or was ours
		switch {
		case !p.memory.on:
		case err == nil:
			certain = p.IsOurs(d) || asked.Sub(ours) >= Lag
		case errors.Is(err, providers.ErrNotFound):
			if certain = errors.Is(err, ErrDeleted) || asked.Sub(there) >= Lag; certain {
				p.memory.lose(id)
			}
		}
		if certain {
			return d, err
		}
		if err := retry.Wait(ctx); err != nil {
			return Disk[V]{}, err
		}
	}
}

func (p *Provider[V]) getOnce(ctx context.Context, id string) (Disk[V], error) {
	asked := time.Now()
	v, err := p.cloud.Get(ctx, id)
	if err != nil {
		p.gone(id, asked, err)
		return Disk[V]{}, err
	}
	return p.show(v, asked), nil
}

// GetOurs is Get for a volume of this cluster.
func (p *Provider[V]) GetOurs(ctx context.Context, id string) (Disk[V], error) {
	d, err := p.Get(ctx, id)
	if err == nil && !p.IsOurs(d) {
		if err = d.Damaged; !errors.Is(err, ErrUnmarked) {
			err = providers.NotOurs(id)
		}
	}
	return d, err
}

// EnsureOurs returns an error unless the volume is this cluster's. The cloud is asked only if this process does not know.
func (p *Provider[V]) EnsureOurs(ctx context.Context, id string, age time.Duration) error {
	if p.KnownOurs(id, age) {
		return ctx.Err()
	}
	_, err := p.GetOurs(ctx, id)
	return err
}

// KnownOurs tells whether this process knows that the volume is this cluster's.
func (p *Provider[V]) KnownOurs(id string, age time.Duration) bool {
	ours, known := p.ours.Get(age, id)
	return known && ours
}

// Change carries out a change of a volume, as Cloud.Locks says.
func (p *Provider[V]) Change(ctx context.Context, id string, change func() error) error {
	if !p.cloud.Locks {
		return change()
	}
	unlock, _, err := p.changes.Lock(ctx, id)
	if ended := ctx.Err(); ended != nil && err == nil {
		err = ended
		unlock()
	}
	if err != nil {
		return fmt.Errorf("%w: another change of volume %s is under way in this process, and the call's time is over: %w", providers.ErrBusy, id, err)
	}
	defer unlock()
	return untilFree(ctx, change)
}
