// Package managed has the rules that all clouds share: which disks are volumes of this cluster; how one is found by its exact name,
// created, adopted, forgotten, deleted, marked and resized; how snapshots are taken; and which answers of a cloud may be stale.
//
// A cloud's own package translates: it says how the cloud is asked (Cloud, SnapshotCloud), and what its answers mean (Disk,
// Snapshot, and the errors of this package and of package providers).
//
// # Stale answers
//
// An answer may be older than the last change by this process, and most clouds do not show an attach or a detach that is under
// way. Three files deal with that:
//
//   - memory.go: which volumes exist, with which name, Record and size. Only where Cloud.Stale is set.
//   - holders.go: whether to believe which node holds a volume, shortly after this process attached or detached it.
//   - operation.go: which attach or detach is under way. Only where Cloud.ShowsOperations is not set.
//
// They know what this process has asked for since it started, and nothing of other nodes or of the process before it. There the
// cloud's refusal of a change decides. Package driver/controller says where the driver asks again, for reasons that only it knows.
package managed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
	"github.com/blockvol/blockvol/providers/keymutex"
	"github.com/blockvol/blockvol/providers/queue"
	"github.com/blockvol/blockvol/providers/recent"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Provider keeps the contract of providers.Provider and Modifier for a Cloud.
type Provider[V any] struct {
	cloud      Cloud[V]
	byName     *batch.Batcher[[]Disk[V]]
	ours       recent.Map[string, bool] // by id: whether a disk is a volume of this cluster
	absent     recent.Map[string, bool] // by name: whether there was no volume of the name
	memory     memory
	holders    holders  // by id of a volume
	operations sync.Map // by id of a volume: the last Operation known to this process
	nodes      queue.Queue
	changes    keymutex.KeyMutex // by id of a volume

	countSnapshots func(ctx context.Context) (int, error) // of the cluster; nil if the cloud has none
}

// New makes a Provider. It makes no request.
func New[V any](cloud Cloud[V]) *Provider[V] {
	p := &Provider[V]{cloud: cloud, memory: memory{on: cloud.Stale}}
	p.byName = batch.New(p.askNamed, cloud.NamesAtOnce)
	return p
}

// Node tells which node this is.
func (p *Provider[V]) Node(ctx context.Context) (providers.Node, error) { return p.cloud.Self(ctx) }

// Supports lists the options that the cloud's volumes have.
func (p *Provider[V]) Supports() []string { return slices.Clone(p.cloud.Options) }

// Buses returns the buses on which the cloud's disks appear.
func (p *Provider[V]) Buses() []string { return slices.Clone(p.cloud.Buses) }

// IsOurs tells whether a disk is a volume of this cluster.
func (p *Provider[V]) IsOurs(d Disk[V]) bool { return d.Name != "" && d.Cluster == p.cloud.Cluster }

// show translates the answer to a question asked at that time, remembers it, and adds what this process has written since.
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

// Hides reports whether the volume has been forgotten or deleted, although answers may still show it. d is as Show returns it.
func (p *Provider[V]) Hides(d Disk[V]) bool { return p.memory.hides(lifeOf(d)) }

// Hide notes that the cloud has failed to make a volume, which it may show for up to atMost.
func (p *Provider[V]) Hide(d Disk[V], atMost time.Duration) { p.memory.hide(lifeOf(d), atMost) }

// Lose notes that the disk does not exist, according to the cloud's answer to a write.
func (p *Provider[V]) Lose(id string) {
	p.memory.lose(id)
	p.gone(id, time.Now(), providers.ErrNotFound)
}

// Resized notes the new size of the volume.
func (p *Provider[V]) Resized(id string, bytes int64) { p.memory.resize(id, bytes) }

// Volume returns the contract's description of a volume of this cluster. With ask, the cloud may be asked about its attachment.
// Errors: providers.ErrNotFound if it is no volume of this cluster any more.
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
	v := d.Volume // a copy, so that keeping it does not keep d.Native in memory
	return &v, nil
}

// Get returns a disk by its id, whoever it belongs to. Errors: providers.ErrNotFound.
func (p *Provider[V]) Get(ctx context.Context, id string) (Disk[V], error) {
	if !p.cloud.IsID(id) {
		if err := ctx.Err(); err != nil {
			return Disk[V]{}, err
		}
		return Disk[V]{}, fmt.Errorf("%w: %q is no id of a volume of %s, %s", providers.ErrNotFound, sanitize.Clip(id), p.cloud.Name, p.cloud.IDForm)
	}
	for retry := (pause.Backoff{Most: time.Second}); ; {
		ours, there := p.memory.known(id)
		asked := time.Now()
		d, err := p.getOnce(ctx, id)
		certain := true // false: the answer may be from before the disk was created, or became ours
		switch {
		case !p.memory.on:
		case err == nil:
			certain = p.IsOurs(d) || asked.Sub(ours) >= providers.MaxStale
		case errors.Is(err, providers.ErrNotFound):
			if certain = errors.Is(err, ErrDeleted) || asked.Sub(there) >= providers.MaxStale; certain {
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

// EnsureOurs returns an error unless the volume is this cluster's. It asks the cloud only if the last answer is older than age.
func (p *Provider[V]) EnsureOurs(ctx context.Context, id string, age time.Duration) error {
	if p.KnownOurs(id, age) {
		return ctx.Err()
	}
	_, err := p.GetOurs(ctx, id)
	return err
}

// KnownOurs reports whether the volume is this cluster's according to an answer not older than age.
func (p *Provider[V]) KnownOurs(id string, age time.Duration) bool {
	ours, known := p.ours.Get(age, id)
	return known && ours
}

// Change calls change. If Cloud.Locks is set, changes of one volume run one after another, and again while the cloud is busy.
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
