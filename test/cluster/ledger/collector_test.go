package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/violation"
)

func collect(t *testing.T, address string) *Collector {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
	require.NoError(t, err)
	c := Collect(listener)
	t.Cleanup(c.Close)
	return c
}

func (c *Collector) address() string { return c.listener.Addr().String() }

// history returns a ledger up to a record. Ledgers of different names have no records in common.
func history(name string, last uint64) Summary {
	sum := func(seq uint64) Sum {
		if seq == 0 {
			return Sum{}
		}
		return sha256.Sum256(fmt.Append(nil, name, seq))
	}
	s := Summary{Last: last, Sum: sum(last)}
	if last > 0 {
		s.Before = sum(last - 1)
	}
	return s
}

// branch returns history a with its last record replaced by one of history b.
func branch(last uint64) Summary {
	s := history("b", last)
	s.Before = history("a", last-1).Sum
	return s
}

// puppet is a writer that the test controls.
type puppet struct {
	t    *testing.T
	conn messageConn
	node string
}

// connect opens a connection of a writer.
func connect(t *testing.T, c *Collector, node string, read bool) *puppet {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", c.address())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // it may be closed
	p := &puppet{t, newMessageConn(conn), node}
	return p.says(message{Kind: kindHello, Name: "db", Node: node, Task: "task-" + node, Run: "run-" + node, Read: read})
}

func (p *puppet) says(m message) *puppet {
	p.t.Helper()
	require.NoError(p.t, p.conn.send(m))
	answer, err := p.conn.receive()
	require.NoError(p.t, err)
	require.Equal(p.t, kindNoted, answer.Kind)
	return p
}

func (p *puppet) state(s Summary) *puppet {
	p.t.Helper()
	return p.says(message{Kind: kindState, Ledger: &s})
}

func (p *puppet) ack(all ...Summary) *puppet {
	p.t.Helper()
	for _, s := range all {
		p.says(message{Kind: kindAck, Ledger: &s})
	}
	return p
}

// acks acknowledges records of history a.
func (p *puppet) acks(from, to uint64) *puppet {
	p.t.Helper()
	for seq := from; seq <= to; seq++ {
		p.ack(history("a", seq))
	}
	return p
}

func empty() Summary { return history("a", 0) }

func TestOneHistoryIsNoViolation(t *testing.T) {
	for name, tell := range map[string]func(t *testing.T, c *Collector){
		"a writer takes over where another ended": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 5)).acks(6, 7)
		},
		"one record was durable and its acknowledgement lost": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 6)).acks(7, 7)
		},
		"a writer reconnects": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "one", true).state(history("a", 6)).acks(7, 7)
		},
		"a late acknowledgement, over an old connection": func(t *testing.T, c *Collector) {
			one := connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 6)).acks(7, 7)
			one.acks(6, 6)
		},
		"a writer that was cut off reconnects without its disk": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 5)).acks(6, 7)
			connect(t, c, "one", true).state(history("a", 5)).says(message{Kind: kindFailed, Error: "EIO"})
		},
		"a writer was cut off after reading": func(t *testing.T, c *Collector) {
			connect(t, c, "zero", false).state(empty()).acks(1, 3)
			one := connect(t, c, "one", false)
			connect(t, c, "two", false).state(history("a", 3)).acks(4, 5)
			one.state(history("a", 3))
			connect(t, c, "two", true).state(history("a", 5)).acks(6, 7)
		},
		"the ledger is older than the collector": func(t *testing.T, c *Collector) {
			connect(t, c, "one", true).state(history("a", 6)).acks(7, 7)
		},
		"nothing is written": func(t *testing.T, c *Collector) {
			connect(t, c, "zero", false).state(empty())
			connect(t, c, "one", false).state(empty()).acks(1, 7)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := collect(t, "127.0.0.1:0")
			tell(t, c)
			assert.Empty(t, c.Violations())
			last, _ := c.Last("db")
			assert.EqualValues(t, 7, last)
			require.NoError(t, c.Check("db", history("a", last)))
		})
	}
}

