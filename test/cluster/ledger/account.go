package ledger

import (
	"fmt"
	"time"
)

// Ack is an acknowledged record: it is durable, and the collector knows it.
type Ack struct {
	Seq  uint64
	Sum  Sum
	At   time.Time // when the collector received it
	Node string
	Task string
}

// Session is a connection of a writer.
type Session struct {
	Name, Node, Task string
	Remote           string // address
	Begun            time.Time
	Ended            time.Time // zero while connected
	First            bool      // the writer's first session
	From             uint64    // last record at the start
	To               uint64    // last acknowledged record
	Torn             int       // bytes of an incomplete record that the writer removed
}

// String returns the session in one line.
func (s Session) String() string {
	who := "a new writer"
	if !s.First {
		who = "the same writer"
	}
	return fmt.Sprintf("%s: %s to %s: records %d to %d, %d bytes torn: %s, task %s on %s, from %s",
		s.Name, clock(s.Begun), clock(s.Ended), s.From, s.To, s.Torn, who, s.Task, s.Node, s.Remote)
}

// Failure is an error that a writer reported before it ended.
type Failure struct {
	Node, Task string
	At         time.Time
	Text       string
}

// account is the state of a ledger. The collector's lock protects it.
type account struct {
	name       string
	acks       []Ack // without gaps; the first can have any number
	sessions   []*session
	runs       map[string]*run
	failures   []Failure
	violations []error
	known      bool // the ledger's contents have been reported once
	events     int  // counter of events, for their order
	successor  int  // the latest hello of a writer that has since read the ledger
}

// run is the life of a writer process.
type run struct {
	node, task string
	hello      int    // the event after which it read the ledger
	floor      uint64 // last acknowledged record at that event, which it must have read
	read       int    // the event at which it had read the ledger; 0 before
	failed     string
	stray      bool // it has caused a violation; its claims are ignored
}

func (r *run) String() string { return fmt.Sprintf("task %s on %s", r.task, r.node) }

type session struct {
	Session
	run *run
}

func (a *account) last() Ack {
	if len(a.acks) == 0 {
		return Ack{}
	}
	return a.acks[len(a.acks)-1]
}

// acked returns the acknowledgement of a record. Record 0 always has one.
func (a *account) acked(seq uint64) (Ack, bool) {
	if seq == 0 {
		return Ack{}, true
	}
	if len(a.acks) == 0 || seq < a.acks[0].Seq || seq > a.last().Seq {
		return Ack{}, false
	}
	return a.acks[seq-a.acks[0].Seq], true
}

func (a *account) hello(m message, remote string, now time.Time) *session {
	a.events++
	r := a.runs[m.Run]
	s := &session{Session{Name: a.name, Node: m.Node, Task: m.Task, Remote: remote, Begun: now, First: r == nil}, r}
	if r == nil {
		s.run = &run{node: m.Node, task: m.Task}
		a.runs[m.Run] = s.run
	}
	if !m.Read {
		s.run.hello, s.run.floor = a.events, a.last().Seq
	}
	a.sessions = append(a.sessions, s)
	return s
}

// state handles what a writer has read, or has written if it reconnects. It is durable, so it counts as acknowledged.
func (a *account) state(s *session, ledger Summary, now time.Time) error {
	a.events++
	s.From, s.To, s.Torn = ledger.Last, ledger.Last, ledger.Torn
	first := s.run.read == 0
	if first {
		s.run.read = a.events
	}
	if !a.known && ledger.Last > 0 { // the ledger is older than the collector
		a.acks = []Ack{{ledger.Last, ledger.Sum, now, s.Node, s.Task}}
	}
	a.known = true
	if first {
		a.successor = max(a.successor, s.run.hello)
		if ledger.Last < s.run.floor {
			history := "of another history"
			if ack, ok := a.acked(ledger.Last); ok && ack.Sum == ledger.Sum {
				history = "of the same history"
			}
			return a.stray(s, "acknowledged records are lost: %v read a ledger %s that ends with %d at %s, when all up to %d had been acknowledged; %s",
				s.run, history, ledger.Last, clock(now), s.run.floor, a.acknowledgedBy(s.run.floor))
		}
	}
	return a.claim(s, ledger, now)
}

