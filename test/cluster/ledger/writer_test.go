package ledger

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// started runs a writer. Function end stops it and returns Run's result.
func started(t *testing.T, w Writer) (end func() error) {
	t.Helper()
	w.Name = "db"
	ctx, cancel := context.WithCancel(t.Context())
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = w.Run(ctx)
	}()
	end = func() error {
		cancel()
		<-ended
		return err
	}
	t.Cleanup(func() { end() }) //nolint:errcheck // tests look at it when it matters
	return end
}

func awaitAck(t *testing.T, c *Collector, asked ...func(Ack) bool) Ack {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ack, err := c.WaitAck(ctx, "db", asked...)
	require.NoError(t, err)
	return ack
}

func awaitViolation(t *testing.T, c *Collector, want string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(c.Violations()) > 0 }, 10*time.Second, time.Millisecond)
	require.ErrorContains(t, c.Violations()[0], want)
}

func TestEveryRecordIsAcknowledged(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "ledger")
	for _, node := range []string{"one", "two", "three"} {
		end := started(t, Writer{Path: path, To: c.address(), Node: node})
		last, _ := c.Last("db")
		awaitAck(t, c, On(node), After(last+20))
		require.NoError(t, end())
		require.NoError(t, c.Check("db", read(t, path)))
	}
	assert.Empty(t, c.Violations())
	assert.Len(t, c.Sessions("db"), 3)
}

func TestRateLimitsRecords(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	end := started(t, Writer{Path: filepath.Join(t.TempDir(), "ledger"), To: c.address(), Rate: 50})
	first := awaitAck(t, c, After(0))
	assert.GreaterOrEqual(t, awaitAck(t, c, After(10)).At.Sub(first.At), 190*time.Millisecond)
	require.NoError(t, end())
}

func TestWriterReconnects(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "ledger")
	end := started(t, Writer{Path: path, To: c.address(), Node: "one"})
	for range 15 {
		last, _ := c.Last("db")
		awaitAck(t, c, After(last+2))
		c.mu.Lock()
		for conn := range c.conns {
			conn.Close() //nolint:errcheck // it may be closed
		}
		c.mu.Unlock()
	}
	require.NoError(t, end())
	require.NoError(t, c.Check("db", read(t, path)))
	assert.Empty(t, c.Violations())
	sessions := c.Sessions("db")
	assert.GreaterOrEqual(t, len(sessions), 15)
	assert.True(t, sessions[0].First)
	assert.False(t, sessions[1].First)
}

func TestNothingIsWrittenWithoutACollector(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "ledger")
	end := started(t, Writer{Path: path, To: c.address(), Node: "one"})
	awaitAck(t, c, After(10))
	c.Close()
	last, _ := c.Last("db")
	require.NoError(t, c.Check("db", read(t, path)))

	another := collect(t, c.address())
	first := awaitAck(t, another)
	assert.LessOrEqual(t, first.Seq, last+1)
	awaitAck(t, another, After(last+10))
	require.NoError(t, end())
	s := read(t, path)
	require.NoError(t, another.Check("db", s))
	assert.Empty(t, append(c.Violations(), another.Violations()...))
	require.ErrorContains(t, c.Check("db", s), "without acknowledgement", "the other collector does not know these records")
}

// It need not know what was acknowledged after it had read the ledger.
func TestReconnectedWriterReportsThatItHasRead(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	started(t, Writer{Path: filepath.Join(t.TempDir(), "ledger"), To: listener.Addr().String()})
	var runs [2]string
	for i, read := range []bool{false, true} {
		conn, err := listener.Accept()
		require.NoError(t, err)
		writer := newMessageConn(conn)
		hello, err := writer.receive()
		require.NoError(t, err)
		assert.Equal(t, read, hello.Read)
		runs[i] = hello.Run
		require.NoError(t, writer.send(message{Kind: kindNoted}))
		state, err := writer.receive()
		require.NoError(t, err)
		assert.Equal(t, kindState, state.Kind)
		require.NoError(t, conn.Close())
	}
	assert.Equal(t, runs[0], runs[1])
	require.NoError(t, listener.Close())
}

