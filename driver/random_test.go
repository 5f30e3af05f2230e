package driver

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	randomSteps = flag.Int("random.steps", 0, "randomised runs go on for so many steps, a third of them on the simulated EC2; by default 13,500")
	randomSeed  = flag.Uint64("random.seed", 0, "the seed of the first run; without -random.steps the only one")
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
	seeds(t, "own", 60, floors, func(t *testing.T, seed uint64) *world {
		w := newWorld(seed)
		random(t, seed, w)
		return w
	})
}

// stepsPerRun is how many things happen to engines in one run.
const stepsPerRun = 150

// figures count what came to pass in randomised runs.
type figures map[string]int

// floors are what runs come to at least, in 1,000 steps: a run in which hardly anything succeeds shows nothing.
var floors = figures{"mounts": 180, "unmounts": 110, "takeovers": 2, "formats": 28, "crashes": 200, "releases": 180}

// seeds carries out runs in one kind of world, each in a bubble of its own, and sees to it that enough came to pass in them.
// share is how many of the usual 90 runs are of that kind.
func seeds(t *testing.T, kind string, share int, floors figures, run func(t *testing.T, seed uint64) *world) {
	first, runs := max(1, *randomSeed), share
	switch {
	case *randomSteps > 0:
		runs = max(1, *randomSteps*share/90/stepsPerRun)
	case *randomSeed > 0:
		runs, floors = 1, nil // one run need not come to everything
	}
	var mu sync.Mutex
	sum, done := figures{}, 0
	t.Run(kind, func(t *testing.T) {
		for seed := first; seed < first+uint64(runs); seed++ {
			t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
				t.Parallel()
				var w *world
				synctest.Test(t, func(t *testing.T) {
					t.Cleanup(func() {
						if t.Failed() {
							t.Log(howToReplay(kind, seed))
						}
					})
					w = run(t, seed)
				})
				mu.Lock()
				defer mu.Unlock()
				done++
				for what, n := range w.figures {
					sum[what] += n
				}
			})
		}
	})
	if done == 0 { // -run has chosen another kind
		return
	}
	thousands := float64(done*stepsPerRun) / 1000
	fmt.Printf("%s, %d steps:\n", kind, done*stepsPerRun)
	for _, what := range slices.Sorted(maps.Keys(sum)) {
		fmt.Printf("  %-16s %9d, %7.1f in 1,000 steps\n", what, sum[what], float64(sum[what])/thousands)
	}
	for what, floor := range floors {
		assert.GreaterOrEqual(t, float64(sum[what])/thousands, float64(floor), "%s in 1,000 steps", what)
	}
}

// howToReplay is what to do about a run that failed.
func howToReplay(kind string, seed uint64) string {
	commit, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	return fmt.Sprintf("seed %d at commit %s fails; replay it with: make random SEED=%d WORLD=%s", seed, bytes.TrimSpace(commit), seed, kind)
}

func random(t *testing.T, seed uint64, w *world) {
	w.latency = 2 * time.Second
	rng := rand.New(rand.NewPCG(seed, 2))
	takeover := []Takeover{TakeoverNever, TakeoverStopped}[seed%2]
	options := func(c *Config) { c.Takeover, c.Glance = takeover, time.Duration(seed%4)*10*time.Second }
	if seed%3 == 0 {
		w.lag = func() time.Duration { return time.Duration(w.dice("lag").Int64N(int64(5 * time.Second))) }
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
	faults := []float64{0.005, 0.02, 0.05, 0.15}[rng.IntN(4)]
	kinds := []fault{failBefore, failBefore, failAfter, failAfter, hang, crashBefore, crashAfter}
	w.setFault(func(node, call string) fault {
		dice := w.dice("fault", node, call)
		if dice.Float64() >= faults {
			return noFault
		}
		f := kinds[dice.IntN(len(kinds))]
		if f == hang && !strings.HasPrefix(call, "cloud.") {
			f = failBefore
		}
		return f
	})
	for step := range stepsPerRun {
		w.mu.Lock()
		w.arrival = time.Duration(rng.Int64N(int64(20 * time.Second)))
		w.departure = max(0, time.Duration(rng.Int64N(int64(20*time.Second)))-10*time.Second)
		w.mu.Unlock()
		e := engines[rng.IntN(len(engines))]
		if rng.IntN(20) == 0 {
			w.cloud.enlarge(names[rng.IntN(len(names))])
		}
		e.act(t, rng, engines, names[rng.IntN(len(names))], options)
		time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Second))))
		for _, e := range engines {
			e.revive(t, options)
		}
		w.check(t, engines)
		if t.Failed() {
			t.Fatalf("step %d", step)
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
		t.Fatal("at the end")
	}
}

