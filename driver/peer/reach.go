package peer

import (
	"context"
	"slices"
	"sync"
)

// Reach says hello to all nodes that somebody has heard of, and returns those that answer and those that do not, sorted.
func (m *Members) Reach(ctx context.Context) (answering, silent []string) {
	ctx, cancel := context.WithTimeout(ctx, signsTimeout)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	turn := make(chan struct{}, asking)
	for _, id := range m.Known() {
		turn <- struct{}{}
		all.Go(func() {
			defer func() { <-turn }()
			err := m.greet(ctx, id, nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent = append(silent, id)
			} else {
				answering = append(answering, id)
			}
		})
	}
	all.Wait()
	slices.Sort(answering)
	slices.Sort(silent)
	return answering, silent
}
