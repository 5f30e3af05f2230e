package batch

import (
	"context"
	"fmt"
	"sync"
)

// Cached is a value that is read on first use and kept until it is dropped. Concurrent callers share one read. A failure is returned to
// them and not kept.
type Cached[T comparable] struct {
	what    string
	batcher *Batcher[T]

	mu    sync.Mutex
	value T // zero: unknown
}

// Cache returns a Cached of the value that ask returns, which must not be the zero T. Errors describe the read as "it is still being
// asked " followed by what: "which server this is".
func Cache[T comparable](what string, ask func(context.Context) (T, error)) *Cached[T] {
	k := &Cached[T]{what: what}
	k.batcher = New(func(ctx context.Context, keys []string) (map[string]T, error) {
		value, known := k.Known()
		if !known { // otherwise the batch before has read it
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

// Get returns the value. A caller whose ctx ends gets its error at once.
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

// Known returns the value if it has been read.
func (k *Cached[T]) Known() (value T, known bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var none T
	return k.value, k.value != none
}

// Drop removes the value if it is equal to that one, and returns whether it was.
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