func (a *account) ack(s *session, ledger Summary, now time.Time) error {
	a.events++
	if s.run.read == 0 || ledger.Last != s.To+1 {
		return a.stray(s, "out of turn: %v acknowledged %d at %s, when its last was %d", s.run, ledger.Last, clock(now), s.To)
	}
	s.To = ledger.Last
	return a.claim(s, ledger, now)
}

// claim checks a writer's claim that a record and all before it are durable.
func (a *account) claim(s *session, ledger Summary, now time.Time) error {
	last := a.last()
	switch {
	case s.run.stray:
		return nil
	case ledger.Last <= last.Seq: // an old claim, such as from a node that was cut off, is fine
		if ack, ok := a.acked(ledger.Last); ok && ack.Sum != ledger.Sum {
			return a.stray(s, "fork: at %s %v has a record %d with checksum %v; %s",
				clock(now), s.run, ledger.Last, ledger.Sum, a.acknowledgedBy(ledger.Last))
		}
		return nil
	case ledger.Last > last.Seq+1:
		return a.stray(s, "written without acknowledgement: at %s %v has records up to %d; %s", clock(now), s.run, ledger.Last, a.acknowledgedBy(last.Seq))
	case ledger.Before != last.Sum:
		return a.stray(s, "fork: at %s %v has a record %d written after a record %d with checksum %v; %s",
			clock(now), s.run, ledger.Last, last.Seq, ledger.Before, a.acknowledgedBy(last.Seq))
	case s.run.failed != "":
		return a.stray(s, "written after an error: at %s %v has a record %d, and had reported: %s", clock(now), s.run, ledger.Last, s.run.failed)
	case s.run.read < a.successor:
		// Its successor has read the ledger without this record, so the record was written later.
		return a.stray(s, "two writers at once: at %s %v has a record %d, written after another writer had read the ledger, which came after it; %s",
			clock(now), s.run, ledger.Last, a.acknowledgedBy(last.Seq))
	}
	a.acks = append(a.acks, Ack{ledger.Last, ledger.Sum, now, s.Node, s.Task})
	return nil
}

func (a *account) fail(s *session, m message, now time.Time) error {
	a.failures = append(a.failures, Failure{s.Node, s.Task, now, m.Error})
	s.run.failed = m.Error
	if m.Kind == kindCorrupt {
		return a.stray(s, "%v, at %s: %s", s.run, clock(now), m.Error)
	}
	return nil
}

func (a *account) stray(s *session, format string, args ...any) error {
	s.run.stray = true
	return fmt.Errorf("%s: %w", a.name, fmt.Errorf(format, args...))
}

// acknowledgedBy returns who acknowledged a record and when.
func (a *account) acknowledgedBy(seq uint64) string {
	if seq == 0 {
		return "nothing had been acknowledged"
	}
	ack, _ := a.acked(seq)
	return fmt.Sprintf("record %d with checksum %v was acknowledged by task %s on %s at %s", seq, ack.Sum, ack.Task, ack.Node, clock(ack.At))
}

// check compares a file with what was acknowledged.
func (a *account) check(ledger Summary) error {
	last := a.last()
	switch {
	case ledger.Last < last.Seq:
		return fmt.Errorf("%s: acknowledged records are lost: the ledger ends with %d; %s", a.name, ledger.Last, a.acknowledgedBy(last.Seq))
	case ledger.Last > last.Seq+1:
		return fmt.Errorf("%s: written without acknowledgement: the ledger ends with %d; %s", a.name, ledger.Last, a.acknowledgedBy(last.Seq))
	case ledger.Last == last.Seq && ledger.Sum != last.Sum, ledger.Last > last.Seq && ledger.Before != last.Sum:
		return fmt.Errorf("%s: fork: the ledger, which ends with %d, has another record %d; %s", a.name, ledger.Last, last.Seq, a.acknowledgedBy(last.Seq))
	}
	return nil
}

// clock formats a time of day as in the nodes' logs.
func clock(t time.Time) string {
	if t.IsZero() {
		return "now"
	}
	return t.UTC().Format("15:04:05.000")
}
