package driver

import (
	"context"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// timely bounds each call to a provider, so that one that never answers cannot hold a volume for ever. A provider waits out a
// cloud that is asked too much for as long as its context lives, so the bounds are what such a time may last; a caller whom
// Docker gives less has its answer earlier, and the work goes on.
type timely struct{ providers.Provider }

const (
	askTimeout    = 2 * time.Minute  // a question
	changeTimeout = 10 * time.Minute // a change that copies no data
)

func bounded[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return call(ctx)
}

func boundedChange(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	return call(ctx)
}

func (t timely) Node(ctx context.Context) (providers.Node, error) {
	return bounded(ctx, askTimeout, t.Provider.Node)
}

func (t timely) NodeState(ctx context.Context, node string) (providers.NodeState, error) {
	return bounded(ctx, askTimeout, func(ctx context.Context) (providers.NodeState, error) { return t.Provider.NodeState(ctx, node) })
}

func (t timely) Find(ctx context.Context, name string) (*providers.Volume, error) {
	return bounded(ctx, askTimeout, func(ctx context.Context) (*providers.Volume, error) { return t.Provider.Find(ctx, name) })
}

func (t timely) List(ctx context.Context) ([]*providers.Volume, error) {
	return bounded(ctx, askTimeout, t.Provider.List)
}

func (t timely) Create(ctx context.Context, spec providers.Spec) (*providers.Volume, error) {
	limit := changeTimeout
	if spec.Snapshot != "" {
		limit = workTimeout
	}
	return bounded(ctx, limit, func(ctx context.Context) (*providers.Volume, error) { return t.Provider.Create(ctx, spec) })
}

func (t timely) Adopt(ctx context.Context, id string, spec providers.Spec) (*providers.Volume, error) {
	return bounded(ctx, changeTimeout, func(ctx context.Context) (*providers.Volume, error) { return t.Provider.Adopt(ctx, id, spec) })
}

func (t timely) Forget(ctx context.Context, id string) error {
	return boundedChange(ctx, func(ctx context.Context) error { return t.Provider.Forget(ctx, id) })
}

func (t timely) Delete(ctx context.Context, id string) error {
	return boundedChange(ctx, func(ctx context.Context) error { return t.Provider.Delete(ctx, id) })
}

func (t timely) Attach(ctx context.Context, id string) error {
	return boundedChange(ctx, func(ctx context.Context) error { return t.Provider.Attach(ctx, id) })
}

func (t timely) Detach(ctx context.Context, id, node string, force bool) error {
	return boundedChange(ctx, func(ctx context.Context) error { return t.Provider.Detach(ctx, id, node, force) })
}

func (t timely) Mark(ctx context.Context, id, key, value string) error {
	return boundedChange(ctx, func(ctx context.Context) error { return t.Provider.Mark(ctx, id, key, value) })
}
