package metadata

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/batch"
)

// Identity is which machine this process runs on, according to the machine's metadata service. A setting names the machine only
// as long as the service does not answer. Two machines with the same id would detach each other's disks; a golden image that
// contains the setting makes such machines. So a setting that the service contradicts is an error, even if the service answers late.
type Identity struct {
	machine      string // what the cloud calls one, for people
	setting, set string // the setting's name and value, which may be empty
	told         *batch.Cached[providers.Node]
	located      *batch.Cached[providers.Node] // nil: the metadata service tells all there is

	mu      sync.Mutex
	asking  bool
	checked chan struct{} // closed when the last question to the service has ended; nil before the first
	begun   time.Time     // of that question
	ended   time.Time     // of the last one that has; zero before
}

const (
	identityPatience = 250 * time.Millisecond // how long a call waits for a service that has not answered before
	identityPause    = 5 * time.Second        // between two questions to it
)

// NewIdentity makes an Identity. ask asks the metadata service, and returns an error within seconds if it does not answer. The
// answer is kept for the life of the process.
func NewIdentity(machine, setting, set string, ask func(context.Context) (providers.Node, error)) *Identity {
	return &Identity{machine: machine, setting: setting, set: set, told: batch.Cache("which "+machine+" this is", ask)}
}

// WithZone has locate find out the zone of the machine that the metadata service or the setting names. It is called once, and
// again only after an error. The zone is empty in its argument unless the service named it together with the id.
func (i *Identity) WithZone(locate func(context.Context, providers.Node) (providers.Node, error)) *Identity {
	i.located = batch.Cache("which "+i.machine+" this is", func(ctx context.Context) (providers.Node, error) {
		node, err := i.identify(ctx)
		if err != nil {
			return node, err
		}
		return locate(ctx, node)
	})
	return i
}

// Node returns the machine's id and zone. Without a setting it waits for the metadata service's answer; with one it waits for the
// end of the first question only.
// Errors: providers.ErrInvalid for a setting that the service contradicts; those of the service and of WithZone.
func (i *Identity) Node(ctx context.Context) (providers.Node, error) {
	node, err := i.identify(ctx)
	if err != nil || i.located == nil {
		return node, err
	}
	return i.located.Get(ctx)
}

func (i *Identity) identify(ctx context.Context) (providers.Node, error) {
	if i.set == "" {
		return i.told.Get(ctx)
	}
	if err := i.check(ctx); err != nil {
		return providers.Node{}, err
	}
	told, known := i.told.Known()
	switch {
	case !known:
		return providers.Node{ID: i.set}, nil
	case told.ID != i.set:
		return providers.Node{}, fmt.Errorf("%w: %s is %s, and this %s is %s according to its metadata service: with the id of another one it would detach that one's disks: remove %s from this node's settings",
			providers.ErrInvalid, i.setting, i.set, i.machine, told.ID, i.setting)
	}
	return told, nil
}

// check asks the metadata service, unless it has answered or was asked a moment ago, and waits as long as Node says.
func (i *Identity) check(ctx context.Context) error {
	if _, known := i.told.Known(); known {
		return ctx.Err()
	}
	i.mu.Lock()
	if !i.asking && time.Since(i.ended) >= identityPause {
		i.asking, i.checked, i.begun = true, make(chan struct{}), time.Now()
		go i.ask(i.checked) //nolint:gosec // an answer after the call's end counts, too
	}
	checked, patience := i.checked, time.NewTimer(time.Until(i.begun.Add(identityPatience)))
	if i.ended.IsZero() {
		patience.Stop()
	}
	i.mu.Unlock()
	defer patience.Stop()
	select {
	case <-checked:
	case <-patience.C:
	case <-ctx.Done():
		return fmt.Errorf("it is still being asked which %s this is: %w", i.machine, ctx.Err())
	}
	return ctx.Err()
}

// ask outlives the call that began it, since an answer after that call's end counts, too. It ends by itself.
func (i *Identity) ask(checked chan struct{}) {
	_, _ = i.told.Get(context.Background()) // the answer is kept
	i.mu.Lock()
	i.asking, i.ended = false, time.Now()
	i.mu.Unlock()
	close(checked)
}
