package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/peer"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/violation"
)

// world is a small cloud and its machines, under the rules of the real ones: a disk is attached to one machine, a mkfs
// refuses what is not blank, a file system stays with the kernel until its last mount is gone. What must never happen is
// written down as a violation the moment it happens.
type world struct {
	mu         sync.Mutex
	seed       uint64
	disks      map[string]*disk // by id
	snapshots  map[string]providers.Record
	copies     map[string]disk                // by snapshot: what is on it
	shots      map[string]*providers.Snapshot // by snapshot, without its record
	copying    time.Duration                  // how long a snapshot takes to complete
	heldStill  int                            // snapshots whose volume's file system was frozen
	machines   map[string]*machine
	made       int
	plugs      int
	violations []string

	fault     func(node, call string) fault // called under mu
	latency   time.Duration                 // of each call to the cloud, at most
	arrival   time.Duration                 // until an attached device is in the kernel
	departure time.Duration                 // from when a detached device has left the kernel until the cloud is done
	sizeLag   time.Duration                 // until a device shows that its disk has become larger
	inPlace   bool                          // a disk that comes back to a kernel that has its device still is that device, always
	reuse     bool                          // a disk's serial comes from its name
	failing   float64                       // the part of attaches that the cloud cannot carry out, and of questions who the node is
	boot      time.Duration                 // of a machine, which takes longer than a call to the cloud
	lag       func() time.Duration          // how old an answer of the cloud is; nil for not at all

	busyPower time.Time // until when the cloud powers off no machine

	calls   map[string]int          // to the cloud, by name
	figures figures                 // what has come to pass
	written map[string]string       // by id: what containers have written to a disk last, and were told that it is there
	removed map[string]bool         // names that Remove was called for
	past    []moment                // what the cloud has been like, if answers lag
	parts   map[[2]string]time.Time // until when the second machine does not hear the first

	cloud infrastructure
}

// infrastructure is the cloud that the world's disks and machines are in: the world's own, or a simulation of a real one.
type infrastructure interface {
	join(machine string) (id string) // a new machine of the cloud
	provider(t testing.TB, l *life) providers.Provider
	powerOff(id string)
	powerOn(id string)
	enlarge(name string)          // makes the disk twice as large, in the cloud and in the kernel that has it
	volumes() []*providers.Volume // ours, in truth; called under world.mu
}

// moment is what the cloud was like from a time on.
type moment struct {
	at    time.Time
	disks []disk
}

// disk is one volume of the cloud and what stands on it.
type disk struct {
	providers.Volume
	present time.Time // when its device is in the holder's kernel
	fstype  string    // empty: blank
	formats int
	foreign string    // a signature that is no file system
	half    bool      // a mkfs was cut short
	data    bool      // a container has had it
	content string    // what a container has written last; a mkfs destroys it
	by      string    // the boot that has formatted it
	born    time.Time // when it was made
	owned   bool      // has our mark
	until   time.Time // when a detach is done
	adopted bool
	twin    bool // somebody has given it the name of another
	tags    map[string]string
	plugged int // how often it was attached: each time its device is another

	shown      int64 // the size that its device shows until shownUntil
	shownUntil time.Time
}

// machine is a node: its kernel, and the lives of the plugin on it.
type machine struct {
	world      *world
	name, zone string
	life, was  providers.Life
	changed    time.Time        // when its life did
	ambiguous  time.Time        // until when two of its devices have one serial
	damaged    []error          // journal entries that its next start cannot read
	wrong      []mount.Finding  // what its kernel says of each volume
	full       bool             // so are its file systems
	newer      map[string]error // by name: volumes whose entries a later version has written
	slots      int              // how many disks it can have; 0 for any number
	frozen     time.Time        // until when nothing on it runs
	refuses    bool             // its kernel tells those who ask that its plugin is not there
	ghosts     map[string]ghost // by disk: devices of disks that were taken from it and are in its kernel still
	errors     uint64           // that its kernel has met
	boot       int
	begun      time.Time              // of the life
	mounts     map[string]*superblock // by serial: what the kernel holds
	journal    map[string]*node.Entry
	current    *life

	off    bool // the cloud was asked to power it off, and will; guarded by world.mu
	starts bool // the same for powering it on

	answers   *Driver // the one that other machines ask; guarded by world.mu
	answering *life   // whose that is
}

// ghost is a device whose disk the cloud has taken: reads and writes fail, until the disk is attached to the machine again as the same device.
type ghost struct {
	plugged int
	until   time.Time // when the kernel removes it
}

// superblock is a file system that a kernel holds.
type superblock struct {
	disk       *disk
	dir        string          // where it is published; empty if it is not
	containers map[string]bool // private mounts of containers, by mount ID
	size       int64           // bytes
	activity   mount.Activity
	plugged    int       // the disk's when it was mounted
	busy       time.Time // until when a process works in it, so that it cannot be unmounted
	frozen     bool
	freezer    *life // that has frozen it; nil if another program has
	lost       bool  // its disk was not the machine's for a time: others may have written to it
	down       bool  // it was shut down
}

// live tells whether the device that the file system was mounted from is still in the machine's kernel.
func (s *superblock) live(m *machine) bool {
	d := s.disk
	return !s.down && s.plugged == d.plugged && d.HeldBy(m.name) && d.Attachment.State != providers.Detaching && m.world.disks[d.ID] == d
}

func (s *superblock) held() bool { return s.dir != "" || len(s.containers) > 0 || s.frozen }

// life is one run of the plugin on a machine. A dead one changes nothing any more.
type life struct {
	*Driver
	machine  *machine
	takeover controller.Takeover
	members  *peer.Members // nil if it has none; guarded by world.mu
	bootID   string        // of the Driver, which works before start has set it here
	dead     atomic.Bool
	unseen   atomic.Bool     // the engine does not see what is mounted
	freezing map[string]bool // directories whose file systems it freezes
}

type fault int

const (
	noFault fault = iota
	failBefore
	failAfter // done, but the answer is lost
	hang
	crashBefore
	crashAfter
	late    // the answer is an error, and the cloud does it yet
	blocked // the kernel keeps the call for minutes, whatever its context says
)

var (
	errInjected = errors.New("injected failure")
	errDead     = errors.New("this process is dead")
)

func newWorld(seed uint64) *world {
	w := &world{
		seed: seed, disks: map[string]*disk{}, snapshots: map[string]providers.Record{}, copies: map[string]disk{}, shots: map[string]*providers.Snapshot{},
		machines: map[string]*machine{}, fault: calm, calls: map[string]int{}, figures: figures{}, written: map[string]string{}, boot: 10 * time.Second, parts: map[[2]string]time.Time{},
	}
	w.cloud = ownCloud{w}
	return w
}

