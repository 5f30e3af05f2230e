package driver

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	randomRuns = flag.Int("random.runs", 60, "how many randomised runs, with seeds from 1")
	randomSeed = flag.Uint64("random.seed", 0, "run this seed only")
)

// engine is Docker on one machine, reduced to what it does to a volume plugin.
type engine struct {
	m       *machine
	running map[string]string // volume by mount ID: containers that run
	serial  int
}

// TestRandom lets engines create, mount, lose and remove volumes on several nodes, while calls fail, hang, lose their
// answer or kill the plugin, and nodes lose power. After each step it checks what must always hold; at the end everything
// is left alone, and then nothing may be held any more.
func TestRandom(t *testing.T) {
	seeds(t, *randomRuns, func(t *testing.T, seed uint64) {
		random(t, seed, newWorld(seed))
	})
}

// seeds carries out runs, each in a bubble of its own.
func seeds(t *testing.T, runs int, run func(t *testing.T, seed uint64)) {
	first := uint64(1)
	if *randomSeed != 0 {
		first, runs = *randomSeed, 1
	}
	for seed := range uint64(runs) {
		t.Run(fmt.Sprintf("seed %d", first+seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { run(t, first+seed) })
		})
	}
}

func random(t *testing.T, seed uint64, w *world) {
	w.latency = 2 * time.Second
	rng := rand.New(rand.NewPCG(seed, 2))
	takeover := []Takeover{TakeoverNever, TakeoverStopped}[seed%2]
	options := func(c *Config) { c.Takeover, c.Glance = takeover, time.Duration(seed%4)*10*time.Second }
	if seed%3 == 0 {
		w.lag = func() time.Duration { return time.Duration(w.rng.Int64N(int64(5 * time.Second))) }
	}
	var engines []*engine
	for _, name := range []string{"a", "b", "c"} {
		e := &engine{m: w.machine(name), running: map[string]string{}}
		t.Cleanup(func() { // a run that fails leaves nothing behind in its bubble
			if e.m.current != nil {
				e.m.current.kill()
			}
		})
		e.m.start(t, options)
		engines = append(engines, e)
	}
	names := []string{"one", "two", "three", "four" + strings.Repeat("-", 200)} // the last is too long for a directory's name
	faults := rng.Float64() * 0.15
	w.setFault(func(_, call string) fault {
		if w.rng.Float64() >= faults {
			return noFault
		}
		f := fault(1 + w.rng.IntN(5))
		if f == hang && !strings.HasPrefix(call, "cloud.") {
			f = failBefore
		}
		return f
	})
	for step := range 150 {
		w.mu.Lock()
		w.arrival = time.Duration(rng.Int64N(int64(20 * time.Second)))
		w.departure = max(0, time.Duration(rng.Int64N(int64(20*time.Second)))-10*time.Second)
		w.mu.Unlock()
		e := engines[rng.IntN(len(engines))]
		if rng.IntN(20) == 0 {
			w.cloud.enlarge(names[rng.IntN(len(names))])
		}
		e.act(t, rng, names[rng.IntN(len(names))], options)
		time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Second))))
		for _, e := range engines {
			e.revive(t, options)
		}
		w.check(t, engines)
		if t.Failed() {
			t.Fatalf("seed %d, step %d", seed, step)
		}
	}
	w.setFault(calm)
	time.Sleep(workTimeout) // faults that were drawn before have come to pass
	for _, e := range engines {
		if e.m.current == nil {
			e.m.powerOn()
			e.m.start(t, options)
		}
		e.revive(t, options)
		for id, name := range e.running {
			e.m.containerEnds(id)
			_ = e.m.current.Unmount(within(t), name, id)
		}
		clear(e.running)
	}
	time.Sleep(10 * time.Minute)
	w.check(t, engines)
	synctest.Wait()
	for _, e := range engines {
		assert.Empty(t, e.m.journal, "journal of %s", e.m.name)
		assert.Empty(t, e.m.mounts, "file systems on %s", e.m.name)
		for _, v := range e.m.current.volumes {
			t.Errorf("volume %s is left in the memory of %s: %q, entry %+v, %d references", v.name, e.m.name, v.doing, v.entry, v.refs)
		}
		require.NoError(t, e.m.current.Close(context.Background()))
	}
	for _, v := range w.cloud.volumes() {
		assert.False(t, v.Held(), "%s is held by %s", v.Name, v.Attachment.Node)
		d := w.disks[v.ID]
		assert.False(t, d.half && (d.data || v.Record[recFormatted] != ""), "%s is formatted by half and passes for whole", v.Name)
	}
	if t.Failed() {
		t.Fatalf("seed %d, at the end", seed)
	}
}

