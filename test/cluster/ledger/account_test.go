package ledger

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// simulation is one disk, writers that come and go, and a network that delays, loses answers and is cut. Messages of a
// connection keep their order; those of different connections do not.
type simulation struct {
	*rand.Rand
	account account
	disk    []Sum
	owner   *life
	lives   []*life
	wires   []*link
	errs    []error
}

// life is one life of a writer.
type life struct {
	id      string
	dead    bool
	read    bool
	private []Sum // the ledger as it sees it
	own     bool  // it has a copy of the disk, which is an error
	link    *link
}

// link is a connection, seen from both ends.
type link struct {
	session *session
	sent    []message // not received yet
	waiting bool      // the writer waits for an answer
	stated  bool
}

func (s *simulation) takeOver() {
	l := &life{id: strconv.Itoa(len(s.lives))}
	s.lives = append(s.lives, l)
	s.owner = l
}

func summary(sums []Sum) (s Summary) {
	s.Last = uint64(len(sums))
	if len(sums) > 0 {
		s.Sum = sums[len(sums)-1]
	}
	if len(sums) > 1 {
		s.Before = sums[len(sums)-2]
	}
	return s
}

func (k *link) send(m message) {
	k.sent = append(k.sent, m)
	k.waiting = true
}

// step performs a writer's next step.
func (s *simulation) step(l *life) {
	k := l.link
	switch {
	case l.dead || k != nil && k.waiting:
	case k == nil:
		k = &link{}
		l.link = k
		s.wires = append(s.wires, k)
		k.send(message{Kind: kindHello, Name: "db", Node: l.id, Task: l.id, Run: l.id, Read: l.read})
	case !k.stated:
		if !l.read {
			if l != s.owner { // the disk has been detached
				l.dead = true
				k.send(message{Kind: kindFailed, Error: "no disk"})
				return
			}
			l.read = true
			l.private = append([]Sum(nil), s.disk...)
		}
		k.stated = true
		state := summary(l.private)
		k.send(message{Kind: kindState, Ledger: &state})
	default:
		if l != s.owner && !l.own {
			l.dead = true
			k.send(message{Kind: kindFailed, Error: "EIO"})
			return
		}
		l.private = append(l.private, sha256.Sum256(fmt.Append(nil, s.Uint64())))
		if l == s.owner {
			s.disk = append([]Sum(nil), l.private...)
		}
		state := summary(l.private)
		k.send(message{Kind: kindAck, Ledger: &state})
	}
}

// deliver delivers one message to the collector, and the answer to the writer if it still waits.
func (s *simulation) deliver(k *link) {
	if len(k.sent) == 0 {
		return
	}
	m := k.sent[0]
	k.sent = k.sent[1:]
	var err error
	switch m.Kind {
	case kindHello:
		k.session = s.account.hello(m, "", time.Now())
	case kindState:
		err = s.account.state(k.session, *m.Ledger, time.Now())
	case kindAck:
		err = s.account.ack(k.session, *m.Ledger, time.Now())
	case kindFailed:
		err = s.account.fail(k.session, m, time.Now())
	}
	if err != nil {
		s.errs = append(s.errs, err)
	}
	k.waiting = false
}

// cut breaks a writer's connection. Messages that it has sent can still arrive, even much later.
func (s *simulation) cut(l *life) {
	if k := l.link; k != nil {
		if s.IntN(2) == 0 {
			k.sent = nil
		}
		l.link = nil
	}
}

func simulated(seed uint64) *simulation {
	s := &simulation{Rand: rand.New(rand.NewPCG(seed, 1))}
	s.account = account{name: "db", runs: map[string]*run{}}
	s.takeOver()
	return s
}

// run performs random steps.
func (s *simulation) run(steps int) {
	for range steps {
		l := s.lives[s.IntN(len(s.lives))]
		switch n := s.IntN(100); {
		case n < 30:
			s.step(s.owner)
		case n < 50:
			s.step(l)
		case n < 90:
			s.deliver(s.any())
		case n < 95:
			s.cut(l)
		case n < 97:
			s.cut(s.owner)
		case n < 98:
			if s.IntN(2) == 0 {
				s.owner.dead = true
			}
			s.takeOver()
		}
	}
}

// any returns one of the latest connections.
func (s *simulation) any() *link {
	if len(s.wires) == 0 {
		return &link{}
	}
	return s.wires[max(0, len(s.wires)-1-s.IntN(6))]
}

func TestCorrectWritersNeverCauseAViolation(t *testing.T) {
	records := 0
	for seed := range uint64(300) {
		s := simulated(seed)
		for range 20 {
			s.run(100)
			require.Empty(t, s.errs, "seed %d", seed)
			require.NoError(t, s.account.check(summary(s.disk)), "seed %d", seed)
		}
		records += len(s.account.acks)
	}
	require.Greater(t, records, 10000, "the simulated writers must write")
}

// settle performs steps of a writer without disturbance.
func (s *simulation) settle(t *testing.T, l *life, steps int) {
	t.Helper()
	for range steps {
		s.step(l)
		if l.link != nil {
			s.deliver(l.link)
		}
	}
}

func TestLostAcknowledgedRecordIsAViolation(t *testing.T) {
	for seed := range uint64(300) {
		s := simulated(seed)
		s.run(1000)
		s.settle(t, s.owner, 10)
		require.Empty(t, s.errs)
		s.disk = s.disk[:len(s.disk)-1-s.IntN(3)-1] // the last one may not have been acknowledged
		s.takeOver()
		s.settle(t, s.owner, 5)
		require.Len(t, s.errs, 1, "seed %d", seed)
		require.ErrorContains(t, s.errs[0], "lost")
	}
}

func TestForkIsAViolation(t *testing.T) {
	for seed := range uint64(300) {
		s := simulated(seed)
		s.run(1000)
		old := s.owner
		s.settle(t, old, 10)
		require.Empty(t, s.errs)
		old.own = true // it keeps its disk or a copy, and both continue
		s.takeOver()
		both := []*life{old, s.owner}
		for range 60 {
			s.settle(t, both[s.IntN(2)], 1)
			if s.IntN(10) == 0 {
				s.cut(both[s.IntN(2)])
			}
		}
		require.NotEmpty(t, s.errs, "seed %d", seed)
		require.Regexp(t, "fork|two writers at once|lost", s.errs[0].Error())
	}
}