// dice gives random numbers that depend on the seed, the moment and what they are for alone. So a run
// can be repeated, but for what goroutines do in whichever order that wake at the very same moment.
func (w *world) dice(what ...string) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %q", time.Now().UnixNano(), what)
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

// set changes what the world is like from now on.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// part keeps the second machine from hearing the first. The caller holds mu.
func (w *world) part(from, to string, until time.Time) { w.parts[[2]string{from, to}] = until }

// parted tells whether no question and answer pass between two machines. The caller holds mu.
func (w *world) parted(a, b string) bool {
	now := time.Now()
	return now.Before(w.parts[[2]string{a, b}]) || now.Before(w.parts[[2]string{b, a}])
}

// setFault decides from now on what goes wrong.
func (w *world) setFault(f func(node, call string) fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

// setLag makes the cloud's answers that old from now on.
func (w *world) setLag(age time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lag = func() time.Duration { return age }
}

// at is the fault of every such call, and no other.
func at(call string, f fault) func(node, call string) fault {
	return func(_, is string) fault {
		if is == call {
			return f
		}
		return noFault
	}
}

func calm(string, string) fault { return noFault }

func (w *world) violate(format string, args ...any) {
	w.violations = append(w.violations, violation.Textf(format, args...))
}

func (w *world) machine(name string) *machine {
	name = w.cloud.join(name)
	m := &machine{world: w, name: name, zone: "z1", life: providers.Running, mounts: map[string]*superblock{}, journal: map[string]*node.Entry{}}
	w.machines[name] = m
	return m
}

// start runs the plugin on the machine, as Docker would after a boot or a crash.
func (m *machine) start(t testing.TB, change ...func(*Config)) *life {
	t.Helper()
	synctest.Wait()
	l := &life{machine: m, freezing: map[string]bool{}, bootID: fmt.Sprintf("%s-%d", m.name, m.boot)}
	cfg := Config{
		Provider: m.world.cloud.provider(t, l), Host: &fakeHost{l}, PublishedDir: "/published",
		Boot: l.bootID, Log: quiet(), DefaultSize: 1 << 30,
	}
	for _, c := range change {
		c(&cfg)
	}
	cfg.Journal = fakeJournal{l}
	l.takeover = cmp.Or(cfg.Takeover, controller.TakeoverStopped)
	d, err := New(cfg)
	require.NoError(t, err)
	l.Driver = d
	m.current = l
	m.world.set(func() { m.answers, m.answering, m.begun = d, l, time.Now() })
	if l.members != nil {
		go l.members.Run(d.ctx, d.OtherNodes)
	}
	return l
}

// kill ends the life as kill -9 does: nothing it still wants to do takes effect.
func (l *life) kill() {
	l.dead.Store(true)
	l.cancel()
}

// powerOff ends the machine: its kernel forgets everything, the cloud does not.
func (m *machine) powerOff() {
	if m.current != nil {
		m.current.kill()
		m.current = nil
	}
	m.world.mu.Lock()
	m.life, m.was, m.changed = providers.Stopped, m.life, time.Now()
	m.mounts = map[string]*superblock{}
	m.ghosts, m.frozen = nil, time.Time{}
	m.boot++
	m.world.mu.Unlock()
	m.world.cloud.powerOff(m.name)
}

// powerOn boots the machine.
func (m *machine) powerOn() {
	m.world.cloud.powerOn(m.name)
	m.world.mu.Lock()
	m.life, m.was, m.changed = providers.Running, m.life, time.Now()
	boot := m.world.boot
	m.world.mu.Unlock()
	time.Sleep(boot)
}

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(discard{})
	return log
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// do carries out one call with what may go wrong at it. The effect runs under the world's lock.
func (l *life) do(ctx context.Context, call string, effect func() error) error {
	if l.dead.Load() {
		return errDead
	}
	return l.suffer(ctx, call, l.draw(call), effect)
}

// awaitGoingOn returns when the machine is not frozen.
func (m *machine) awaitGoingOn() {
	for {
		var left time.Duration
		m.world.set(func() { left = time.Until(m.frozen) })
		if left <= 0 {
			return
		}
		time.Sleep(left)
	}
}

// standsStill tells whether nothing runs on the machine.
func (m *machine) standsStill() (is bool) {
	m.world.set(func() { is = time.Now().Before(m.frozen) })
	return is
}

// lose takes the disk from the machine, whatever is mounted there. Its device stays for a time in a kernel that does not see to it. The
// caller holds mu.
func (m *machine) lose(d *disk, ghostly time.Duration) {
	for _, s := range m.mounts {
		s.lost = s.lost || s.disk == d
	}
	if ghostly > 0 {
		if m.ghosts == nil {
			m.ghosts = map[string]ghost{}
		}
		m.ghosts[d.ID] = ghost{d.plugged, time.Now().Add(ghostly)}
	}
}

// suffer carries out one call with what goes wrong at it.
func (l *life) suffer(ctx context.Context, call string, f fault, effect func() error) error {
	l.machine.awaitGoingOn()
	w := l.machine.world
	var delay time.Duration
	if w.latency > 0 && strings.HasPrefix(call, "cloud.") {
		delay = time.Duration(w.dice("latency", l.machine.name, call).Int64N(int64(w.latency)))
	}
	if pause.For(ctx, delay) != nil {
		return ctx.Err()
	}
	run := func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.dead.Load() {
			return errDead
		}
		w.passTime()
		defer w.recordMoment(call)
		return effect()
	}
	switch f {
	case failBefore:
		return errInjected
	case failAfter:
		if err := run(); err != nil {
			return err
		}
		return errInjected
	case hang:
		<-ctx.Done()
		return ctx.Err()
	case late:
		go func() {
			time.Sleep(time.Duration(w.dice("late", call).Int64N(int64(8 * time.Second)))) // within providers.MaxStale
			w.mu.Lock()
			defer w.mu.Unlock()
			w.passTime()
			defer w.recordMoment(call)
			_ = effect()
		}()
		return errInjected
	case blocked:
		time.Sleep(time.Duration(w.dice("stuck", call).Int64N(int64(5 * time.Minute))))
	case crashBefore:
		l.dead.Store(true)
		return errDead
	case crashAfter:
		_ = run()
		l.dead.Store(true)
		return errDead
	}
	return run()
}

// draw decides what goes wrong at a call, and counts it.
func (l *life) draw(call string) fault {
	w := l.machine.world
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[call]++
	return w.fault(l.machine.name, call)
}

