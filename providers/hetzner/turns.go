package hetzner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// turns lets this process change a volume once at a time. The zero value is ready.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when the change of that volume ends
}

// take returns when it is the caller's turn.
func (t *turns) take(ctx context.Context, id string) (end func(), err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t.mu.Lock()
		other, busy := t.taken[id]
		if !busy {
			mine := make(chan struct{})
			if t.taken == nil {
				t.taken = make(map[string]chan struct{})
			}
			t.taken[id] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.taken, id)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: another change of volume %s is under way in this process, and the call's time is over: %w", providers.ErrBusy, id, ctx.Err())
		}
	}
}

// changing carries out a change of a volume when no other of this process is under way, and again while Hetzner is too busy.
func (p *Provider) changing(ctx context.Context, id string, change func(context.Context) error) error {
	end, err := p.volumes.take(ctx, id)
	if err != nil {
		return err
	}
	defer end()
	retry := pace.Backoff{Most: 4 * time.Second}
	for {
		err := change(ctx)
		if !errors.Is(err, providers.ErrBusy) {
			return err
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w", err, over)
		}
	}
}
