package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
)

// Monitor is a connection by QMP, QEMU's control protocol. Its methods are safe for concurrent use.
type Monitor struct {
	conn net.Conn
	done chan struct{} // closed when the connection has ended

	writing sync.Mutex

	mu      sync.Mutex
	last    int
	pending map[int]chan<- answer
	watches map[int]func(Event)
	err     error // why the connection has ended
}

// Event is a QMP event.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// Refusal is QEMU's error for a command.
type Refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (r *Refusal) Error() string { return r.Class + ": " + r.Desc }

type answer struct {
	result json.RawMessage
	err    error
}

// Dial connects to a monitor's socket.
func Dial(ctx context.Context, path string) (*Monitor, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	m := &Monitor{
		conn:    conn,
		done:    make(chan struct{}),
		pending: map[int]chan<- answer{},
		watches: map[int]func(Event){},
	}
	go m.read()
	// QEMU answers after its greeting, which read ignores.
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close closes the connection. Pending commands fail.
func (m *Monitor) Close() {
	m.conn.Close() //nolint:errcheck // nothing more is sent
	<-m.done
}

// Done returns a channel that is closed when the connection has ended, for instance with QEMU.
func (m *Monitor) Done() <-chan struct{} { return m.done }

// Watch calls f for each event, in order, until stop is called. f must not block or call the monitor: nothing is read
// meanwhile.
func (m *Monitor) Watch(f func(Event)) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	id := m.last
	m.watches[id] = f
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watches, id)
	}
}

// Execute executes a command and stores its result in result, unless that is nil. QEMU's error is a *Refusal. After any other
// error the command may have been executed, or may still be.
func (m *Monitor) Execute(ctx context.Context, command string, args, result any) error {
	answered := make(chan answer, 1)
	m.mu.Lock()
	if m.err != nil {
		defer m.mu.Unlock()
		return fmt.Errorf("%s: %w", command, m.err)
	}
	m.last++
	id := m.last
	m.pending[id] = answered
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.pending, id)
	}()

	if err := m.send(ctx, id, command, args); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case a := <-answered:
		if a.err == nil && result != nil {
			a.err = json.Unmarshal(a.result, result)
		}
		if a.err != nil {
			return fmt.Errorf("%s: %w", command, a.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

func (m *Monitor) send(ctx context.Context, id int, command string, args any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	m.writing.Lock()
	defer m.writing.Unlock()
	deadline, _ := ctx.Deadline() // the zero time is no deadline
	if err := m.conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		m.conn.Close()                               //nolint:errcheck // part of a command may have been sent, so no other can follow
		if !errors.Is(err, os.ErrDeadlineExceeded) { // before the reader has noticed
			err = fmt.Errorf("the monitor's connection has ended: %w", err)
		}
		return err
	}
	return nil
}

// Human executes a command of the human monitor and returns its output, which is usually empty on success.
func (m *Monitor) Human(ctx context.Context, line string) (string, error) {
	var says string
	err := m.Execute(ctx, "human-monitor-command", map[string]any{"command-line": line}, &says)
	return strings.TrimSpace(says), err
}

func (m *Monitor) read() {
	messages := json.NewDecoder(m.conn)
	var err error
	for {
		var message struct {
			Event
			ID     *int            `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *Refusal        `json:"error"`
		}
		if err = messages.Decode(&message); err != nil {
			break
		}
		m.mu.Lock()
		switch {
		case message.Name != "":
			for _, id := range slices.Sorted(maps.Keys(m.watches)) {
				m.watches[id](message.Event)
			}
		case message.ID != nil:
			a := answer{result: message.Return}
			if message.Error != nil {
				a.err = message.Error
			}
			if answered := m.pending[*message.ID]; answered != nil {
				answered <- a
			}
		}
		m.mu.Unlock()
	}
	m.mu.Lock()
	m.err = fmt.Errorf("the monitor's connection has ended: %w", err)
	for _, answered := range m.pending {
		select {
		case answered <- answer{err: m.err}:
		default: // it has an answer already
		}
	}
	m.mu.Unlock()
	close(m.done)
}
