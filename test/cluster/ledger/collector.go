package ledger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/violation"
)

// Collector hears what writers acknowledge, and judges at once whether one history of each ledger explains it.
type Collector struct {
	listener net.Listener
	serving  sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	conns      map[net.Conn]struct{}
	accounts   map[string]*account
	violations []error
	changed    chan struct{} // closed when anything is new
}

// Collect collects until Close, which closes the listener too.
func Collect(listener net.Listener) *Collector {
	c := &Collector{
		listener: listener,
		conns:    map[net.Conn]struct{}{},
		accounts: map[string]*account{},
		changed:  make(chan struct{}),
	}
	c.serving.Go(c.accept)
	return c
}

// Close ends all connections. What was collected can still be asked for.
func (c *Collector) Close() {
	c.mu.Lock()
	c.closed = true
	for conn := range c.conns {
		conn.Close() //nolint:errcheck // nothing is kept
	}
	c.mu.Unlock()
	c.listener.Close() //nolint:errcheck // nothing is kept
	c.serving.Wait()
}

func (c *Collector) accept() {
	for {
		conn, err := c.listener.Accept()
		c.mu.Lock()
		switch {
		case c.closed:
			if err == nil {
				conn.Close() //nolint:errcheck // nothing is kept
			}
			c.mu.Unlock()
			return
		case errors.Is(err, net.ErrClosed):
			c.violate(nil, fmt.Errorf("the collector's listener is closed: %w", err))
			c.mu.Unlock()
			return
		case err == nil:
			c.conns[conn] = struct{}{}
			c.serving.Go(func() { c.serve(conn) })
			c.mu.Unlock()
		default: // as when there are no descriptors left
			c.mu.Unlock()
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// serve hears one connection to its end.
func (c *Collector) serve(conn net.Conn) {
	defer func() {
		conn.Close() //nolint:errcheck // nothing is kept
		c.mu.Lock()
		delete(c.conns, conn)
		c.mu.Unlock()
	}()
	writer := newWire(conn)
	m, err := writer.receive()
	if err == nil && (m.Kind != kindHello || m.Name == "" || m.Run == "") {
		err = fmt.Errorf("%w: the first must be a hello with a name and a run, not %q", errMessage, m.Kind)
	}
	if err != nil {
		c.refuse(conn, err)
		return
	}
	s, a := c.hello(m, conn.RemoteAddr().String())
	for err == nil {
		if err = answer(writer); err != nil {
			break
		}
		if m, err = writer.receive(); err == nil {
			err = c.hear(a, s, m)
		}
	}
	c.refuse(conn, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Ended = time.Now()
	c.tell()
}

// answer does not wait for long: the other side may be gone without a word.
func answer(writer wire) error {
	if err := writer.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return writer.send(message{Kind: kindNoted})
}

// refuse makes a violation of what cannot be read. That a connection breaks is none.
func (c *Collector) refuse(conn net.Conn, err error) {
	if !errors.Is(err, errMessage) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violate(nil, fmt.Errorf("from %v: %w", conn.RemoteAddr(), err))
}

func (c *Collector) hello(m message, remote string) (*session, *account) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.accounts[m.Name]
	if a == nil {
		a = &account{name: m.Name, runs: map[string]*run{}}
		c.accounts[m.Name] = a
	}
	c.tell()
	return a.hello(m, remote, time.Now()), a
}

// hear takes one message in. The error is of a message that nothing can be made of.
func (c *Collector) hear(a *account, s *session, m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (m.Kind == kindState || m.Kind == kindAck) && m.Ledger == nil {
		return fmt.Errorf("%w: %s says nothing of the ledger", errMessage, m.Kind)
	}
	var violated error
	switch m.Kind {
	case kindState:
		violated = a.state(s, *m.Ledger, time.Now())
	case kindAck:
		violated = a.ack(s, *m.Ledger, time.Now())
	case kindFailed, kindCorrupt:
		violated = a.fail(s, m, time.Now())
	default:
		return fmt.Errorf("%w: a %q", errMessage, m.Kind)
	}
	if violated != nil {
		c.violate(a, violated)
	}
	c.tell()
	return nil
}

// violate notes a violation, of an account if it is known whose. The caller holds the lock.
func (c *Collector) violate(a *account, err error) {
	err = violation.Of(err)
	c.violations = append(c.violations, err)
	if a != nil {
		a.violations = append(a.violations, err)
	}
	c.tell()
}

// tell wakes who waits. The caller holds the lock.
func (c *Collector) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Violations returns what no single history explains, in sentences. There must be none.
func (c *Collector) Violations() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.violations)
}

// Last returns the last acknowledged record, 0 if there is none, and when it was acknowledged.
func (c *Collector) Last(name string) (seq uint64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := c.account(name).last()
	return last.Seq, last.At
}

// Sessions returns all connections of a ledger's writers, the oldest first.
func (c *Collector) Sessions(name string) []Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Session
	for _, s := range c.account(name).sessions {
		all = append(all, s.Session)
	}
	return all
}