// passTime ends the detaches whose time has come.
func (w *world) passTime() {
	for _, d := range w.disks {
		d.passTime(time.Now())
	}
}

func (d *disk) passTime(now time.Time) {
	if d.Attachment.State == providers.Detaching && !d.until.IsZero() && !now.Before(d.until) {
		d.Attachment, d.until = providers.Attachment{}, time.Time{}
	}
}

// recordMoment keeps what the cloud is like after a change, for answers that lag.
func (w *world) recordMoment(call string) {
	if w.lag == nil || !strings.HasPrefix(call, "cloud.") || call == "cloud.Find" || call == "cloud.List" {
		return
	}
	now := moment{at: time.Now()}
	for _, d := range w.disks {
		c := *d
		c.Record = maps.Clone(d.Record)
		now.disks = append(now.disks, c)
	}
	w.past = append(w.past, now)
	if len(w.past) > 200 {
		w.past = w.past[100:]
	}
}

// seen returns our volumes as an answer of the cloud shows them, sorted by name.
func (w *world) seen() (all []*providers.Volume) {
	add := func(d *disk) {
		if d.owned {
			all = append(all, d.describe())
		}
	}
	if w.lag == nil {
		for _, d := range w.disks {
			add(d)
		}
	} else {
		at := time.Now().Add(-w.lag())
		for _, m := range slices.Backward(w.past) {
			if m.at.After(at) {
				continue
			}
			for _, d := range m.disks {
				d.passTime(at)
				add(&d)
			}
			break
		}
	}
	slices.SortFunc(all, func(a, b *providers.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// ownCloud is the world's own cloud.
type ownCloud struct{ *world }

func (ownCloud) join(machine string) string { return machine }

func (ownCloud) provider(_ testing.TB, l *life) providers.Provider { return &fakeProvider{l} }

func (ownCloud) powerOff(string) {}

func (ownCloud) powerOn(string) {}

func (c ownCloud) enlarge(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.disks {
		if d.owned && d.Name == name {
			d.Size *= 2
		}
	}
	c.recordMoment("cloud.Modify")
}

func (c ownCloud) volumes() (all []*providers.Volume) {
	c.passTime()
	for _, d := range c.disks {
		if d.owned && !d.twin {
			all = append(all, d.describe())
		}
	}
	return all
}

// fakeProvider is the world's cloud, as seen by one life of the plugin.
type fakeProvider struct{ *life }

func (p *fakeProvider) Node(ctx context.Context) (providers.Node, error) {
	w := p.machine.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failing > 0 && w.dice("node", p.machine.name).Float64() < w.failing {
		return providers.Node{}, errInjected
	}
	return providers.Node{ID: p.machine.name, Zone: p.machine.zone}, ctx.Err()
}

func (p *fakeProvider) NodeState(ctx context.Context, node string) (s providers.NodeState, err error) {
	err = p.do(ctx, "cloud.NodeState", func() error {
		if m := p.machine.world.machines[node]; m != nil {
			life := m.life
			if w := p.machine.world; w.lag != nil && time.Since(m.changed) < min(w.lag(), 2*time.Second) {
				life = m.was
			}
			s = providers.NodeState{Life: life, Evidence: fmt.Sprintf("machine %s is %s", node, life), Remedy: "unplug machine " + node}
		} else {
			s = providers.NodeState{Life: providers.Gone, Evidence: fmt.Sprintf("there is no machine %s", node)}
		}
		return nil
	})
	return s, err
}

func (p *fakeProvider) Supports() []string { return []string{"snapshot", "tags", "type"} }

func (p *fakeProvider) Buses() []string { return []string{"loop"} }

func (w *world) byName(name string) *disk {
	for _, d := range w.disks {
		if d.owned && d.Name == name && !d.twin {
			return d
		}
	}
	return nil
}

func (d *disk) describe() *providers.Volume {
	v := d.Volume
	v.Record = maps.Clone(d.Record)
	return &v
}

func (p *fakeProvider) Find(ctx context.Context, name string) (v *providers.Volume, err error) {
	err = p.do(ctx, "cloud.Find", func() error {
		found := 0
		for _, other := range p.machine.world.seen() {
			if other.Name == name {
				v = other
				found++
			}
		}
		switch {
		case found == 1:
			return nil
		case found > 1:
			v = nil
			return fmt.Errorf("%w: %s", providers.ErrAmbiguous, name)
		}
		return fmt.Errorf("%w: %s", providers.ErrNotFound, name)
	})
	return v, err
}

func (p *fakeProvider) List(ctx context.Context) (all []*providers.Volume, err error) {
	err = p.do(ctx, "cloud.List", func() error {
		all = append([]*providers.Volume{}, p.machine.world.seen()...)
		names := map[string]int{}
		for _, v := range all {
			names[v.Name]++
		}
		n := len(all)
		all = slices.DeleteFunc(all, func(v *providers.Volume) bool { return names[v.Name] > 1 })
		if len(all) < n {
			return providers.ErrAmbiguous
		}
		return nil
	})
	return all, err
}

func (w *world) newDisk(name string, size int64, rec providers.Record) *disk {
	w.made++
	d := &disk{owned: true, Volume: providers.Volume{
		ID: fmt.Sprintf("vol-%d", w.made), Name: name, Size: size, Zone: "z1", CreatedAt: time.Now(),
		Serial: fmt.Sprintf("serial-%d", w.made), Record: maps.Clone(rec),
	}}
	if d.Record == nil {
		d.Record = providers.Record{}
	}
	if serial := "serial-of-" + name; w.reuse && !slices.ContainsFunc(slices.Collect(maps.Values(w.disks)), func(other *disk) bool { return other.Serial == serial }) {
		d.Serial = serial
	}
	d.born = time.Now()
	w.disks[d.ID] = d
	return d
}

func (p *fakeProvider) Create(ctx context.Context, spec providers.Spec) (v *providers.Volume, err error) {
	err = p.do(ctx, "cloud.Create", func() error {
		d := p.machine.world.byName(spec.Name)
		if shot := p.machine.world.shots[spec.Snapshot]; shot != nil && p.machine.world.shown(shot).State != providers.SnapshotComplete {
			return providers.ErrInvalid // the others wait, which the driver does too
		}
		if d == nil {
			rec := maps.Clone(p.machine.world.snapshots[spec.Snapshot])
			if rec == nil {
				rec = providers.Record{}
			}
			maps.Copy(rec, spec.Record)
			d = p.machine.world.newDisk(spec.Name, spec.Size, rec)
			d.Zone, d.tags = p.machine.zone, maps.Clone(spec.Tags)
			if spec.Snapshot != "" {
				d.Snapshot, d.fstype = spec.Snapshot, "ext4"
				if c, ok := p.machine.world.copies[spec.Snapshot]; ok {
					d.fstype, d.half, d.foreign, d.data, d.content = c.fstype, c.half, c.foreign, c.data, c.content
					p.machine.world.written[d.ID] = c.content
				}
			}
		}
		v = d.describe()
		return nil
	})
	return v, err
}

func (p *fakeProvider) Adopt(ctx context.Context, id string, spec providers.Spec) (v *providers.Volume, err error) {
	err = p.do(ctx, "cloud.Adopt", func() error {
		d := p.machine.world.disks[id]
		switch {
		case d == nil:
			return providers.ErrNotFound
		case d.owned && d.Name != spec.Name, d.Held():
			return providers.ErrInvalid
		case !d.owned && p.machine.world.byName(spec.Name) != nil: // at one moment, where the clouds look first and label then
			return providers.ErrInvalid
		}
		d.adopted = d.adopted || !d.owned // by which it counts as formatted, whatever is on it
		d.owned, d.Name, d.born = true, spec.Name, time.Now()
		maps.Copy(d.Record, spec.Record)
		v = d.describe()
		return nil
	})
	return v, err
}

func (p *fakeProvider) Forget(ctx context.Context, id string) error {
	return p.do(ctx, "cloud.Forget", func() error {
		d := p.machine.world.disks[id]
		if d == nil {
			return nil
		}
		if d.Held() {
			return &providers.HeldError{Volume: id, Node: d.Attachment.Node}
		}
		d.owned = false
		return nil
	})
}

func (p *fakeProvider) Orphans(ctx context.Context) (all []providers.Orphan, err error) {
	err = p.do(ctx, "cloud.Orphans", func() error {
		for _, d := range p.machine.world.disks {
			if !d.owned {
				all = append(all, providers.Orphan{ID: d.ID, Name: d.Name, Kind: providers.OrphanKept, Size: d.Size})
			}
		}
		return nil
	})
	return all, err
}

func (p *fakeProvider) Delete(ctx context.Context, id string) error {
	return p.do(ctx, "cloud.Delete", func() error {
		d := p.machine.world.disks[id]
		if d == nil {
			return nil
		}
		if d.Held() {
			return &providers.HeldError{Volume: id, Node: d.Attachment.Node}
		}
		p.machine.world.mayDelete(d)
		for _, shot := range p.machine.world.shots {
			if shot.Volume == id && p.machine.world.shown(shot).State == providers.SnapshotCreating {
				shot.State = providers.SnapshotFailed
			}
		}
		delete(p.machine.world.disks, id)
		return nil
	})
}

func (p *fakeProvider) Attach(ctx context.Context, id, node string) error {
	if node != p.machine.name {
		p.machine.world.violate("%s attaches %s to another node, %s", p.machine.name, id, node)
	}
	return p.do(ctx, "cloud.Attach", func() error {
		d := p.machine.world.disks[id]
		switch {
		case d == nil:
			return providers.ErrNotFound
		case d.HeldBy(p.machine.name) && d.Attachment.State == providers.Detaching:
			return providers.ErrBusy
		case d.HeldBy(p.machine.name):
			return nil
		case d.Held():
			return &providers.HeldError{Volume: id, Node: d.Attachment.Node}
		}
		if d.Zone != "" && p.machine.zone != "" && d.Zone != p.machine.zone {
			p.machine.world.violate("%s, which is in zone %s, asked for %s, which is in %s", p.machine.name, p.machine.zone, d.Name, d.Zone)
			return providers.ErrInvalid
		}
		attached := 0
		for _, other := range p.machine.world.disks {
			if other.HeldBy(p.machine.name) {
				attached++
			}
		}
		if p.machine.slots > 0 && attached >= p.machine.slots {
			return providers.ErrAttachLimit
		}
		d.Attachment = providers.Attachment{Node: p.machine.name, State: providers.Attached}
		d.present = time.Now().Add(p.machine.world.arrival)
		if !p.machine.takesBack(d) {
			p.machine.world.plug(d)
		}
		if p.machine.world.dice("attach", id).Float64() < p.machine.world.failing {
			d.Attachment.State, d.Attachment.Problem = providers.AttachFailed, "the hypervisor refuses"
		}
		return nil
	})
}

func (p *fakeProvider) Detach(ctx context.Context, id, node string, force bool) error {
	return p.do(ctx, "cloud.Detach", func() error {
		w := p.machine.world
		d := w.disks[id]
		if d == nil || !d.HeldBy(node) {
			return nil
		}
		m := w.machines[node]
		if m == nil {
			return nil
		}
		if !force || p.takeover != controller.TakeoverAlways {
			m.mayLose(d, force)
		}
		if force {
			w.figures["takeovers"]++
			var ghostly time.Duration
			if left := time.Until(m.frozen); left > 0 {
				w.figures["taken from frozen nodes"]++
				ghostly = left + time.Duration(w.dice("ghost", id).Int64N(int64(5*time.Minute)))
			}
			m.lose(d, ghostly)
		}
		d.Attachment = providers.Attachment{}
		if w.departure > 0 {
			d.Attachment, d.until = providers.Attachment{Node: node, State: providers.Detaching}, time.Now().Add(w.departure)
		}
		return nil
	})
}

// mayDelete notes it as a violation if nobody has asked for a volume to be removed that is being deleted.
func (w *world) mayDelete(d *disk) {
	if w.removed != nil && !w.removed[d.Name] {
		w.violate("%s (%s) was deleted, and nobody has asked for that", d.Name, d.ID)
	}
}

// mayLose notes it as a violation if the machine's kernel holds a file system on a disk that is being detached from it.
func (m *machine) mayLose(d *disk, force bool) (may bool) {
	switch {
	case m.on(deviceOf(d)) == nil:
		return true
	case force:
		m.world.violate("%s was taken by force from %s, which has it mounted", d.Name, m.name)
	default:
		m.world.violate("%s was detached from %s, whose kernel holds its file system", d.Name, m.name)
	}
	return false
}

func (p *fakeProvider) Mark(ctx context.Context, id, key, value string) error {
	return p.do(ctx, "cloud.Mark", func() error {
		d := p.machine.world.disks[id]
		if d == nil {
			return providers.ErrNotFound
		}
		d.Record[key] = value
		return nil
	})
}

func (p *fakeProvider) Tags(ctx context.Context, id string) (tags map[string]string, err error) {
	err = p.do(ctx, "cloud.Tags", func() error {
		d := p.machine.world.disks[id]
		if d == nil {
			return providers.ErrNotFound
		}
		tags = maps.Clone(d.tags)
		return nil
	})
	return tags, err
}

func (p *fakeProvider) Plugins() []string { return nil }

func (p *fakeProvider) PluginDisks(context.Context, string) ([]providers.PluginDisk, error) {
	return nil, errors.New("it has none")
}

func (p *fakeProvider) Slots(ctx context.Context) (slots providers.Slots, err error) {
	err = p.do(ctx, "cloud.Slots", func() error {
		slots.Most = 4
		for _, d := range p.machine.world.disks {
			if d.describe().HeldBy(p.machine.name) {
				slots.Used++
			}
		}
		return nil
	})
	return slots, err
}

func (p *fakeProvider) Modify(ctx context.Context, id string, change providers.Change) (v *providers.Volume, err error) {
	err = p.do(ctx, "cloud.Modify", func() error {
		d := p.machine.world.disks[id]
		switch {
		case d == nil:
			return providers.ErrNotFound
		case change.Type != "" || change.IOPS != 0 || change.Throughput != 0:
			return fmt.Errorf("%w: disks of this world only grow", providers.ErrInvalid)
		case change.Size != 0 && change.Size < d.Size:
			return fmt.Errorf("%w: disks do not shrink", providers.ErrInvalid)
		case change.Size > d.Size:
			d.shown, d.shownUntil = d.Size, time.Now().Add(p.machine.world.sizeLag)
			d.Size = change.Size
		}
		v = d.describe()
		return nil
	})
	return v, err
}

func (p *fakeProvider) Snapshot(ctx context.Context, id string, spec providers.SnapshotSpec) (s *providers.Snapshot, err error) {
	err = p.do(ctx, "cloud.Snapshot", func() error {
		if p.machine.world.disks[id] == nil {
			return providers.ErrNotFound
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	w := p.machine.world
	named := "snap of " + id + ": " + spec.Description
	w.set(func() {
		if shot := w.shots[named]; shot != nil && w.snapshots[named] != nil {
			s = w.shown(shot)
		}
	})
	if s != nil {
		return s, nil
	}
	err = spec.Taking(ctx, func(ctx context.Context) error {
		return p.do(ctx, "cloud.Snapshot take", func() error {
			d := w.disks[id]
			if d == nil {
				return providers.ErrNotFound
			}
			if w.snapshots[named] == nil {
				record := maps.Clone(d.Record)
				maps.Copy(record, spec.Record)
				w.snapshots[named], w.copies[named] = record, *d
				w.shots[named] = &providers.Snapshot{ID: named, Volume: id, Name: d.Name, Size: d.Size, CreatedAt: time.Now(), State: providers.SnapshotComplete}
				for _, m := range w.machines {
					if s := m.mounts[d.Serial]; s != nil && s.frozen {
						w.heldStill++
					}
				}
			}
			s = w.shown(w.shots[named])
			return nil
		})
	})
	return s, err
}

// shown is a snapshot as the cloud shows it now. The caller holds mu.
func (w *world) shown(shot *providers.Snapshot) *providers.Snapshot {
	s := *shot
	s.Record = maps.Clone(w.snapshots[s.ID])
	if s.State == providers.SnapshotComplete && time.Since(s.CreatedAt) < w.copying {
		s.State, s.Detail = providers.SnapshotCreating, "42%"
	}
	return &s
}

func (p *fakeProvider) FindSnapshot(ctx context.Context, id string) (s *providers.Snapshot, err error) {
	err = p.do(ctx, "cloud.FindSnapshot", func() error {
		w := p.machine.world
		switch shot := w.shots[id]; {
		case w.snapshots[id] == nil:
			return providers.ErrNotFound
		case shot != nil:
			s = w.shown(shot)
		default: // of another time
			s = &providers.Snapshot{ID: id, State: providers.SnapshotComplete, Record: maps.Clone(w.snapshots[id])}
		}
		return nil
	})
	return s, err
}

func (p *fakeProvider) ListSnapshots(ctx context.Context) (all []*providers.Snapshot, err error) {
	err = p.do(ctx, "cloud.Snapshots", func() error {
		w := p.machine.world
		for id, shot := range w.shots {
			if w.snapshots[id] != nil {
				all = append(all, w.shown(shot))
			}
		}
		slices.SortFunc(all, providers.OlderSnapshot)
		return nil
	})
	return all, err
}

func (p *fakeProvider) DeleteSnapshot(ctx context.Context, id string) error {
	return p.do(ctx, "cloud.DeleteSnapshot", func() error {
		delete(p.machine.world.snapshots, id)
		return nil
	})
}

// fakeHost is the machine's kernel.
type fakeHost struct{ *life }

// attached returns the disk of that serial if its device is in this kernel.
func (h *fakeHost) attached(serial string) *disk {
	for _, d := range h.machine.world.disks {
		if d.Serial == serial && h.machine.haunted(d) {
			ghostly := *d // as it was when it was taken
			ghostly.plugged = h.machine.ghosts[d.ID].plugged
			return &ghostly
		}
		if d.Serial == serial && d.HeldBy(h.machine.name) && d.Attachment.State != providers.AttachFailed && d.Attachment.State != providers.Detaching && !time.Now().Before(d.present) {
			return d
		}
	}
	return nil
}

func deviceOf(d *disk) mount.Device {
	size := d.Size
	if time.Now().Before(d.shownUntil) {
		size = d.shown
	}
	return mount.Device{Name: d.Serial, Path: "/dev/" + d.Serial, Major: 7, Minor: uint32(d.plugged), Size: size, Serial: d.Serial}
}

func (h *fakeHost) Find(ctx context.Context, serial string) (dev mount.Device, err error) {
	err = h.do(ctx, "host.Find", func() error {
		d := h.attached(serial)
		switch {
		case d == nil:
			return mount.ErrNoDevice
		case time.Now().Before(h.machine.ambiguous):
			return mount.ErrAmbiguousDevice
		}
		dev = deviceOf(d)
		return nil
	})
	return dev, err
}

// until waits until the condition is met. What goes wrong is drawn once for the whole wait: before it, or at its end.
func (h *fakeHost) until(ctx context.Context, call string, met func() bool) error {
	if h.dead.Load() {
		return errDead
	}
	f := h.draw(call)
	for {
		ok := false
		look := func() error { ok = met(); return nil }
		var err error
		switch f {
		case failAfter, crashAfter:
			err = h.suffer(ctx, call, noFault, look)
			if ok {
				err = h.suffer(ctx, call, f, look)
			}
		default:
			err = h.suffer(ctx, call, f, look)
		}
		if err != nil || ok {
			return err
		}
		if pause.For(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("%s: %w", call, ctx.Err())
		}
	}
}

func (h *fakeHost) Wait(ctx context.Context, serial string) (dev mount.Device, err error) {
	err = h.until(ctx, "host.Wait", func() bool {
		d := h.attached(serial)
		if d != nil {
			dev = deviceOf(d)
		}
		return d != nil
	})
	return dev, err
}

// haunted tells whether the machine's kernel has the device of a disk that was taken from it.
func (m *machine) haunted(d *disk) bool {
	return time.Now().Before(m.ghosts[d.ID].until) && !d.HeldBy(m.name)
}

func (h *fakeHost) Shutdown(ctx context.Context, dev mount.Device, _ string) error {
	return h.do(ctx, "host.Shutdown", func() error {
		s := h.machine.on(dev)
		if s == nil {
			return mount.ErrNotStaged
		}
		if d := h.attached(dev.Serial); !s.lost && s.live(h.machine) && d != nil && d.plugged == s.plugged {
			h.machine.world.violate("%s shut down %s, whose disk it rightly holds", h.machine.name, s.disk.Name)
		}
		if !s.down {
			h.machine.world.figures["shut down"]++
		}
		s.down, s.frozen, s.freezer = true, false, nil
		h.machine.settle()
		return nil
	})
}

func (h *fakeHost) Removed(dev mount.Device) (removed bool, err error) {
	h.machine.awaitGoingOn()
	h.machine.world.set(func() {
		h.machine.world.passTime()
		d := h.attached(dev.Serial)
		removed = d == nil || uint32(d.plugged) != dev.Minor
	})
	return removed, nil
}

func (h *fakeHost) Answers(ctx context.Context, dev mount.Device) error {
	return h.do(ctx, "host.Answers", func() error {
		if d := h.attached(dev.Serial); d == nil || uint32(d.plugged) != dev.Minor || h.machine.haunted(d) {
			return mount.ErrUnreadable
		}
		return nil
	})
}

func (h *fakeHost) Errors(mount.Device) (n uint64, err error) {
	h.machine.world.set(func() { n = h.machine.errors })
	return n, nil
}

func (h *fakeHost) WaitGone(ctx context.Context, serial string) error {
	return h.until(ctx, "host.WaitGone", func() bool { return h.attached(serial) == nil })
}

func (h *fakeHost) WaitFree(ctx context.Context, dev mount.Device) error {
	err := h.until(ctx, "host.WaitFree", func() bool { return h.machine.on(dev) == nil })
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: the kernel holds a file system on %s", mount.ErrBusy, dev.Path)
	}
	return err
}

func (h *fakeHost) Probe(ctx context.Context, dev mount.Device) (c mount.Contents, err error) {
	err = h.do(ctx, "host.Probe", func() error {
		d := h.attached(dev.Serial)
		switch {
		case d == nil:
			return mount.ErrNoDevice
		case h.machine.haunted(d):
			return mount.ErrUnreadable
		case d.foreign != "":
			c = mount.Contents{Found: []string{d.foreign}}
		case d.half:
			c = mount.Contents{Found: []string{"data of an unknown kind"}}
		case d.fstype != "":
			c = mount.Contents{FSType: d.fstype, Found: []string{d.fstype}}
		default:
			c = mount.Contents{Blank: true}
		}
		return nil
	})
	return c, err
}

func (h *fakeHost) Format(ctx context.Context, dev mount.Device, spec mount.FormatSpec) error {
	blank := func() error {
		d := h.attached(dev.Serial)
		switch {
		case d == nil:
			return mount.ErrNoDevice
		case h.machine.haunted(d):
			return mount.ErrUnreadable
		case d.data:
			h.machine.world.violate("%s asked to format %s, which holds data", h.machine.name, d.Name)
			return mount.ErrNotBlank
		case d.Record[volume.KeyFormatted] != "":
			h.machine.world.violate("%s asked to format %s, which the cloud calls formatted", h.machine.name, d.Name)
			return mount.ErrNotBlank
		case d.formats > 0 && d.by != h.bootID:
			h.machine.world.violate("%s asked to format %s, which %s has formatted", h.bootID, d.Name, d.by)
			return mount.ErrNotBlank
		case d.foreign != "", (d.fstype != "" || d.half) && !spec.Begun:
			return mount.ErrNotBlank
		}
		return nil
	}
	if err := h.do(ctx, "host.Format", blank); err != nil {
		return err
	}
	if err := spec.Begin(ctx); err != nil {
		return err
	}
	return h.do(ctx, "host.Format mkfs", func() error {
		if err := blank(); err != nil {
			return err
		}
		d := h.attached(dev.Serial)
		if h.machine.world.dice("half", h.machine.name).IntN(4) == 0 && h.machine.world.fault(h.machine.name, "host.Format half") != noFault {
			d.fstype, d.half = "", true
			h.dead.Store(true)
			return errDead
		}
		d.fstype, d.half = spec.FSType, false
		d.formats++
		d.by, d.content = h.bootID, ""
		h.machine.world.figures["formats"]++
		return nil
	})
}

func (h *fakeHost) Stage(ctx context.Context, dev mount.Device, dir string, spec mount.StageSpec) (string, error) {
	if err := h.awaitThaw(ctx, dir); err != nil {
		return "", err
	}
	err := h.do(ctx, "host.Stage", func() error {
		d := h.attached(dev.Serial)
		if d == nil {
			return mount.ErrNoDevice
		}
		switch {
		case h.machine.haunted(d):
			return mount.ErrUnreadable
		case d.foreign != "" || d.half:
			return mount.ErrWrongFS
		case d.fstype == "":
			return mount.ErrBlank
		case d.fstype != spec.FSType:
			return mount.ErrWrongFS
		}
		for _, m := range h.machine.world.machines {
			if m != h.machine && m.on(deviceOf(d)) != nil && h.takeover != controller.TakeoverAlways {
				h.machine.world.violate("%s mounted %s, which %s has mounted", h.machine.name, d.Name, m.name)
			}
		}
		for _, s := range h.machine.mounts {
			if s.dir == dir && (s.disk != d || s.plugged != d.plugged) {
				return mount.ErrOccupied
			}
		}
		s := h.machine.on(dev)
		if s == nil {
			if dead := h.machine.mounts[d.Serial]; dead != nil { // its device was taken away, or was another disk's
				h.machine.mounts[fmt.Sprintf("%s/%s/%d", d.Serial, dead.disk.ID, dead.plugged)] = dead
			}
			s = &superblock{disk: d, containers: map[string]bool{}, size: d.Size, plugged: d.plugged}
			h.machine.mounts[d.Serial] = s
		}
		if s.down {
			h.machine.world.violate("%s mounted %s, whose file system it has shut down", h.machine.name, d.Name)
		}
		s.dir, s.size = dir, d.Size
		if spec.Checked != nil {
			spec.Checked()
		}
		return nil
	})
	return "/published/" + dir, err
}

func (h *fakeHost) Grow(ctx context.Context, dev mount.Device, dir string) (grown bool, err error) {
	if err := h.awaitThaw(ctx, dir); err != nil {
		return false, err
	}
	err = h.do(ctx, "host.Grow", func() error {
		s := h.machine.on(dev)
		if s == nil || s.dir != dir {
			return mount.ErrNotStaged
		}
		grown = s.size < deviceOf(s.disk).Size
		s.size = deviceOf(s.disk).Size
		return nil
	})
	return grown, err
}

// awaitThaw waits while this life freezes the file system, as a call of mount.Host does that works on it.
func (h *fakeHost) awaitThaw(ctx context.Context, dir string) error {
	for {
		freezing := false
		h.machine.world.set(func() { freezing = h.freezing[dir] })
		if !freezing {
			return nil
		}
		if pause.For(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("another call still works on %s: %w", dir, ctx.Err())
		}
	}
}

func (h *fakeHost) Freeze(ctx context.Context, dev mount.Device, dir string, limit time.Duration) (thaw func() error, err error) {
	if err := h.awaitThaw(ctx, dir); err != nil {
		return nil, err
	}
	w := h.machine.world
	w.set(func() { h.freezing[dir] = true })
	var s *superblock
	end := func() (held bool) {
		if h.dead.Load() {
			return false
		}
		if held = s != nil && s.frozen && s.freezer == h.life; held {
			s.frozen, s.freezer = false, nil
			h.machine.settle()
		}
		delete(h.freezing, dir)
		return held
	}
	answer := make(chan error, 1)
	go func() { // which the kernel may keep longer than ctx lasts
		err := h.do(ctx, "host.Freeze", func() error {
			on := h.machine.on(dev)
			switch {
			case on == nil || on.dir != dir:
				return mount.ErrNotStaged
			case on.frozen:
				return mount.ErrBusy
			case !h.machine.journal[on.disk.Name].Frozen:
				w.violate("%s froze %s, and its journal does not say so", h.machine.name, on.disk.Name)
			}
			s = on
			s.frozen, s.freezer = true, h.life
			return nil
		})
		w.set(func() {
			if err == nil && ctx.Err() == nil {
				return
			}
			if end() {
				err = mount.ErrFreezing
			}
		})
		answer <- err
	}()
	select {
	case err := <-answer:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", mount.ErrFreezing, ctx.Err())
	}
	watchdog := time.AfterFunc(min(limit, mount.MaxFreeze), func() { w.set(func() { end() }) })
	return func() error {
		watchdog.Stop()
		return h.do(context.Background(), "host.Freeze thaw", func() error {
			if !end() {
				return mount.ErrThawed
			}
			return nil
		})
	}, nil
}

func (h *fakeHost) Thaw(ctx context.Context, dev mount.Device, dir string) (thawed bool, err error) {
	if err := h.awaitThaw(ctx, dir); err != nil {
		return false, err
	}
	err = h.do(ctx, "host.Thaw", func() error {
		s := h.machine.on(dev)
		if s == nil || !s.frozen {
			return nil
		}
		if s.freezer == nil {
			h.machine.world.violate("%s thawed %s, which another program has frozen", h.machine.name, s.disk.Name)
		}
		thawed, s.frozen, s.freezer = true, false, nil
		h.machine.settle()
		return nil
	})
	return thawed, err
}

func (h *fakeHost) Unstage(ctx context.Context, dir string) error {
	if err := h.awaitThaw(ctx, dir); err != nil {
		return err
	}
	return h.do(ctx, "host.Unstage", func() error {
		for _, s := range h.machine.mounts {
			if s.dir == dir && time.Now().Before(s.busy) {
				return mount.ErrBusy
			}
			if s.dir == dir {
				s.dir = ""
			}
		}
		h.machine.settle()
		return nil
	})
}

// takesBack attaches a disk as the device of it that the machine's kernel has still, if so.
func (m *machine) takesBack(d *disk) bool {
	g, was := m.ghosts[d.ID]
	delete(m.ghosts, d.ID)
	if !was || !time.Now().Before(g.until) || !m.world.inPlace && m.world.dice("in place", d.ID).IntN(4) == 0 {
		return false
	}
	m.world.figures["back in place"]++
	d.plugged, d.present = g.plugged, time.Time{}
	return true
}

// plug gives the disk's device a number.
func (w *world) plug(d *disk) {
	if m := w.machines[d.Attachment.Node]; m != nil {
		delete(m.ghosts, d.ID)
	}
	w.plugs++
	d.plugged = w.plugs
}

// on returns the file system that the kernel holds on the device.
func (m *machine) on(dev mount.Device) *superblock {
	for _, s := range m.mounts {
		if s.disk.Serial == dev.Serial && uint32(s.plugged) == dev.Minor {
			return s
		}
	}
	return nil
}

// settle lets the kernel drop the file systems that nothing has mounted.
func (m *machine) settle() {
	maps.DeleteFunc(m.mounts, func(_ string, s *superblock) bool { return !s.held() })
}

func (h *fakeHost) Space(ctx context.Context, dir string, dev mount.Device) (space mount.Space, err error) {
	err = h.do(ctx, "host.Space", func() error {
		s := h.machine.on(dev)
		if s == nil || s.dir != dir {
			return mount.ErrNotStaged
		}
		space = mount.Space{Total: s.size, Used: 1 << 20, Available: s.size - 2<<20, Inodes: 1000, InodesUsed: 10}
		if h.machine.full {
			space.Used, space.Available = space.Available, space.Used
		}
		return nil
	})
	return space, err
}

func (h *fakeHost) IsStaged(ctx context.Context, dir string, dev mount.Device) (up bool, err error) {
	err = h.do(ctx, "host.IsStaged", func() error {
		s := h.machine.on(dev)
		up = s != nil && s.dir == dir
		return nil
	})
	return up, err
}

func (h *fakeHost) Users(ctx context.Context, dev mount.Device, _ ...string) (users mount.Users, err error) {
	err = h.do(ctx, "host.Users", func() error {
		if s := h.machine.on(dev); s != nil {
			for _, id := range slices.Sorted(maps.Keys(s.containers)) {
				users = append(users, mount.User{Container: "of-" + id})
			}
		}
		return nil
	})
	return users, err
}

func (h *fakeHost) Shared(context.Context) (bool, error) {
	h.machine.awaitGoingOn()
	return !h.unseen.Load(), nil
}

func (h *fakeHost) Mounted() (dirs []string, err error) {
	h.machine.world.set(func() {
		for _, s := range h.machine.mounts {
			if s.dir != "" {
				dirs = append(dirs, s.dir)
			}
		}
	})
	return dirs, nil
}

func (h *fakeHost) Examine(ctx context.Context, _ mount.Device, _ string) (found []mount.Finding) {
	_ = h.do(ctx, "host.Examine", func() error { found = h.machine.wrong; return nil })
	return found
}

func (h *fakeHost) Activity(dev mount.Device) (mount.Activity, error) {
	w := h.machine.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := h.machine.on(dev); s != nil {
		return s.activity, nil
	}
	return mount.Activity{}, mount.ErrNoDevice
}

// fakeJournal is on the machine's disk: it outlives the plugin and the boot.
type fakeJournal struct{ *life }

func (j fakeJournal) Load() (loaded node.Loaded, err error) {
	j.machine.world.mu.Lock()
	defer j.machine.world.mu.Unlock()
	for _, e := range j.machine.journal {
		c := *e
		loaded.Entries = append(loaded.Entries, &c)
	}
	loaded.Newer = j.machine.newer
	loaded.Damaged, j.machine.damaged = j.machine.damaged, nil
	return loaded, nil
}

func (j fakeJournal) Put(e *node.Entry) error {
	return j.do(context.Background(), "journal.put", func() error {
		c := *e
		j.machine.journal[e.Name] = &c
		return nil
	})
}

func (j fakeJournal) Remove(name string) error {
	return j.do(context.Background(), "journal.remove", func() error {
		if j.machine.journal[name] != nil {
			j.machine.world.figures["releases"]++
		}
		delete(j.machine.journal, name)
		return nil
	})
}

func (j fakeJournal) Examine(string) (found []providers.Finding) {
	j.machine.world.set(func() {
		for name, why := range j.machine.newer {
			found = append(found, providers.Finding{Severity: providers.Problem, Check: "journal", Code: "journal-newer", Volume: name, Message: why.Error(), Remedy: "install that version"})
		}
	})
	return found
}

func (j fakeJournal) Check() error {
	return j.do(context.Background(), "journal.check", func() error { return nil })
}

// container binds the volume's mount into a container, as the engine does after Mount was answered. The container sees what
// was written to the volume last, and writes.
func (m *machine) container(name, id string) bool {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	for _, s := range m.mounts {
		if s.dir == node.DirOf(name) {
			s.containers[id] = true
			s.disk.data = true
			// Excluded: a disk that was forgotten (reclaim=retain) on one node while another attached it. It is no volume any more
			// and stays mounted there, whatever has its name now.
			if d := m.world.byName(name); d != nil && d != s.disk && s.disk.owned {
				m.world.violate("the path of %s on %s shows disk %s, and the volume is %s", name, m.name, s.disk.ID, d.ID)
			}
			if s.lost && s.live(m) {
				m.world.violate("the path of %s on %s shows its file system of before the disk was elsewhere", name, m.name)
			}
			if is := m.world.written[s.disk.ID]; s.disk.content != is && s.live(m) {
				m.world.violate("the path of %s on %s shows data %q, where %q was written last", name, m.name, s.disk.content, is)
			}
			m.write(s, id)
			return true
		}
	}
	return false
}

// write is what a container does that has the file system. What it writes to a disk that was taken away is not there, and it
// is told so; what it writes to a file system that is frozen is not there yet, and it waits.
func (m *machine) write(s *superblock, id string) {
	if !s.live(m) || s.frozen || time.Now().Before(m.frozen) {
		return
	}
	if s.lost {
		m.world.violate("what %s had in memory of %s from before the disk was elsewhere reached the disk", m.name, s.disk.Name)
	}
	s.disk.content = fmt.Sprintf("%s at %d", id, time.Now().UnixNano())
	m.world.written[s.disk.ID] = s.disk.content
}

// engineTakesMounts takes the plugin's mounts away, as an engine does after a crash, and when it disables the plugin.
func (m *machine) engineTakesMounts() {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	for _, s := range m.mounts {
		s.dir = ""
	}
	m.settle()
}

// containerEnds takes the container's mounts away.
func (m *machine) containerEnds(id string) {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	for _, s := range m.mounts {
		delete(s.containers, id)
	}
	m.settle()
}

// alter changes the disks as no call does.
func (w *world) alter(change func(*disk)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.disks {
		change(d)
	}
}

func (w *world) disk(name string) *disk {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.disks {
		if d.owned && d.Name == name {
			c := *d
			c.Record = maps.Clone(d.Record)
			return &c
		}
	}
	return nil
}

// holder returns the machine that the cloud says holds the volume.
func (w *world) holder(name string) string {
	d := w.disk(name)
	if d == nil {
		return ""
	}
	d.passTime(time.Now())
	return d.Attachment.Node
}

// count returns how often the cloud has been called, by the name of the call without "cloud.", and begins anew.
func (w *world) count() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	count := map[string]int{}
	for call, n := range w.calls {
		if name, ok := strings.CutPrefix(call, "cloud."); ok {
			count[name] = n
		}
	}
	clear(w.calls)
	return count
}

// grows returns how often a file system was to be grown since the last count.
func (w *world) grows() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls["host.Grow"]
}

// sizeIn returns the size of the volume's file system in the machine's kernel.
func (m *machine) sizeIn(name string) int64 {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	for _, s := range m.mounts {
		if s.disk.Name == name {
			return s.size
		}
	}
	return 0
}

// releasing is an entry as a release that was cut short leaves it.
func releasing(e *node.Entry) *node.Entry {
	c := *e
	c.Uses, c.Releasing = nil, true
	return &c
}

// used is a use by Docker.
func used(id string) node.Use { return node.Use{Kind: node.Docker, ID: id} }

// How long things take in packages controller and node.
const (
	catalogTTL      = 10 * time.Second
	firstCheck      = 15 * time.Second
	attachTries     = 3
	holderGrace     = 15 * time.Second
	queryTimeout    = 2 * time.Minute
	changeTimeout   = 10 * time.Minute
	forceTimeout    = 10 * time.Second
	unbackedTimeout = 2 * time.Minute
)