func TestContradictionsAreViolations(t *testing.T) {
	for want, tell := range map[string]func(t *testing.T, c *Collector){
		"lost: task task-two on two read a ledger of the same history that ends with 4 at …, when all up to 5 had been acknowledged; record 5 with checksum … was acknowledged by task task-one on one at …": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 4)).ack(branch(5))
		},
		"lost: task task-two on two read a ledger of another history that ends with 4": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("b", 4))
		},
		"lost: task task-two on two read a ledger of the same history that ends with 0": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(empty())
		},
		"fork: at … task task-two on two has a record 5 with checksum …; record 5 with checksum … was acknowledged by task task-one on one": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(branch(5))
		},
		"fork: at … task task-one on one has a record 6 with checksum …; record 6 with checksum … was acknowledged by task task-two on two": func(t *testing.T, c *Collector) {
			one := connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 5)).acks(6, 9)
			one.ack(branch(6))
		},
		"fork: at … task task-one on one has a record 6 with": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 5)).acks(6, 9)
			connect(t, c, "one", true).state(branch(6))
		},
		"fork: at … task task-two on two has a record 6 written after a record 5 with": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("b", 6))
		},
		"without acknowledgement: at … task task-two on two has records up to 7; record 5 with": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 7))
		},
		"out of turn: task task-one on one acknowledged 7 at …, when its last was 5": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5).acks(7, 7)
		},
		"out of turn: task task-one on one acknowledged 5 at …, when its last was 5": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5).acks(5, 5)
		},
		"out of turn: task task-one on one acknowledged 1 at …, when its last was 0": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).acks(1, 1)
		},
		"two writers at once: at … task task-one on one has a record 6": func(t *testing.T, c *Collector) {
			one := connect(t, c, "one", false).state(empty()).acks(1, 5)
			connect(t, c, "two", false).state(history("a", 5))
			one.acks(6, 6)
		},
		"after an error: at … task task-one on one has a record 6, and had reported: EIO": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).state(empty()).acks(1, 5).says(message{Kind: kindFailed, Error: "EIO"}).acks(6, 6)
		},
		"db: task task-one on one, at …: record 3": func(t *testing.T, c *Collector) {
			connect(t, c, "one", false).says(message{Kind: kindCorrupt, Error: "record 3"})
		},
	} {
		t.Run(want, func(t *testing.T) {
			c := collect(t, "127.0.0.1:0")
			tell(t, c)
			violations := c.Violations()
			require.Len(t, violations, 1)
			rest := violations[0].Error()
			require.True(t, strings.HasPrefix(rest, violation.Prefix), "%q is never repeated", rest)
			for part := range strings.SplitSeq(want, "…") {
				_, after, ok := strings.Cut(rest, part)
				assert.True(t, ok, "%q is not in %q", part, violations[0])
				rest = after
			}
			_, err := c.WaitAck(t.Context(), "db", On("nowhere"))
			require.ErrorIs(t, err, violations[0], "waiting calls return the violation")
		})
	}
}

func TestInvalidMessageIsAViolation(t *testing.T) {
	for want, sent := range map[string]string{
		"invalid message: invalid character": "GET / HTTP/1.1\r\n",
		"without a newline":                  strings.Repeat("x", maxLine+1),
		`not "ack"`:                          `{"kind":"ack"}` + "\n",
		`unexpected "hello"`:                 strings.Repeat(`{"kind":"hello","name":"db","run":"1"}`+"\n", 2),
		"has no ledger":                      `{"kind":"hello","name":"db","run":"1"}` + "\n" + `{"kind":"state"}` + "\n",
		"a checksum cannot":                  `{"kind":"state","ledger":{"sum":"00"}}` + "\n",
	} {
		c := collect(t, "127.0.0.1:0")
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", c.address())
		require.NoError(t, err)
		_, err = conn.Write([]byte(sent))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return len(c.Violations()) == 1 }, 10*time.Second, time.Millisecond, want)
		require.ErrorContains(t, c.Violations()[0], want)
		require.NoError(t, conn.Close())
	}
}

func TestBrokenConnectionIsNoViolation(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", c.address())
	require.NoError(t, err)
	_, err = conn.Write([]byte(`{"kind":"hel`))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, connect(t, c, "one", false).conn.Close())
	require.Eventually(t, func() bool {
		s := c.Sessions("db")
		return len(s) == 1 && !s[0].Ended.IsZero()
	}, 10*time.Second, time.Millisecond)
	c.Close()
	assert.Empty(t, c.Violations())
}

func TestClosedListenerIsAViolation(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	require.NoError(t, c.listener.Close())
	require.Eventually(t, func() bool { return len(c.Violations()) == 1 }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, c.Violations()[0], net.ErrClosed)
}

