package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster/ledger"
)

// asWriter makes the test binary act as the writer.
const asWriter = "LEDGER_TEST_IS_WRITER"

func TestMain(m *testing.M) {
	if os.Getenv(asWriter) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process is a writer process.
type process struct {
	*exec.Cmd
	stderr bytes.Buffer
}

// start starts a writer, if possible as PID 1 of a namespace, as in a container.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], args...)}
	if os.Geteuid() == 0 {
		p.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	p.Env = append(os.Environ(), asWriter+"=1", "NODE=one", "TASK=a")
	p.Stderr = &p.stderr
	require.NoError(t, p.Start())
	t.Cleanup(func() {
		p.Process.Kill() //nolint:errcheck // it may have ended
		p.Wait()         //nolint:errcheck // it was killed
	})
	return p
}

func collect(t *testing.T) (c *ledger.Collector, address string) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c = ledger.Collect(listener)
	t.Cleanup(c.Close)
	return c, listener.Addr().String()
}

func awaitAck(t *testing.T, c *ledger.Collector, asked ...func(ledger.Ack) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.WaitAck(ctx, "db", asked...)
	require.NoError(t, err)
}

// verify runs the program with --verify.
func verify(t *testing.T, path string) (s ledger.Summary) {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"--verify", path}, &out))
	assert.Equal(t, 1, bytes.Count(out.Bytes(), []byte("\n")))
	require.NoError(t, json.Unmarshal(out.Bytes(), &s))
	return s
}

func TestKilledWriterLosesNothing(t *testing.T) {
	c, address := collect(t)
	path := filepath.Join(t.TempDir(), "ledger")
	for range 10 {
		last, _ := c.Last("db")
		p := start(t, "--file", path, "--to", address, "--name", "db", "--rate", "0")
		awaitAck(t, c, ledger.After(last+5+rand.Uint64N(20)))
		require.NoError(t, p.Process.Kill())
		require.Error(t, p.Wait())
		require.Eventually(t, func() bool { // pending messages have been received
			sessions := c.Sessions("db")
			return !sessions[len(sessions)-1].Ended.IsZero()
		}, 10*time.Second, time.Millisecond)
		require.NoError(t, c.Check("db", verify(t, path)))
	}
	assert.Empty(t, c.Violations())
	sessions := c.Sessions("db")
	assert.Len(t, sessions, 10)
	assert.Equal(t, "one", sessions[0].Node)
	assert.Equal(t, "a", sessions[0].Task)
}

func TestTerminatedWriterFinishesItsRecord(t *testing.T) {
	c, address := collect(t)
	path := filepath.Join(t.TempDir(), "ledger")
	for range 3 {
		last, _ := c.Last("db")
		p := start(t, "--file", path, "--to", address, "--name", "db", "--rate", "0")
		awaitAck(t, c, ledger.After(last+5))
		require.NoError(t, p.Process.Signal(syscall.SIGTERM))
		require.NoError(t, p.Wait(), "exit status")
		s := verify(t, path)
		last, _ = c.Last("db")
		assert.Equal(t, last, s.Last)
		assert.Zero(t, s.Torn)
		require.NoError(t, c.Check("db", s))
	}
	assert.Empty(t, c.Violations())
}

func TestWriterThatCannotWriteFails(t *testing.T) {
	c, address := collect(t)
	p := start(t, "--file", filepath.Join(t.TempDir(), "missing", "ledger"), "--to", address, "--name", "db")
	require.ErrorContains(t, p.Wait(), "exit status 1")
	assert.Regexp(t, "^writer: open .*: no such file or directory\n$", p.stderr.String())
	assert.Len(t, c.Errors("db"), 1)
}

func TestInvalidSettingsAreExplained(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad")
	require.NoError(t, os.WriteFile(bad, make([]byte, 10000), 0o600))
	for want, args := range map[string][]string{
		"are required":                 {"--file", "f", "--to", "t"},
		"must not be":                  {"--file", "f", "--to", "t", "--name", "n", "--rate", "-1"},
		`unexpected argument "ledger"`: {"ledger"},
		"no such file":                 {"--verify", bad + ".not"},
		bad + ": the ledger":           {"--verify", bad},
	} {
		require.ErrorContains(t, run(t.Context(), args, &bytes.Buffer{}), want)
	}
}
