// Package keymutex provides FIFO locks by key.
package keymutex

import (
	"context"
	"slices"
	"sync"
)

// KeyMutex is a FIFO lock for each key. The zero KeyMutex is ready to use.
type KeyMutex struct {
	mu    sync.Mutex
	lines map[string][]chan struct{} // by key: the holder, then those who wait until their channel is closed
}

// Lock locks the key, and reports whether it had to wait. If ctx ends before, the error is ctx.Err().
func (k *KeyMutex) Lock(ctx context.Context, key string) (unlock func(), waited bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	turn, waited := k.enter(key)
	select {
	case <-turn:
		return func() { k.leave(key, turn) }, waited, nil
	case <-ctx.Done():
		k.leave(key, turn)
		return nil, waited, ctx.Err()
	}
}

// Idle reports whether no key is locked.
func (k *KeyMutex) Idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.lines) == 0
}

func (k *KeyMutex) enter(key string) (turn chan struct{}, waits bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lines == nil {
		k.lines = make(map[string][]chan struct{})
	}
	turn, waits = make(chan struct{}), len(k.lines[key]) > 0
	if !waits {
		close(turn)
	}
	k.lines[key] = append(k.lines[key], turn)
	return turn, waits
}

func (k *KeyMutex) leave(key string, turn chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	line := k.lines[key]
	served := line[0] == turn
	line = slices.DeleteFunc(line, func(t chan struct{}) bool { return t == turn })
	switch {
	case len(line) == 0:
		delete(k.lines, key)
		return
	case served:
		close(line[0])
	}
	k.lines[key] = line
}
