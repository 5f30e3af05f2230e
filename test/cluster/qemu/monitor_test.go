package qemu_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster/qemu"
)

// answering returns a monitor connected to a function that returns the lines to send for a command. If it returns none, the
// connection ends.
func answering(t *testing.T, say func(command string, id int) []string) *qemu.Monitor {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	listener, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, listener.Close()) })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close() //nolint:errcheck // the end is part of the test
		fmt.Fprintln(conn, `{"QMP": {"version": {}, "capabilities": ["oob"]}}`)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var command struct {
				Execute string `json:"execute"`
				ID      int    `json:"id"`
			}
			if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
				return
			}
			said := []string{fmt.Sprintf(`{"return": {}, "id": %d}`, command.ID)}
			if command.Execute != "qmp_capabilities" {
				said = say(command.Execute, command.ID)
			}
			if said == nil {
				return
			}
			for _, line := range said {
				fmt.Fprintln(conn, line)
			}
		}
	}()
	m, err := qemu.Dial(t.Context(), path)
	require.NoError(t, err)
	t.Cleanup(m.Close)
	return m
}

func TestAnswersAreMatchedToCommands(t *testing.T) {
	var first int
	m := answering(t, func(_ string, id int) []string {
		if first == 0 {
			first = id
			return []string{}
		}
		return []string{ // in reverse order
			fmt.Sprintf(`{"return": %d, "id": %d}`, id, id),
			fmt.Sprintf(`{"return": %d, "id": %d}`, first, first),
		}
	})
	results := make([]int, 2)
	var group sync.WaitGroup
	for i := range results {
		group.Go(func() { assert.NoError(t, m.Execute(t.Context(), "which", nil, &results[i])) })
	}
	group.Wait()
	assert.NotEqual(t, results[0], results[1])
	assert.NotContains(t, results, 0)
}

func TestRefusalHasItsClass(t *testing.T) {
	m := answering(t, func(_ string, id int) []string {
		return []string{fmt.Sprintf(`{"error": {"class": "DeviceNotFound", "desc": "no disk1"}, "id": %d}`, id)}
	})
	err := m.Execute(t.Context(), "device_del", map[string]any{"id": "disk1"}, nil)
	var refusal *qemu.Refusal
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, qemu.Refusal{Class: "DeviceNotFound", Desc: "no disk1"}, *refusal)
	assert.EqualError(t, err, "device_del: DeviceNotFound: no disk1")
}

func TestNoEventIsLost(t *testing.T) {
	const events = 1000
	m := answering(t, func(_ string, id int) []string {
		var said []string
		for i := range events {
			said = append(said, fmt.Sprintf(`{"event": "RESET", "data": %d, "timestamp": {"seconds": 1}}`, i))
		}
		return append(said, fmt.Sprintf(`{"return": {}, "id": %d}`, id))
	})
	var seen, ended int
	stop := m.Watch(func(event qemu.Event) {
		assert.Equal(t, "RESET", event.Name)
		assert.Equal(t, strconv.Itoa(seen), string(event.Data))
		seen++
	})
	m.Watch(func(qemu.Event) { ended++ })
	require.NoError(t, m.Execute(t.Context(), "go", nil, nil))
	assert.Equal(t, events, seen, "events before the answer are handled before it")
	stop()
	require.NoError(t, m.Execute(t.Context(), "go", nil, nil))
	assert.Equal(t, events, seen)
	assert.Equal(t, 2*events, ended)
}

func TestCommandsFailWithTheConnection(t *testing.T) {
	m := answering(t, func(command string, _ int) []string {
		if command == "hang" {
			return []string{}
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, m.Execute(ctx, "hang", nil, nil), context.Canceled)

	hanging := make(chan error)
	go func() { hanging <- m.Execute(t.Context(), "hang", nil, nil) }()
	require.ErrorContains(t, m.Execute(t.Context(), "end", nil, nil), "connection has ended")
	require.ErrorContains(t, <-hanging, "connection has ended")
	<-m.Done()
	require.ErrorContains(t, m.Execute(t.Context(), "more", nil, nil), "connection has ended")
}