func TestCheckComparesFileAndAcknowledgements(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	require.ErrorContains(t, c.Check("db", empty()), "nothing was acknowledged")
	connect(t, c, "one", false).state(empty()).acks(1, 5)
	require.NoError(t, c.Check("db", history("a", 5)))
	require.NoError(t, c.Check("db", history("a", 6)))
	require.ErrorContains(t, c.Check("db", history("a", 4)), violation.Prefix+"db: acknowledged records are lost")
	require.ErrorContains(t, c.Check("db", empty()), violation.Prefix+"db: acknowledged records are lost")
	require.ErrorContains(t, c.Check("db", history("a", 7)), violation.Prefix+"db: written without acknowledgement")
	require.ErrorContains(t, c.Check("db", history("b", 5)), violation.Prefix+"db: fork")
	require.ErrorContains(t, c.Check("db", history("b", 6)), violation.Prefix+"db: fork")
	assert.Empty(t, c.Violations())
}

func TestSessionsAndErrorsAreRecorded(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	torn := empty()
	torn.Torn = 3
	connect(t, c, "one", false).state(torn).acks(1, 2).says(message{Kind: kindFailed, Error: strings.Repeat("E", 2*maxLine)})
	connect(t, c, "one", true).state(history("a", 2))
	connect(t, c, "two", false)
	s := c.Sessions("db")
	require.Len(t, s, 3)
	assert.Regexp(t, `^db: [\d:.]+ to (now|[\d:.]+): records 0 to 2, 3 bytes torn: a new writer, task task-one on one, from 127.0.0.1:\d+$`, s[0].String())
	assert.Contains(t, s[1].String(), "records 2 to 2, 0 bytes torn: the same writer")
	assert.Equal(t, "two", s[2].Node)
	failures := c.Errors("db")
	require.Len(t, failures, 1)
	assert.Equal(t, strings.Repeat("E", maxError), failures[0].Text)
	assert.Equal(t, "task-one", failures[0].Task)
	assert.Empty(t, c.Sessions("other"))
	assert.Empty(t, c.Violations())
}

func TestWaitAck(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	one := connect(t, c, "one", false).state(empty()).acks(1, 3)
	ack, err := c.WaitAck(t.Context(), "db", After(1))
	require.NoError(t, err)
	assert.EqualValues(t, 2, ack.Seq)
	one.acks(4, 4)

	type result struct {
		ack Ack
		err error
	}
	elsewhere := make(chan result, 1)
	go func() {
		ack, err := c.WaitAck(t.Context(), "db", NotOn("one"), After(5))
		elsewhere <- result{ack, err}
	}()
	connect(t, c, "two", false).state(history("a", 4)).acks(5, 7)
	got := <-elsewhere
	require.NoError(t, got.err)
	assert.EqualValues(t, 6, got.ack.Seq)
	assert.Equal(t, "task-two", got.ack.Task)
	last, at := c.Last("db")
	assert.EqualValues(t, 7, last)
	assert.False(t, at.Before(got.ack.At))

	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = c.WaitAck(ctx, "db", On("one"), After(4))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "after 7 of task task-two on two")
	_, err = c.WaitAck(ctx, "other")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestGapIsTheLongestSinceTheEvent(t *testing.T) {
	second := func(n int) time.Time { return time.Unix(int64(n), 0) }
	acks := func(at ...int) (all []Ack) {
		for _, n := range at {
			all = append(all, Ack{At: second(n)})
		}
		return all
	}
	for name, c := range map[string]struct {
		acks             []Ack
		since, now, want int
	}{
		"one before, one after":                {acks(10, 30), 15, 31, 20},
		"longer ones before do not count":      {acks(0, 100, 110, 115), 111, 116, 5},
		"some were still pending":              {acks(10, 12, 14, 40, 41), 11, 42, 26},
		"the gap continues":                    {acks(10), 15, 100, 90},
		"the gap continues after pending ones": {acks(10, 12), 11, 100, 88},
		"the event was before all":             {acks(10, 11), 2, 12, 8},
		"nothing was ever acknowledged":        {nil, 2, 12, 10},
	} {
		assert.Equal(t, time.Duration(c.want)*time.Second, gap(c.acks, second(c.since), second(c.now)), name)
	}
	c := collect(t, "127.0.0.1:0")
	connect(t, c, "one", false).state(empty()).acks(1, 2)
	assert.Positive(t, c.Gap("db", time.Now()))
}