// Errors returns what the writers of a ledger reported before they ended.
func (c *Collector) Errors(name string) []Failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.account(name).failures)
}

// Check compares what a ledger holds, when nobody writes it any more, with what was acknowledged.
func (c *Collector) Check(name string, ledger Summary) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.account(name)
	if len(a.acks) == 0 {
		return fmt.Errorf("%s: nothing was acknowledged", name)
	}
	return violation.Of(a.check(ledger))
}

// account returns that of a name, an empty one if there is none. The caller holds the lock.
func (c *Collector) account(name string) *account {
	if a := c.accounts[name]; a != nil {
		return a
	}
	return &account{name: name}
}

// Gap returns the longest time without an acknowledgement of those that were not over at a point in time: the interruption
// that an event then made. Until there is an acknowledgement after it, the time that goes on is what counts.
func (c *Collector) Gap(name string, since time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return gap(c.account(name).acks, since, time.Now())
}

func gap(acks []Ack, since, now time.Time) (longest time.Duration) {
	end := now
	for _, ack := range slices.Backward(acks) {
		longest = max(longest, end.Sub(ack.At))
		if end = ack.At; !end.After(since) {
			return longest
		}
	}
	return max(longest, end.Sub(since)) // it was before the first
}

// After asks for an acknowledgement of a later record.
func After(seq uint64) func(Ack) bool { return func(a Ack) bool { return a.Seq > seq } }

// On asks for an acknowledgement from a node.
func On(node string) func(Ack) bool { return func(a Ack) bool { return a.Node == node } }

// NotOn asks for an acknowledgement from any other node.
func NotOn(node string) func(Ack) bool { return func(a Ack) bool { return a.Node != node } }

// NotBy asks for an acknowledgement from any other task.
func NotBy(task string) func(Ack) bool { return func(a Ack) bool { return a.Task != task } }

// WaitAck waits until there is an acknowledgement, of now or of before, that is all that is asked for, and returns the
// first. A violation of the ledger ends the wait, as the context does.
func (c *Collector) WaitAck(ctx context.Context, name string, asked ...func(Ack) bool) (Ack, error) {
	wanted := func(a Ack) bool {
		return !slices.ContainsFunc(asked, func(is func(Ack) bool) bool { return !is(a) })
	}
	for seen := 0; ; {
		c.mu.Lock()
		a := c.account(name)
		acks, changed, violations := a.acks[seen:], c.changed, a.violations
		last := a.last()
		c.mu.Unlock()
		if i := slices.IndexFunc(acks, wanted); i >= 0 {
			return acks[i], nil
		}
		if len(violations) > 0 {
			return Ack{}, errors.Join(violations...)
		}
		seen += len(acks)
		select {
		case <-changed:
		case <-ctx.Done():
			return Ack{}, fmt.Errorf("%s: waiting for an acknowledgement after %d of task %s on %s at %s: %w",
				name, last.Seq, last.Task, last.Node, clock(last.At), ctx.Err())
		}
	}
}