// act does one thing that happens to an engine.
func (e *engine) act(t *testing.T, rng *rand.Rand, name string, options func(*Config)) {
	if e.m.current == nil {
		if rng.IntN(3) == 0 {
			e.m.powerOn()
			e.m.start(t, options)
		}
		return
	}
	l := e.m.current
	switch p := rng.IntN(100); {
	case p < 20:
		_ = l.Create(within(t), name, nil)
	case p < 55:
		e.run(t, l, name, rng)
	case p < 80:
		if id := e.some(rng); id != "" {
			name := e.running[id]
			delete(e.running, id)
			e.m.containerEnds(id)
			if rng.IntN(4) > 0 { // else the Unmount is lost
				_ = l.Unmount(within(t), name, id)
			}
		}
	case p < 86:
		_ = l.Remove(within(t), name)
	case p < 91:
		l.kill()
	case p < 94: // disable -f: the plugin ends and its mounts are taken from the host, not from the containers
		l.kill()
		e.m.world.mu.Lock()
		for _, s := range e.m.mounts {
			s.dir = ""
		}
		e.m.settle()
		e.m.world.mu.Unlock()
	case p < 97:
		e.m.powerOff()
		clear(e.running)
	default:
		_ = l.Unmount(within(t), name, "an ID that was never given")
	}
}

// run starts a container: Mount, perhaps given up early, then the container's own mount.
func (e *engine) run(t *testing.T, l *life, name string, rng *rand.Rand) {
	e.serial++
	id := fmt.Sprintf("%s-%d", e.m.name, e.serial)
	ctx, cancel := context.WithTimeout(within(t), time.Duration(1+rng.IntN(30))*time.Second)
	defer cancel()
	if _, err := l.Mount(ctx, name, id); err != nil || l.dead.Load() {
		return // dockerd calls nothing more
	}
	if !e.m.container(name, id) {
		t.Errorf("Mount of %s was answered, and nothing is mounted on %s", name, e.m.name)
		return
	}
	e.running[id] = name
}

func (e *engine) some(rng *rand.Rand) string {
	ids := make([]string, 0, len(e.running))
	for id := range e.running {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return ""
	}
	slices.Sort(ids)
	return ids[rng.IntN(len(ids))]
}

// revive restarts a plugin that has crashed, as dockerd does.
func (e *engine) revive(t *testing.T, options func(*Config)) {
	if l := e.m.current; l != nil && l.dead.Load() {
		_ = l.Close(context.Background())
		e.m.start(t, options)
	}
}

// check is what holds at any moment.
func (w *world) check(t *testing.T, engines []*engine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	assert.Empty(t, w.violations)
	for _, d := range w.disks {
		holders := 0
		for _, m := range w.machines {
			if m.mounts[d.Serial] != nil {
				holders++
			}
		}
		assert.LessOrEqual(t, holders, 1, "%s has more than one writer", d.Name)
	}
	names := make(map[string]bool)
	for _, v := range w.cloud.volumes() {
		assert.False(t, names[v.Name], "two volumes bear the name %s", v.Name)
		names[v.Name] = true
	}
	for _, e := range engines {
		for id, name := range e.running {
			if entry := e.m.journal[name]; assert.NotNil(t, entry, "the journal of %s lost %s", e.m.name, name) {
				assert.True(t, entry.has(id), "the journal of %s lost mount ID %s of %s", e.m.name, id, name)
			}
		}
	}
}
