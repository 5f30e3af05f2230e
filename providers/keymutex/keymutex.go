// Package keymutex lets one caller at a time have each of many things.
package keymutex

import (
	"context"
	"sync"
)

// KeyMutex is a lock for each key. Those who wait get it in no particular order. The zero KeyMutex is ready.
type KeyMutex struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when that key is unlocked
}

// Lock returns when the caller has the key, until it unlocks, or ctx.Err() if ctx ends before.
func (k *KeyMutex) Lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		before, mine := k.take(key)
		if mine != nil {
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		select {
		case <-before:
		case <-ctx.Done():
		}
	}
}

// take returns what is closed when the key is unlocked, either by the caller, who has it then, or by another.
func (k *KeyMutex) take(key string) (before, mine chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if before, busy := k.held[key]; busy {
		return before, nil
	}
	if k.held == nil {
		k.held = make(map[string]chan struct{})
	}
	mine = make(chan struct{})
	k.held[key] = mine
	return nil, mine
}
