package cluster_test

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
)

// The parts of a failover of PostgreSQL, from power loss to an answer at the published port, for clouds of several speeds:
//
//	go test -run Figures -v ./test/cluster
//
// Emulation makes everything ten to twenty times slower, except Swarm's timeouts and the cloud's durations. Up to 0.8 s of
// blockvol's part is the interval of its polls for the detach.
func TestFailoverFigures(t *testing.T) {
	long(t)
	c := shared(t)
	t.Cleanup(func() { c.Cloud.SetPace(latency, lag, times) })
	c.Secret("postgres-password", "c2VjcmV0")
	p := &postgres{c: c}
	workers := c.Nodes[1:3]
	c.Place(workers[0], func() {
		p.stack = c.Deploy("shop", "../../examples/postgres.yml")
		p.await(nil)
	})
	c.Availability(c.Nodes[0], "pause") // so that a worker takes over
	p.sql("create table load (n bigint primary key, filler text)")
	var columns []failover
	defer func() { t.Log("\n" + strings.Join(table(columns), "\n")) }() // the measurements so far, if the test fails
	for i, pace := range []pace{
		{latency: 20 * time.Millisecond, detach: time.Second, attach: time.Second},
		{latency: 100 * time.Millisecond, detach: 5 * time.Second, attach: 5 * time.Second},
		{latency: 500 * time.Millisecond, detach: 2 * time.Second, attach: 26 * time.Second},
	} {
		columns = append(columns, measure(t, p, workers[i%2], workers[1-i%2], pace))
	}
	c.Availability(c.Nodes[0], "active")
	c.Remove(p.stack)
	c.Manager().Docker("volume", "rm", "shop_data")
	c.Manager().Docker("secret", "rm", "postgres-password")
}

// pace is the speed of the cloud.
type pace struct{ latency, detach, attach time.Duration }

// failover has the durations of the parts of a failover.
type failover struct {
	pace  pace
	calls int // API calls
	share map[string]time.Duration
	total time.Duration
}

// shares are the parts of a failover, in order.
var shares = []string{
	"Swarm gives the node up and the task to another",
	"the engine there asks for the volume",
	"the cloud: detach, attach, calls",
	"blockvol itself",
	"the file system's check and mount",
	"Swarm tries again, if need be; the container starts",
	"PostgreSQL replays its journal",
	"its first check, then Swarm lets clients in",
}

func table(columns []failover) (lines []string) {
	row := func(what string, cell func(failover) string) {
		cells := []string{fmt.Sprintf("%-52s", what)}
		for _, f := range columns {
			cells = append(cells, fmt.Sprintf("%9s", cell(f)))
		}
		lines = append(lines, strings.Join(cells, " "))
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	row("the cloud's latency", func(f failover) string { return seconds(f.pace.latency) })
	row("its detach", func(f failover) string { return seconds(f.pace.detach) })
	row("its attach", func(f failover) string { return seconds(f.pace.attach) })
	row("calls to it", func(f failover) string { return strconv.Itoa(f.calls) })
	for _, what := range shares {
		row(what, func(f failover) string { return seconds(f.share[what]) })
	}
	row("from power loss to an answer", func(f failover) string { return seconds(f.total) })
	return lines
}

// measure cuts the power of the node of PostgreSQL.
func measure(t *testing.T, p *postgres, from, to *cluster.Node, pace pace) failover {
	t.Helper()
	c := p.c
	require.Equal(t, from.Name, p.task.Node.Name)
	changed := times
	changed.Attach, changed.Detach = pace.attach, pace.detach
	c.Cloud.SetPace(pace.latency, 0, changed)
	p.sql("checkpoint; truncate load; insert into load select n, repeat('x', 100) from generate_series(1, 20000) n")

	volume, err := c.Volume("shop_data")
	require.NoError(t, err)
	seen := watch(c, volume.ID)
	lost := time.Now()
	from.PowerOff()
	p.answers()
	answered := time.Now()
	p.await(from)
	require.Equal(t, to.Name, p.task.Node.Name)
	busy := seen()
	calls := trace.since(lost, to.Instance)

	tasks, err := p.stack.Tasks("postgres")
	require.NoError(t, err)
	given := answered
	for _, task := range tasks {
		if at := task.CreatedAt.Add(-ahead(c.Manager())); at.After(lost) && at.Before(given) {
			given = at
		}
	}
	// The response to the attach is an event in both blockvol's log and the cloud's.
	took := laps(t, to)
	var accepted time.Time
	for _, call := range calls {
		if call.action == "AttachVolume" {
			accepted = call.end
		}
	}
	require.False(t, accepted.IsZero(), "%v", calls)
	begin := accepted.Add(-took["acquire"])
	end := begin.Add(took["took"])
	calls = slices.DeleteFunc(calls, func(k apiCall) bool { return k.end.Before(begin) || k.begin.After(end) })
	for _, call := range calls {
		busy = append(busy, call.span)
	}
	cloudy := union(busy, span{begin, end})
	started, ready := starts(t, p.task)

	f := failover{pace: pace, calls: len(calls), total: answered.Sub(lost)}
	f.share = map[string]time.Duration{
		shares[0]: given.Sub(lost),
		shares[1]: begin.Sub(given),
		shares[2]: cloudy,
		shares[3]: took["took"] - took["mount"] - cloudy,
		shares[4]: took["mount"],
		shares[5]: started.Sub(end),
		shares[6]: ready.Sub(started),
		shares[7]: answered.Sub(ready),
	}
	from.PowerOn()
	return f
}

// span is a time span.
type span struct{ begin, end time.Time }

// union returns how much of a span is covered by others.
func union(covers []span, of span) (covered time.Duration) {
	slices.SortFunc(covers, func(a, b span) int { return a.begin.Compare(b.begin) })
	at := of.begin
	for _, s := range covers {
		if s.begin.Before(at) {
			s.begin = at
		}
		if s.end.After(of.end) {
			s.end = of.end
		}
		if s.end.After(s.begin) {
			covered += s.end.Sub(s.begin)
			at = s.end
		}
	}
	return covered
}

func TestOverlappingSpansCountOnce(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	covers := []span{{at(7), at(20)}, {at(1), at(3)}, {at(2), at(4)}, {at(2), at(3)}}
	assert.Equal(t, 5*time.Second, union(covers, span{at(2), at(10)}))
	assert.Zero(t, union(nil, span{at(2), at(10)}))
}

// watch records when a volume is detaching or attaching until seen is called.
func watch(c *cluster.Cluster, volume string) (seen func() []span) {
	var spans []span
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-ticker.C:
				v, _ := c.Cloud.Volume(volume)
				if len(v.Attachments) == 0 || v.Attachments[0].State == cloud.Attached {
					continue
				}
				if last := len(spans) - 1; last >= 0 && now.Sub(spans[last].end) < 20*time.Millisecond {
					spans[last].end = now
				} else {
					spans = append(spans, span{now, now})
				}
			}
		}
	}()
	return func() []span { close(end); <-ended; return spans }
}

