package rest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
)

// Line lets callers change a node one after another, in the order in which they came, since clouds refuse a change of a
// machine while another is under way. Callers for different nodes do not wait for each other. The zero Line is ready.
type Line struct {
	mu    sync.Mutex
	nodes map[string][]chan struct{} // those in line, the one being served first; each waits until its channel is closed
}

// mostBusy is the longest pause before a change that the cloud was too busy for is tried again.
const mostBusy = 4 * time.Second

// Do calls when it is the caller's turn at the node, again as long as it returns providers.ErrBusy, and returns what it
// returned last. If ctx ends meanwhile, the error is that ErrBusy with ctx.Err(); so it is, too, if the turn did not come.
func (l *Line) Do(ctx context.Context, node string, call func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	turn := l.enter(node)
	defer l.leave(node, turn)
	select {
	case <-turn:
	case <-ctx.Done():
		return fmt.Errorf("%w: other changes of node %s are under way, and the call's time is over: %w", providers.ErrBusy, node, ctx.Err())
	}
	retry := pace.Backoff{Most: mostBusy}
	for {
		err := call(ctx)
		if !errors.Is(err, providers.ErrBusy) {
			return err
		}
		over := retry.Wait(ctx)
		switch {
		case over == nil:
			continue
		case errors.Is(err, over):
			return err
		}
		return fmt.Errorf("%w: %w", err, over)
	}
}

func (l *Line) enter(node string) chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	turn := make(chan struct{})
	if len(l.nodes[node]) == 0 {
		close(turn)
	}
	if l.nodes == nil {
		l.nodes = make(map[string][]chan struct{})
	}
	l.nodes[node] = append(l.nodes[node], turn)
	return turn
}

func (l *Line) leave(node string, turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := l.nodes[node]
	served := line[0] == turn
	line = slices.DeleteFunc(line, func(t chan struct{}) bool { return t == turn })
	switch {
	case len(line) == 0:
		delete(l.nodes, node)
		return
	case served:
		close(line[0])
	}
	l.nodes[node] = line
}
