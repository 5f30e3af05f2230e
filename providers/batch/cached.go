package batch

import (
	"context"
	"fmt"
	"sync"
)

// Cached is one answer that holds until it is dropped: it is asked for when it is first wanted, once for all who wait for it, and
// again only after a failure, which is told to those who waited.
type Cached[T comparable] struct {
	what    string
	batcher *Batcher[T]

	mu    sync.Mutex
	value T // zero: not known
}

// Cache makes a Cached of what that function returns, which is never the zero T. What it is, is said after "it is still being
// asked": "which server this is".
func Cache[T comparable](what string, ask func(context.Context) (T, error)) *Cached[T] {
	k := &Cached[T]{what: what}
	k.batcher = New(func(ctx context.Context, keys []string) (map[string]T, error) {
		value, known := k.Known()
		if !known { // as it may be since this was asked for
			var err error
			if value, err = ask(ctx); err != nil {
				return nil, err
			}
			k.mu.Lock()
			k.value = value
			k.mu.Unlock()
		}
		return map[string]T{keys[0]: value}, nil
	}, 1)
	return k
}

// Get returns the answer. A caller whose ctx ends gets its error at once.
func (k *Cached[T]) Get(ctx context.Context) (T, error) {
	if value, known := k.Known(); known {
		return value, ctx.Err()
	}
	value, _, err := k.batcher.Get(ctx, "")
	if over := ctx.Err(); err != nil && over != nil {
		return value, fmt.Errorf("it is still being asked %s: %w", k.what, over)
	}
	return value, err
}

// Known returns the answer if it is there.
func (k *Cached[T]) Known() (value T, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var none T
	return k.value, k.value != none
}

// Drop forgets the answer if it is that one, and tells whether it was.
func (k *Cached[T]) Drop(value T) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.value != value {
		return false
	}
	var none T
	k.value = none
	return true
}
