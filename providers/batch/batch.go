// Package batch answers many questions to a cloud with few calls.
package batch

import (
	"context"
	"slices"
	"sync"

	"github.com/blockvol/blockvol/providers"
)

// Batcher puts questions that come together into one call. A question that comes alone goes out at once; those that come while
// a call is under way share the next one. So no answer is older than its question, and nobody waits for company.
type Batcher[T any] struct {
	ask  func(ctx context.Context, keys []string) (map[string]T, error)
	most int // keys in one call

	mu    sync.Mutex
	busy  bool
	queue []*batch[T]
}

// New makes an Batcher that asks with that function, for most keys at a time. What the function does not return of a key is not
// there. Its ctx ends when nobody waits for the answer any more; it is called by one goroutine at a time, with each key once.
func New[T any](ask func(ctx context.Context, keys []string) (map[string]T, error), most int) *Batcher[T] {
	return &Batcher[T]{ask: ask, most: most}
}

// batch is one call and those who wait for it.
type batch[T any] struct {
	keys    map[string]bool
	waiting int
	ctx     context.Context //nolint:containedctx // the call's own: it ends when nobody waits for it any more
	cancel  context.CancelFunc

	asked *providers.Asked
	done  chan struct{} // closed when found and err are there
	found map[string]T
	err   error
}

// Get returns what is found under the key. An error of a call is that of all who wait for it; a caller whose ctx ends gets
// ctx.Err() at once, and the call goes on for the others.
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

// join puts the key into the next batch that has room, and sees to it that batches are carried out.
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
		a.queue = slices.DeleteFunc(a.queue, func(queued *batch[T]) bool { return queued == b }) // nobody may join it now
	}
}

// work carries out batches, one after another, until there is none.
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