// laps returns the steps of blockvol's last mount on a node, from its log.
func laps(t *testing.T, n *cluster.Node) map[string]time.Duration {
	t.Helper()
	log := n.Run("sh", "-c", "grep --text 'Volume mounted.*volume=shop_data' /var/log/dockerd.log | tail -n 1")
	took := map[string]time.Duration{}
	for _, field := range regexp.MustCompile(`(took|acquire|attach|format|mount)=(\S+)`).FindAllStringSubmatch(log, -1) {
		d, err := time.ParseDuration(field[2])
		require.NoError(t, err, log)
		took[field[1]] = d
	}
	require.Len(t, took, 5, log)
	return took
}

// starts returns when a container of PostgreSQL was started and when PostgreSQL was ready.
func starts(t *testing.T, task *cluster.Task) (started, ready time.Time) {
	t.Helper()
	skew := ahead(task.Node)
	started, err := time.Parse(time.RFC3339Nano, task.Node.Docker("inspect", "--format", "{{.State.StartedAt}}", task.Container))
	require.NoError(t, err)
	at := task.Node.Run("sh", "-c", "docker logs --timestamps "+task.Container+" 2>&1 | grep --text 'ready to accept connections' | tail -n 1 | cut -d ' ' -f 1")
	ready, err = time.Parse(time.RFC3339Nano, at)
	require.NoError(t, err)
	return started.Add(-skew), ready.Add(-skew)
}

// ahead returns how far a node's clock is ahead of this machine's.
func ahead(n *cluster.Node) time.Duration {
	before := time.Now()
	text := n.Run("date", "+%s%N")
	after := time.Now()
	nanoseconds, _ := strconv.ParseInt(text, 10, 64)
	return time.Unix(0, nanoseconds).Sub(before.Add(after.Sub(before) / 2))
}

// trace records all API calls.
var trace tracer

type tracer struct {
	mu    sync.Mutex
	calls []apiCall
}

type apiCall struct {
	span

	action, caller string
}

func (r *tracer) note(call cloud.Call, took time.Duration) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, apiCall{span{now.Add(-took), now}, call.Action, call.Caller})
}

// since returns the calls of a caller since a point in time.
func (r *tracer) since(begin time.Time, caller string) (calls []apiCall) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, call := range r.calls {
		if call.caller == caller && call.begin.After(begin) {
			calls = append(calls, call)
		}
	}
	slices.SortFunc(calls, func(a, b apiCall) int { return cmp.Compare(a.begin.UnixNano(), b.begin.UnixNano()) })
	return calls
}
