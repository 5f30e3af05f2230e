package driver

import (
	"bytes"
	"context"
	"errors"
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

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

var (
	randomSteps = flag.Int("random.steps", 0, "randomised runs go on for so many steps, a quarter of them on the simulated EC2; by default 6,000")
	randomSeed  = flag.Uint64("random.seed", 0, "the seed of the first run; without -random.steps the only one")
)

// engine is Docker on one machine, reduced to what it does to a volume plugin.
type engine struct {
	m    *machine
	life *life // at the beginning of the step; nil if the machine was off

	mu      sync.Mutex
	running map[string]string // volume by mount ID: containers that run
	lost    map[string]bool   // those whose journal entry was lost

	forgotten map[string]bool // volumes whose journal entry was lost
	serial    int

	// By volume: containers that are being started, and Removes under way. An engine does not do both at once.
	starting, removing map[string]int
}

// begin counts a call of one kind for a volume, unless one of the other kind is under way.
func (e *engine) begin(these, others map[string]int, name string) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if others[name] > 0 {
		return nil
	}
	these[name]++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		these[name]--
	}
}

// TestRandom lets engines create, mount, lose and remove volumes on several nodes, several at once, while calls fail, hang,
// lose their answer or kill the plugin, and nodes lose power. After each step it checks what must always hold; at the end
// everything is left alone, and then nothing may be held any more.
func TestRandom(t *testing.T) {
	seeds(t, "own", 30, floors, func(t *testing.T, seed uint64) *world {
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
var floors = figures{
	"answers of peers": 200, "hand-overs": 30, "mounts": 350, "unmounts": 200, "takeovers": 15, "formats": 45, "crashes": 200, "releases": 350, "removes": 40,
	"by hand": 30, "crashes of dockerd": 10, "created with reclaim": 10, "created with snapshot": 1, "fences": 1, "created with volume-id": 1,
	"lost journal entries": 1, "frozen nodes": 60, "taken from frozen nodes": 2, "shut down": 8,
}

// seeds carries out runs in one kind of world, each in a bubble of its own, and sees to it that enough came to pass in them.
// share is how many of the usual 40 runs are of that kind.
func seeds(t *testing.T, kind string, share int, floors figures, run func(t *testing.T, seed uint64) *world) {
	first, runs := max(1, *randomSeed), share
	switch {
	case *randomSteps > 0:
		runs = max(1, *randomSteps*share/40/stepsPerRun)
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
		fmt.Printf("  %-22s %9d, %7.1f in 1,000 steps\n", what, sum[what], float64(sum[what])/thousands)
	}
	if t.Failed() || done*stepsPerRun < 1500 {
		return
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

// trial is one randomised run.
type trial struct {
	*testing.T
	w       *world
	engines []*engine
	names   []string
	options func(*Config)

	// Guarded by w.mu.
	cutOff   map[string]time.Time // by machine: until when it does not reach the cloud
	readOnly map[string]time.Time // by machine: until when its state directory cannot be written
}

func random(t *testing.T, seed uint64, w *world) {
	rng := rand.New(rand.NewPCG(seed, 2))
	r := &trial{
		T: t, w: w, names: []string{"one", "two", "three", "four" + strings.Repeat("-", 200)}, // the last is too long for a directory's name
		cutOff: map[string]time.Time{}, readOnly: map[string]time.Time{},
	}
	w.latency, w.removed = 2*time.Second, map[string]bool{}
	_, fencing := w.cloud.(ownCloud)
	fencing = fencing && seed%2 == 1 && seed%8 != 7 // on EC2 the power is the simulation's
	takeover := []controller.Takeover{controller.TakeoverNever, controller.TakeoverStopped}[seed%2]
	if _, own := w.cloud.(ownCloud); own {
		// Not on EC2: there the simulation takes each disk that is taken from a running node for a violation.
		takeover = []controller.Takeover{controller.TakeoverNever, controller.TakeoverStopped, controller.TakeoverAlways, controller.TakeoverStopped}[seed%4]
		w.reuse = seed%3 == 1
		w.failing = []float64{0, 0.05}[rng.IntN(2)]
	}
	r.options = func(c *Config) {
		c.Takeover, c.Probe = takeover, time.Duration(seed%4)*10*time.Second
		if seed%5 != 0 {
			withPeers(c)
		}
		if fencing {
			withFence(c)
			c.Fencing.Reboot = seed%8 == 5
		}
	}
	if seed%3 == 0 {
		w.lag = func() time.Duration { return time.Duration(w.dice("lag").Int64N(int64(5 * time.Second))) }
	}
	t.Cleanup(func() { time.Sleep(5 * time.Minute) }) // until the kernel has answered
	for _, name := range []string{"a", "b", "c"} {
		e := &engine{m: w.machine(name), running: map[string]string{}, lost: map[string]bool{}, forgotten: map[string]bool{}, starting: map[string]int{}, removing: map[string]int{}}
		t.Cleanup(func() { // a run that fails leaves nothing behind in its bubble
			if e.m.current != nil {
				e.m.current.kill()
			}
		})
		if seed%6 == 3 && name == "c" {
			e.m.zone = "z2"
		}
		e.m.slots = []int{0, 0, 2, 3}[rng.IntN(4)]
		e.m.start(t, r.options)
		r.engines = append(r.engines, e)
	}
	r.faults(rng)
	for step := range stepsPerRun {
		w.mu.Lock()
		w.arrival = time.Duration(rng.Int64N(int64(20 * time.Second)))
		w.departure = max(0, time.Duration(rng.Int64N(int64(20*time.Second)))-10*time.Second)
		w.mu.Unlock()
		r.step(rng)
		w.check(t, r.engines)
		if t.Failed() {
			t.Fatalf("step %d", step)
		}
	}
	r.end()
	if t.Failed() {
		t.Fatal("at the end")
	}
}

// faults decides what goes wrong, and how often, in this run.
func (r *trial) faults(rng *rand.Rand) {
	often := []float64{0.005, 0.02, 0.05, 0.15}[rng.IntN(4)]
	kinds := []fault{failBefore, failBefore, failAfter, failAfter, hang, late, blocked, crashBefore, crashAfter}
	r.w.setFault(func(node, call string) fault {
		cloud, journal := strings.HasPrefix(call, "cloud."), strings.HasPrefix(call, "journal.")
		now := time.Now()
		if cloud && now.Before(r.cutOff[node]) || journal && now.Before(r.readOnly[node]) {
			return failBefore
		}
		dice := r.w.dice("fault", node, call)
		if dice.Float64() >= often {
			return noFault
		}
		f := kinds[dice.IntN(len(kinds))]
		switch {
		case f == hang && !cloud:
			return failBefore
		case f == late && !slices.Contains([]string{"cloud.Attach", "cloud.Detach", "cloud.Mark", "cloud.Delete", "cloud.Forget"}, call):
			return failAfter
		case f == blocked && !slices.Contains([]string{"host.Stage", "host.Unstage", "host.Format mkfs"}, call):
			return failBefore
		}
		return f
	})
}

// step lets one to three engines be asked for something at once, while something may befall an engine.
func (r *trial) step(rng *rand.Rand) {
	if rng.IntN(20) == 0 {
		r.w.cloud.enlarge(r.names[rng.IntN(len(r.names))])
	}
	for _, e := range r.engines {
		e.life = e.m.current
	}
	if rng.IntN(12) == 0 {
		r.hands(rng)
	}
	if rng.IntN(8) == 0 { // also in one direction only, and for longer than a step
		from, to := r.engines[rng.IntN(len(r.engines))], r.engines[rng.IntN(len(r.engines))]
		r.w.set(func() {
			r.w.part(from.m.name, to.m.name, time.Now().Add(time.Duration(rng.Int64N(int64(2*time.Minute)))))
		})
	}
	var calls sync.WaitGroup
	for range 1 + rng.IntN(3) {
		e, rng := r.engines[rng.IntN(len(r.engines))], rand.New(rand.NewPCG(rng.Uint64(), 5))
		if e.life == nil {
			continue
		}
		calls.Go(func() {
			time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
			r.ask(e, rng)
		})
	}
	time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Second))))
	r.befall(r.engines[rng.IntN(len(r.engines))], rng)
	calls.Wait()
	time.Sleep(time.Duration(rng.Int64N(int64(10 * time.Second))))
	if rng.IntN(2) == 0 { // a power-off takes its time
		r.power()
	}
	for _, e := range r.engines {
		r.revive(e)
	}
	r.look(rng)
}

// power carries out what the cloud was asked for.
func (r *trial) power() {
	off := r.w.settlePower(func(m *machine) { m.start(r, r.options) })
	for _, e := range r.engines {
		if slices.Contains(off, e.m) {
			e.mu.Lock()
			clear(e.running)
			e.mu.Unlock()
		}
	}
}

// ask is one thing that an engine is told to do.
func (r *trial) ask(e *engine, rng *rand.Rand) {
	l := e.life
	name := r.names[rng.IntN(len(r.names))]
	switch p := rng.IntN(100); {
	case p < 8:
		r.create(e, name, rng)
	case p < 45:
		for _, other := range r.engines { // Swarm moves it
			for _, id := range other.ids(name) {
				r.stop(other, id, rng)
			}
		}
		r.run(e, name, rng)
	case p < 60:
		r.run(e, name, rng)
	case p < 84:
		if ids := e.ids(""); len(ids) > 0 {
			r.stop(e, ids[rng.IntN(len(ids))], rng)
		}
	case p < 96:
		end := e.begin(e.removing, e.starting, name)
		if end == nil {
			return
		}
		defer end()
		r.w.mu.Lock()
		r.w.removed[name] = true
		r.w.mu.Unlock()
		if r.call(l, 25*time.Second, func(ctx context.Context) error { return l.Remove(ctx, name) }) == nil {
			r.w.note("removes")
		}
	default:
		_ = r.call(l, 25*time.Second, func(ctx context.Context) error { return l.Unmount(ctx, name, "an ID that was never given") })
	}
}

// create makes a volume.
func (r *trial) create(e *engine, name string, rng *rand.Rand) {
	options := r.createOptions(rng)
	if r.call(e.life, 25*time.Second, func(ctx context.Context) error { return e.life.Create(ctx, name, options) }) == nil {
		for option := range options {
			r.w.note("created with " + option)
		}
	}
}

// createOptions are what a volume is asked to be like.
func (r *trial) createOptions(rng *rand.Rand) map[string]string {
	if _, own := r.w.cloud.(ownCloud); !own { // the simulated EC2 copies no data
		return nil
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	pick := func(option string, of []string) map[string]string {
		if len(of) == 0 {
			return nil
		}
		slices.Sort(of)
		return map[string]string{option: of[rng.IntN(len(of))]}
	}
	switch rng.IntN(8) {
	case 0:
		return map[string]string{"reclaim": "retain"}
	case 1:
		return map[string]string{"reclaim": "snapshot"}
	case 2:
		return pick("snapshot", slices.Collect(maps.Keys(r.w.copies)))
	case 3:
		var forgotten []string
		for id, d := range r.w.disks {
			if !d.owned {
				forgotten = append(forgotten, id)
			}
		}
		return pick("volume-id", forgotten)
	}
	return nil
}

// hands is what somebody does in the cloud's console.
func (r *trial) hands(rng *rand.Rand) {
	c, own := r.w.cloud.(ownCloud)
	if !own {
		return
	}
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	c.passTime()
	name, e := r.names[rng.IntN(len(r.names))], r.engines[rng.IntN(len(r.engines))]
	d := r.w.byName(name)
	if d == nil {
		return
	}
	r.w.figures["by hand"]++
	switch rng.IntN(4) {
	case 0: // it is taken away, whatever is mounted
		if m := r.w.machines[d.Attachment.Node]; m != nil {
			m.lose(d, max(0, time.Duration(rng.Int64N(int64(4*time.Minute)))-2*time.Minute))
		}
		d.Attachment, d.until = providers.Attachment{}, time.Time{}
	case 1:
		if !d.Held() && d.Zone == e.m.zone {
			d.Attachment, d.present = providers.Attachment{Node: e.m.name, State: providers.Attached}, time.Now()
			r.w.plug(d)
		}
	case 2:
		if !d.Held() {
			delete(r.w.disks, d.ID)
		}
	case 3: // another disk is given its name, and loses it again
		twin := r.w.newDisk(name, d.Size, nil)
		twin.twin = true
		time.AfterFunc(time.Duration(rng.Int64N(int64(time.Minute))), func() {
			r.w.mu.Lock()
			defer r.w.mu.Unlock()
			delete(r.w.disks, twin.ID)
			r.w.recordMoment("cloud.Delete")
		})
	}
	r.w.recordMoment("cloud.Modify")
}

// befall is what happens to an engine that nobody has asked for.
func (r *trial) befall(e *engine, rng *rand.Rand) {
	l := e.m.current
	if l == nil {
		if rng.IntN(3) == 0 {
			e.m.powerOn()
			e.m.start(r, r.options)
		}
		return
	}
	if e.m.standsStill() {
		return
	}
	switch p := rng.IntN(100); {
	case p < 5:
		l.kill()
	case p < 8: // disable -f: the plugin ends and its mounts are taken from the host, not from the containers
		l.kill()
		e.m.engineTakesMounts()
	case p < 11: // dockerd is killed: its next life ends the containers, and starts some anew under the same mount IDs
		r.w.note("crashes of dockerd")
		l.kill()
		e.m.engineTakesMounts()
		time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
		r.revive(e)
		again := e.m.current
		time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
		for _, id := range e.ids("") {
			e.mu.Lock()
			name := e.running[id]
			delete(e.running, id)
			e.mu.Unlock()
			e.m.containerEnds(id)
			if rng.IntN(2) == 0 {
				r.mount(e, again, name, id, 25*time.Second)
			}
		}
	case p < 15: // a partition
		r.w.mu.Lock()
		r.cutOff[e.m.name] = time.Now().Add(time.Duration(rng.Int64N(int64(5 * time.Minute))))
		r.w.mu.Unlock()
	case p < 18: // EROFS
		r.w.mu.Lock()
		r.readOnly[e.m.name] = time.Now().Add(time.Duration(rng.Int64N(int64(5 * time.Minute))))
		r.w.mu.Unlock()
	case p < 23: // a process works in what is mounted
		r.w.mu.Lock()
		for _, s := range e.m.mounts {
			s.busy = time.Now().Add(time.Duration(rng.Int64N(int64(time.Minute))))
		}
		r.w.mu.Unlock()
	case p < 25:
		r.w.mu.Lock()
		e.m.ambiguous = time.Now().Add(time.Duration(rng.Int64N(int64(time.Minute))))
		r.w.mu.Unlock()
	case p < 27: // the plugin is killed, and of one volume what the journal said is lost, or damaged
		l.kill()
		name := r.names[rng.IntN(len(r.names))]
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		if e.m.journal[name] == nil {
			return
		}
		r.w.figures["lost journal entries"]++
		delete(e.m.journal, name)
		e.forgotten[name] = true
		if rng.IntN(2) == 0 {
			e.m.damaged = append(e.m.damaged, errInjected)
		}
		for _, id := range e.ids(name) {
			e.lost[id] = true
		}
	case p < 40: // and no other plugin hears of it
		r.w.set(func() {
			r.w.figures["frozen nodes"]++
			e.m.frozen = time.Now().Add(time.Duration(rng.Int64N(int64(3 * time.Minute))))
		})
	case p < 49: // no other node hears it, and perhaps the cloud does not, either
		r.w.note("isolations")
		until := time.Now().Add(time.Duration(rng.Int64N(int64(8 * time.Minute))))
		r.w.set(func() {
			r.w.isolate(e.m, until)
			if rng.IntN(2) == 0 {
				r.cutOff[e.m.name] = until
			}
		})
	case p < 52:
		r.w.note("power losses")
		e.mu.Lock()
		l.dead.Store(true)
		clear(e.running)
		e.mu.Unlock()
		e.m.powerOff()
	}
}

// call makes one call of an engine, which wants its answer within the limit.
func (r *trial) call(l *life, limit time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	begun := time.Now()
	err := do(ctx)
	stoodStill := false
	r.w.set(func() { stoodStill = l.machine.frozen.After(begun) })
	if took := time.Since(begun); took > limit+time.Second && !l.dead.Load() && !stoodStill {
		r.Errorf("a call that has %s was answered after %s: %v", limit, took, err)
	}
	return err
}

// run starts a container, which makes its volume if need be, and tries that again as Swarm does, or gives up.
func (r *trial) run(e *engine, name string, rng *rand.Rand) {
	l := e.life
	end := e.begin(e.starting, e.removing, name)
	if end == nil {
		return
	}
	defer end()
	for range 1 + rng.IntN(4) {
		get := func(ctx context.Context) error { _, err := l.Get(ctx, name); return err }
		if r.call(l, 25*time.Second, get) != nil {
			r.create(e, name, rng)
		}
		if r.tryRun(e, name, rng) || l.dead.Load() {
			return
		}
		time.Sleep(5 * time.Second)
	}
}

// tryRun starts a container: Mount, perhaps given up early, then the container's own mount.
func (r *trial) tryRun(e *engine, name string, rng *rand.Rand) bool {
	l := e.life
	e.mu.Lock()
	e.serial++
	id := fmt.Sprintf("%s-%d", e.m.name, e.serial)
	e.mu.Unlock()
	limit := 25 * time.Second
	if rng.IntN(4) == 0 {
		limit = time.Duration(rng.Int64N(int64(limit)))
	}
	return r.mount(e, l, name, id, limit)
}

func (r *trial) mount(e *engine, l *life, name, id string, limit time.Duration) bool {
	r.w.note("mounts tried")
	err := r.call(l, limit, func(ctx context.Context) error { _, err := l.Mount(ctx, name, id); return err })
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil || l.dead.Load() {
		return false // dockerd calls nothing more
	}
	if !e.m.container(name, id) {
		r.Errorf("Mount of %s was answered, and nothing is mounted on %s", name, e.m.name)

		return false
	}
	e.running[id] = name
	r.w.note("mounts")
	return true
}

// stop ends a container; now and then its Unmount is lost.
func (r *trial) stop(e *engine, id string, rng *rand.Rand) {
	e.mu.Lock()
	name, runs := e.running[id]
	delete(e.running, id)
	e.mu.Unlock()
	if !runs || e.life == nil {
		return
	}
	if rng.IntN(4) > 0 {
		e.m.containerEnds(id)
	} else { // the kernel takes its time to tear its mounts down
		time.AfterFunc(time.Duration(rng.Int64N(int64(30*time.Second))), func() { e.m.containerEnds(id) })
	}
	unmount := func(ctx context.Context) error { return e.life.Unmount(ctx, name, id) }
	if rng.IntN(6) > 0 && r.call(e.life, 25*time.Second, unmount) == nil {
		r.w.note("unmounts")
	}
}

// ids returns the mount IDs of containers that run, of one volume or of all.
func (e *engine) ids(name string) (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, of := range e.running {
		if name == "" || name == of {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// note counts what came to pass.
func (w *world) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.figures[what]++
}

// revive restarts a plugin that has crashed, as dockerd does.
func (r *trial) revive(e *engine) {
	if l := e.m.current; l != nil && l.dead.Load() {
		_ = l.Close(context.Background())
		r.w.note("crashes")
		e.m.start(r, r.options)
	}
}

// look asks an engine for a volume. What is in use here is always known; what exists is never denied.
func (r *trial) look(rng *rand.Rand) {
	e := r.engines[rng.IntN(len(r.engines))]
	l, name := e.m.current, r.names[rng.IntN(len(r.names))]
	if l == nil {
		return
	}
	existing := func() *disk {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		for _, v := range r.w.cloud.volumes() {
			if d := r.w.disks[v.ID]; v.Name == name && d != nil && time.Since(d.born) > providers.MaxStale {
				return d
			}
		}
		return nil
	}
	r.w.mu.Lock()
	uses := slices.ContainsFunc(e.ids(name), func(id string) bool { return !e.lost[id] && e.m.writable(id) })
	r.w.mu.Unlock()
	was := existing()
	err := r.call(l, 25*time.Second, func(ctx context.Context) error { _, err := l.Get(ctx, name); return err })
	switch is := existing(); {
	case err == nil || l.dead.Load():
	case uses:
		r.Errorf("Get of %s, which containers on %s use: %v", name, e.m.name, err)
	case errors.Is(err, volume.NotFound) && was != nil && was == is:
		r.Errorf("Get denies %s, which exists, on %s: %v", name, e.m.name, err)
	}
	for _, id := range e.ids("") {
		if rng.IntN(2) == 0 {
			e.m.writes(id)
		}
	}
}

// writes lets a container write.
func (m *machine) writes(id string) {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	for _, s := range m.mounts {
		if s.containers[id] {
			m.write(s, id)
		}
	}
}

// writable tells whether the container's file system is on a disk that is still there. It is called under world.mu.
func (m *machine) writable(id string) bool {
	for _, s := range m.mounts {
		if s.containers[id] {
			return s.live(m)
		}
	}
	return false
}

// end leaves everything alone, ends all containers, and checks that nothing is left.
func (r *trial) end() {
	r.w.setFault(calm)
	r.w.mu.Lock()
	r.w.failing = 0
	r.w.mu.Unlock()
	r.w.set(func() { clear(r.w.parts) })
	for range 3 {
		r.power()
		for _, e := range r.engines {
			if e.m.current == nil {
				e.m.powerOn()
				e.m.start(r, r.options)
			}
		}
		time.Sleep(time.Minute) // faults that were drawn before have come to pass
	}
	for _, e := range r.engines {
		r.revive(e)
	}
	time.Sleep(straysEvery + workTimeout)
	r.w.check(r.T, r.engines)
	for _, e := range r.engines {
		r.w.mu.Lock()
		for _, entry := range e.m.journal { // whose ID is lost, the kernel cannot tell; that nobody is left, it can
			if len(entry.Uses) > 0 && len(e.ids(entry.Name)) == 0 {
				r.Errorf("the journal of %s says that containers use %s, and none does", e.m.name, entry.Name)
			}
		}
		r.w.mu.Unlock()
		for _, id := range e.ids("") {
			e.m.containerEnds(id)
			_ = e.m.current.Unmount(within(r.T), e.running[id], id)
		}
		clear(e.running)
	}
	time.Sleep(10 * time.Minute)
	r.w.check(r.T, r.engines)
	synctest.Wait()
	reported := map[string]bool{}
	for _, e := range r.engines {
		for _, v := range r.w.cloud.volumes() {
			// Excluded: an attach, believed to be one of before since the cloud's answer was old, failed, and the plugin died then.
			// No device tells whose the disk is, so it is reported and left to the operator.
			if e.m.current.isAbsent(v) && v.HeldBy(e.m.name) {
				r.w.note("left to the operator")
				reported[v.ID] = true
			}
		}
		assert.Empty(r, e.m.journal, "journal of %s", e.m.name)
		for _, s := range e.m.mounts {
			// Excluded: a disk that was taken away, whose journal entry was lost as well. Nobody knows of its mount any more.
			if e.forgotten[s.disk.Name] && !s.live(e.m) && len(s.containers) == 0 {
				r.w.note("dead mounts left")
				continue
			}
			r.Errorf("a file system of %s is left on %s: published at %q, in %d containers, its device still here: %t", s.disk.Name, e.m.name, s.dir, len(s.containers), s.live(e.m))
		}
		for _, h := range e.m.current.volumes {
			r.Errorf("volume %s is left in the memory of %s: %q, entry %+v, %d references", h.Name, e.m.name, h.step.Phase, h.Entry(), h.refs)
		}
		require.NoError(r, e.m.current.Close(context.Background()))
	}
	for _, v := range r.w.cloud.volumes() {
		assert.False(r, v.Held() && !reported[v.ID], "%s is held by %s", v.Name, v.Attachment.Node)
		d := r.w.disks[v.ID]
		assert.False(r, d.half && (d.data || v.Record[volume.KeyFormatted] != "" && !d.adopted && d.Snapshot == ""), "%s is formatted by half and passes for whole", v.Name)
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
			if s := m.mounts[d.Serial]; s != nil && s.live(m) {
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
			if e.lost[id] || !e.m.writable(id) { // the disk was taken away, by force or by hand
				continue
			}
			if entry := e.m.journal[name]; assert.NotNil(t, entry, "the journal of %s lost %s", e.m.name, name) {
				assert.True(t, entry.Has(used(id)), "the journal of %s lost mount ID %s of %s", e.m.name, id, name)
			}
		}
	}
}
