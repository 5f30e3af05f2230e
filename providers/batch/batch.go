// Package batch shares requests to a cloud among concurrent callers.
package batch

import (
	"context"
	"slices"
	"sync"

	"github.com/blockvol/blockvol/providers"
)

// Batcher combines concurrent reads into one request. A single read is sent at once; reads that come while a request is in progress
// share the next one. So no answer is older than its read, and a read does not wait for others.
type Batcher[T any] struct {
	ask  func(ctx context.Context, keys []string) (map[string]T, error)
	most int // keys in one call

	mu    sync.Mutex
	busy  bool
	queue []*batch[T]
}

// New returns a Batcher that calls ask with at most that many keys, each key once. A key that ask does not return is not found. Calls
// of ask do not overlap; the ctx of a call ends when no caller waits for its result any more.
func New[T any](ask func(ctx context.Context, keys []string) (map[string]T, error), most int) *Batcher[T] {
	return &Batcher[T]{ask: ask, most: most}
}

// batch is one call of ask, and its callers.
type batch[T any] struct {
	keys    map[string]bool
	waiting int
	ctx     context.Context //nolint:containedctx // of the call
	cancel  context.CancelFunc

	asked *providers.Asked
	done  chan struct{} // closed when found and err are set
	found map[string]T
	err   error
}

// Get returns the value of the key. All callers of a batch get its error. A caller whose ctx ends gets ctx.Err() at once, and the batch
// continues for the others.
func (a *Batcher[T]) Get(ctx context.Context, key string) (value T, found bool, err error) {
	if err := ctx.Err(); err != nil {
		return value, false, err
	}
	b := a.join(key)
	select {
	case <-b.done:
		value, found = b.found[key]
		providers.NoteAsked(ctx, b.asked.At())
		return value, found, b.err
	case <-ctx.Done():
		a.leave(b)
		return value, false, ctx.Err()
	}
}

// join adds the key to the next batch with room, and starts work if it is not running.
func (a *Batcher[T]) join(key string) *batch[T] {
	a.mu.Lock()
	defer a.mu.Unlock()
	var b *batch[T]
	if n := len(a.queue); n > 0 && (a.queue[n-1].keys[key] || len(a.queue[n-1].keys) < a.most) {
		b = a.queue[n-1]
	} else {
		b = &batch[T]{keys: make(map[string]bool), done: make(chan struct{})}
		b.ctx, b.asked = providers.WithAsked(context.Background())
		b.ctx, b.cancel = context.WithCancel(b.ctx) //nolint:gosec // work and leave cancel it
		a.queue = append(a.queue, b)
	}
	b.keys[key] = true
	b.waiting++
	if !a.busy {
		a.busy = true
		go a.work()
	}
	return b
}

func (a *Batcher[T]) leave(b *batch[T]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b.waiting--; b.waiting == 0 {
		b.cancel()
		a.queue = slices.DeleteFunc(a.queue, func(queued *batch[T]) bool { return queued == b }) // no caller may join it now
	}
}

// work carries out the batches of the queue, one after another.
func (a *Batcher[T]) work() {
	for {
		a.mu.Lock()
		if len(a.queue) == 0 {
			a.busy = false
			a.mu.Unlock()
			return
		}
		b := a.queue[0]
		a.queue = a.queue[1:]
		keys := make([]string, 0, len(b.keys))
		for key := range b.keys {
			keys = append(keys, key)
		}
		a.mu.Unlock()
		if b.err = b.ctx.Err(); b.err == nil {
			b.found, b.err = a.ask(b.ctx, keys)
		}
		b.cancel()
		close(b.done)
	}
}