func TestWriterEndsPromptly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	silent := started(t, Writer{Path: path, To: listener.Addr().String()})
	conn, err := listener.Accept()
	require.NoError(t, err)
	_, err = newMessageConn(conn).receive()
	require.NoError(t, err)
	began := time.Now()
	require.NoError(t, silent())
	assert.Less(t, time.Since(began), patience-farewell, "although the collector does not answer")
	require.NoError(t, conn.Close())
	require.NoError(t, listener.Close())

	require.NoError(t, started(t, Writer{Path: path, To: listener.Addr().String()})())
	assert.NoFileExists(t, path, "nothing is written without the collector")
}

func TestWritersOnCopiesFork(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "ledger"), filepath.Join(dir, "copy")
	end := started(t, Writer{Path: path, To: c.address(), Node: "one"})
	awaitAck(t, c, After(10))
	require.NoError(t, end())
	require.NoError(t, c.Check("db", read(t, path)))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, b, 0o600))

	started(t, Writer{Path: path, To: c.address(), Node: "one", Task: "a", Rate: 200})
	started(t, Writer{Path: copied, To: c.address(), Node: "two", Task: "b", Rate: 200})
	require.Eventually(t, func() bool { return len(c.Violations()) > 0 }, 10*time.Second, time.Millisecond)
	violation := c.Violations()[0].Error()
	assert.Regexp(t, "^VIOLATION: db: (fork|acknowledged records are lost|two writers at once): ", violation, "whichever comes first is reported")
	assert.Regexp(t, "task [ab] on (one|two)", violation)
}

func TestWriterOnOlderCopyIsAViolation(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "ledger"), filepath.Join(dir, "copy")
	end := started(t, Writer{Path: path, To: c.address(), Node: "one"})
	awaitAck(t, c, After(10))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, b, 0o600))
	awaitAck(t, c, After(verified(t, b).Last+2))
	require.NoError(t, end())
	started(t, Writer{Path: copied, To: c.address(), Node: "two"})
	awaitViolation(t, c, "acknowledged records are lost: task  on two read a ledger of the same history")
}

func TestFailedRecordIsReportedAndNotAcknowledged(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	path := filepath.Join(full(t), "ledger")
	end := started(t, Writer{Path: path, To: c.address(), Node: "one", Task: "a"})
	require.Eventually(t, func() bool { return len(c.Errors("db")) > 0 }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, end(), syscall.ENOSPC)
	failure := c.Errors("db")[0]
	assert.Contains(t, failure.Text, "no space left on device")
	assert.Equal(t, "one", failure.Node)
	s := read(t, path)
	last, _ := c.Last("db")
	assert.Equal(t, last, s.Last, "the failed record is incomplete")
	require.NoError(t, c.Check("db", s))
	assert.Empty(t, c.Violations())
}

func TestErrorBeforeTheFirstRecordIsReported(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "missing", "ledger")
	end := started(t, Writer{Path: path, To: c.address()})
	require.Eventually(t, func() bool { return len(c.Errors("db")) > 0 }, 10*time.Second, time.Millisecond)
	require.ErrorIs(t, end(), os.ErrNotExist)

	path = filepath.Join(t.TempDir(), "ledger")
	r := made(3, 1)
	require.NoError(t, os.WriteFile(path, joined(r[0], r[2]), 0o600))
	end = started(t, Writer{Path: path, To: c.address()})
	awaitViolation(t, c, "the ledger is corrupt: record 1")
	require.ErrorIs(t, end(), ErrCorrupt)
	assert.Len(t, c.Errors("db"), 2)
}

func TestUnreportedErrorSaysSo(t *testing.T) {
	c := collect(t, "127.0.0.1:0")
	l := opened(t, filepath.Join(t.TempDir(), "ledger"))
	l.sync = func(*os.File) error {
		c.Close()
		return syscall.EIO
	}
	w := Writer{To: c.address(), Name: "db", file: l}
	err := w.Run(t.Context())
	require.ErrorIs(t, err, syscall.EIO)
	require.ErrorContains(t, err, "not reported to the collector")
	assert.Empty(t, c.Errors("db"))
	last, _ := c.Last("db")
	assert.Zero(t, last)
}
