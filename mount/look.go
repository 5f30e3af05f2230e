package mount

import (
	"context"
	"sync"
)

// shared lets all who ask at once share one look at the machine. No answer is older than its question: who asks while a look is
// under way gets the next one.
type shared[K comparable, T any] struct {
	look func(asked map[K]bool) (T, error) // is called by one goroutine at a time, with what was asked for until it begins

	mu   sync.Mutex
	busy bool
	next *look[K, T] // has not begun; nil if nobody asks
}

type look[K comparable, T any] struct {
	asked map[K]bool
	done  chan struct{} // closed when found and err are there
	found T
	err   error
}

// get returns what a look finds that begins after the call. All callers share what is found: it must not be changed.
func (s *shared[K, T]) get(ctx context.Context, key K) (found T, err error) {
	s.mu.Lock()
	l := s.next
	if l == nil {
		l = &look[K, T]{asked: map[K]bool{}, done: make(chan struct{})}
		s.next = l
	}
	l.asked[key] = true
	if !s.busy {
		s.busy = true
		go s.work()
	}
	s.mu.Unlock()
	select {
	case <-l.done:
		return l.found, l.err
	case <-ctx.Done():
		return found, context.Cause(ctx)
	}
}

func (s *shared[K, T]) work() {
	for {
		s.mu.Lock()
		l := s.next
		s.next = nil
		s.busy = l != nil
		s.mu.Unlock()
		if l == nil {
			return
		}
		l.found, l.err = s.look(l.asked)
		close(l.done)
	}
}
