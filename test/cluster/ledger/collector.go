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

// Collector receives the acknowledgements of writers and checks at once whether they fit one history of each ledger.
type Collector struct {
	listener net.Listener
	serving  sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	conns      map[net.Conn]struct{}
	accounts   map[string]*account
	violations []error
	changed    chan struct{} // closed at the next change
}

// Collect returns a collector. Close closes it and the listener.
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

// Close closes all connections. The collected data remains available.
func (c *Collector) Close() {
	c.mu.Lock()
	c.closed = true
	for conn := range c.conns {
		conn.Close() //nolint:errcheck // no data is lost
	}
	c.mu.Unlock()
	c.listener.Close() //nolint:errcheck // no data is lost
	c.serving.Wait()
}

func (c *Collector) accept() {
	for {
		conn, err := c.listener.Accept()
		c.mu.Lock()
		switch {
		case c.closed:
			if err == nil {
				conn.Close() //nolint:errcheck // no data is lost
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
		default: // such as too many open files
			c.mu.Unlock()
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// serve handles a connection.
func (c *Collector) serve(conn net.Conn) {
	defer func() {
		conn.Close() //nolint:errcheck // no data is lost
		c.mu.Lock()
		delete(c.conns, conn)
		c.mu.Unlock()
	}()
	writer := newMessageConn(conn)
	m, err := writer.receive()
	if err == nil && (m.Kind != kindHello || m.Name == "" || m.Run == "") {
		err = fmt.Errorf("%w: the first message must be a hello with a name and a run, not %q", errMessage, m.Kind)
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

// answer writes an answer with a deadline, since the writer may be unreachable.
func answer(writer messageConn) error {
	if err := writer.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	return writer.send(message{Kind: kindNoted})
}

// refuse reports an invalid message as a violation. A broken connection is none.
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

// hear handles a message. An error means that the message is invalid.
func (c *Collector) hear(a *account, s *session, m message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (m.Kind == kindState || m.Kind == kindAck) && m.Ledger == nil {
		return fmt.Errorf("%w: %s has no ledger", errMessage, m.Kind)
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
		return fmt.Errorf("%w: unexpected %q", errMessage, m.Kind)
	}
	if violated != nil {
		c.violate(a, violated)
	}
	c.tell()
	return nil
}

// violate records a violation, of an account if it is known. The caller holds the lock.
func (c *Collector) violate(a *account, err error) {
	err = violation.Of(err)
	c.violations = append(c.violations, err)
	if a != nil {
		a.violations = append(a.violations, err)
	}
	c.tell()
}

// tell wakes the waiting calls. The caller holds the lock.
func (c *Collector) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Violations returns all violations.
func (c *Collector) Violations() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.violations)
}

// Last returns the last acknowledged record and when it was acknowledged, or 0.
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

// Errors returns what a ledger's writers reported before they ended.
func (c *Collector) Errors(name string) []Failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.account(name).failures)
}

// Check compares the contents of a ledger, which must not have a writer any more, with what was acknowledged.
func (c *Collector) Check(name string, ledger Summary) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.account(name)
	if len(a.acks) == 0 {
		return fmt.Errorf("%s: nothing was acknowledged", name)
	}
	return violation.Of(a.check(ledger))
}

// account returns the account of a ledger, which it creates if necessary. The caller holds the lock.
func (c *Collector) account(name string) *account {
	if a := c.accounts[name]; a != nil {
		return a
	}
	return &account{name: name}
}

// Gap returns the longest time without an acknowledgement that ended after since. A gap that has not ended counts up to now.
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
	return max(longest, end.Sub(since)) // the first acknowledgement is later
}

// After matches acknowledgements of later records.
func After(seq uint64) func(Ack) bool { return func(a Ack) bool { return a.Seq > seq } }

// On matches acknowledgements from a node.
func On(node string) func(Ack) bool { return func(a Ack) bool { return a.Node == node } }

// NotOn matches acknowledgements from all other nodes.
func NotOn(node string) func(Ack) bool { return func(a Ack) bool { return a.Node != node } }

// NotBy matches acknowledgements from all other tasks.
func NotBy(task string) func(Ack) bool { return func(a Ack) bool { return a.Task != task } }

// WaitAck returns the first acknowledgement that matches, and waits for it if necessary. It returns an error after a violation
// of the ledger or when the context ends.
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
