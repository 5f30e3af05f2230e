// Package keymutex lets one caller at a time have each of many things, in the order in which they came.
package keymutex

import (
	"context"
	"slices"
	"sync"
)

// KeyMutex is a lock for each key. The zero KeyMutex is ready.
type KeyMutex struct {
	mu    sync.Mutex
	lines map[string][]chan struct{} // of each key, who has it first; each waits until its channel is closed
}

// Lock returns when the caller has the key, until it unlocks, and tells whether another had it before. If ctx ends meanwhile,
// the error is ctx.Err().
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

// Idle tells whether nobody has a key or waits for one.
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
