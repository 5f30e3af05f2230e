package controller

import (
	"context"
	"slices"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// cloud bounds each call to a provider, so that one that never answers cannot hold a volume for ever. A provider waits out a
// cloud that is asked too much for as long as its context lives, so the bounds are what such a time may last; a caller with
// less time has its answer earlier, and the work goes on.
type cloud struct{ provider providers.Provider }

const (
	queryTimeout  = 2 * time.Minute
	changeTimeout = 10 * time.Minute // for a change that copies no data
	copyTimeout   = time.Hour

	// SnapshotTimeout is the longest that a cloud is waited for which copies a snapshot. The first one of a large volume takes many hours,
	// and whoever gives up and comes again begins another.
	SnapshotTimeout = 24 * time.Hour
)

// within bounds one call.
func within[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return call(ctx)
}

// change is within for a change that answers nothing.
func change(ctx context.Context, call func(context.Context) error) error {
	_, err := within(ctx, changeTimeout, func(ctx context.Context) (none struct{}, err error) { return none, call(ctx) })
	return err
}

func (c cloud) node(ctx context.Context) (providers.Node, error) {
	return within(ctx, queryTimeout, c.provider.Node)
}

func (c cloud) nodeState(ctx context.Context, node string) (providers.NodeState, error) {
	return within(ctx, queryTimeout, func(ctx context.Context) (providers.NodeState, error) { return c.provider.NodeState(ctx, node) })
}

func (c cloud) find(ctx context.Context, name string) (*providers.Volume, error) {
	return within(ctx, queryTimeout, func(ctx context.Context) (*providers.Volume, error) { return c.provider.Find(ctx, name) })
}

func (c cloud) list(ctx context.Context) ([]*providers.Volume, error) {
	return within(ctx, queryTimeout, c.provider.List)
}

func (c cloud) listHeld(ctx context.Context, node string) ([]*providers.Volume, error) {
	return within(ctx, queryTimeout, func(ctx context.Context) ([]*providers.Volume, error) {
		if lister, can := c.provider.(providers.HeldLister); can {
			return lister.ListHeld(ctx, node)
		}
		all, err := c.provider.List(ctx)
		return slices.DeleteFunc(all, func(v *providers.Volume) bool { return !v.HeldBy(node) }), err
	})
}

func (c cloud) create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	limit := changeTimeout
	if spec.Snapshot != "" {
		limit = copyTimeout
	}
	return within(ctx, limit, func(ctx context.Context) (*providers.Volume, error) { return c.provider.Create(ctx, spec) })
}

func (c cloud) adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	return within(ctx, changeTimeout, func(ctx context.Context) (*providers.Volume, error) { return c.provider.Adopt(ctx, id, spec) })
}

func (c cloud) forget(ctx context.Context, id string) error {
	return change(ctx, func(ctx context.Context) error { return c.provider.Forget(ctx, id) })
}

func (c cloud) delete(ctx context.Context, id string) error {
	return change(ctx, func(ctx context.Context) error { return c.provider.Delete(ctx, id) })
}

func (c cloud) modify(ctx context.Context, id string, wanted providers.Change) (*providers.Volume, error) {
	modifier, can := c.provider.(providers.Modifier)
	if !can {
		return nil, volume.Fail(volume.Invalid, "this provider cannot change a volume", "")
	}
	return within(ctx, copyTimeout, func(ctx context.Context) (*providers.Volume, error) { return modifier.Modify(ctx, id, wanted) })
}

func (c cloud) attach(ctx context.Context, id, node string) error {
	return change(ctx, func(ctx context.Context) error { return c.provider.Attach(ctx, id, node) })
}

func (c cloud) detach(ctx context.Context, id, node string, force bool) error {
	return change(ctx, func(ctx context.Context) error { return c.provider.Detach(ctx, id, node, force) })
}

func (c cloud) mark(ctx context.Context, id, key, value string) error {
	return change(ctx, func(ctx context.Context) error { return c.provider.Mark(ctx, id, key, value) })
}

// snapshotter returns the cloud's snapshots. Errors: volume.Invalid if it has none.
func (c cloud) snapshotter() (providers.Snapshotter, error) {
	snapshots, has := c.provider.(providers.Snapshotter)
	if !has {
		return nil, volume.Fail(volume.Invalid, "this provider has no snapshots", "")
	}
	return snapshots, nil
}

func (c cloud) snapshot(ctx context.Context, id string, spec providers.SnapshotSpec) (*providers.Snapshot, error) {
	snapshots, err := c.snapshotter()
	if err != nil {
		return nil, err
	}
	// A provider that has to copy the data itself takes its time.
	return within(ctx, copyTimeout, func(ctx context.Context) (*providers.Snapshot, error) { return snapshots.Snapshot(ctx, id, spec) })
}

func (c cloud) findSnapshot(ctx context.Context, id string) (*providers.Snapshot, error) {
	snapshots, err := c.snapshotter()
	if err != nil {
		return nil, err
	}
	return within(ctx, queryTimeout, func(ctx context.Context) (*providers.Snapshot, error) { return snapshots.FindSnapshot(ctx, id) })
}

func (c cloud) snapshots(ctx context.Context) ([]*providers.Snapshot, error) {
	snapshots, err := c.snapshotter()
	if err != nil {
		return nil, err
	}
	return within(ctx, queryTimeout, snapshots.ListSnapshots)
}

func (c cloud) deleteSnapshot(ctx context.Context, id string) error {
	snapshots, err := c.snapshotter()
	if err != nil {
		return err
	}
	return change(ctx, func(ctx context.Context) error { return snapshots.DeleteSnapshot(ctx, id) })
}