// act does one thing that happens to an engine.
func (e *engine) act(t *testing.T, rng *rand.Rand, engines []*engine, name string, options func(*Config)) {
	if e.m.current == nil {
		if rng.IntN(3) == 0 {
			e.m.powerOn()
			e.m.start(t, options)
		}
		return
	}
	l := e.m.current
	switch p := rng.IntN(100); {
	case p < 10:
		_ = l.Create(within(t), name, nil)
	case p < 40:
		for _, other := range engines { // Swarm moves it
			for _, id := range slices.Sorted(maps.Keys(other.running)) {
				if other.running[id] == name {
					other.stop(t, id, rng)
				}
			}
		}
		e.run(t, l, name, rng)
	case p < 55:
		e.run(t, l, name, rng)
	case p < 80:
		if id := e.some(rng); id != "" {
			e.stop(t, id, rng)
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
		e.m.world.note("power losses")
		e.m.powerOff()
		clear(e.running)
	default:
		_ = l.Unmount(within(t), name, "an ID that was never given")
	}
}

// run starts a container, which makes its volume if need be, and tries that again as Swarm does, or gives up.
func (e *engine) run(t *testing.T, l *life, name string, rng *rand.Rand) {
	for range 1 + rng.IntN(4) {
		if _, err := l.Get(within(t), name); err != nil {
			_ = l.Create(within(t), name, nil)
		}
		if e.tryRun(t, l, name, rng) || l.dead.Load() {
			return
		}
		time.Sleep(5 * time.Second)
	}
}

// stop ends a container; now and then its Unmount is lost.
func (e *engine) stop(t *testing.T, id string, rng *rand.Rand) {
	name := e.running[id]
	delete(e.running, id)
	e.m.containerEnds(id)
	if e.m.current == nil || rng.IntN(6) == 0 {
		return
	}
	if e.m.current.Unmount(within(t), name, id) == nil {
		e.m.world.note("unmounts")
	}
}

// tryRun starts a container: Mount, perhaps given up early, then the container's own mount.
func (e *engine) tryRun(t *testing.T, l *life, name string, rng *rand.Rand) bool {
	e.serial++
	id := fmt.Sprintf("%s-%d", e.m.name, e.serial)
	limit := 25 * time.Second
	if rng.IntN(4) == 0 {
		limit = time.Duration(rng.Int64N(int64(limit)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	e.m.world.note("mounts tried")
	if _, err := l.Mount(ctx, name, id); err != nil || l.dead.Load() {
		return false // dockerd calls nothing more
	}
	if !e.m.container(name, id) {
		t.Errorf("Mount of %s was answered, and nothing is mounted on %s", name, e.m.name)
		return false
	}
	e.running[id] = name
	e.m.world.note("mounts")
	return true
}

// note counts what came to pass.
func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.figures[what]++
}

func (e *engine) some(rng *rand.Rand) string {
	ids := slices.Sorted(maps.Keys(e.running))
	if len(ids) == 0 {
		return ""
	}
	return ids[rng.IntN(len(ids))]
}

// revive restarts a plugin that has crashed, as dockerd does.
func (e *engine) revive(t *testing.T, options func(*Config)) {
	if l := e.m.current; l != nil && l.dead.Load() {
		_ = l.Close(context.Background())
		e.m.world.note("crashes")
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
