package mount

import (
	"context"
	"sync"
)

// batcher coalesces concurrent calls: callers that arrive while a batch runs share the next one. So no caller gets an answer
// that is older than its call, and a thousand callers cost two runs.
type batcher[K comparable, T any] struct {
	run func(keys map[K]bool) (T, error) // is called by one goroutine at a time, with the keys of all callers of the batch

	mu   sync.Mutex
	busy bool
	next *batch[K, T] // has not begun; nil if nobody waits
}

type batch[K comparable, T any] struct {
	keys   map[K]bool
	done   chan struct{} // closed when result and err are set
	result T
	err    error
}

// get returns the result of a batch that begins after the call. All its callers share the result: it must not be changed.
func (b *batcher[K, T]) get(ctx context.Context, key K) (result T, err error) {
	b.mu.Lock()
	next := b.next
	if next == nil {
		next = &batch[K, T]{keys: map[K]bool{}, done: make(chan struct{})}
		b.next = next
	}
	next.keys[key] = true
	if !b.busy {
		b.busy = true
		go b.work()
	}
	b.mu.Unlock()
	select {
	case <-next.done:
		return next.result, next.err
	case <-ctx.Done():
		return result, context.Cause(ctx)
	}
}

func (b *batcher[K, T]) work() {
	for {
		b.mu.Lock()
		next := b.next
		b.next = nil
		b.busy = next != nil
		b.mu.Unlock()
		if next == nil {
			return
		}
		next.result, next.err = b.run(next.keys)
		close(next.done)
	}
}
