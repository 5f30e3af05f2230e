// Package driver is a volume as Docker means it: its disk is created, attached to the node that mounts it, formatted once,
// mounted, released and removed here, and nothing is done to a disk anywhere else.
//
// It joins two halves: controller knows the cloud and no kernel, node knows this machine and no cloud. What is left to this
// package is who uses a volume and for how long it is kept, that one call at a time works on a volume, and that answers come in
// time.
//
// # A disk that was taken from this node
//
// Another node may be given the disk of a volume that is mounted here: TAKEOVER=always took it, this node stood still meanwhile, or a
// person did it in the cloud's console. What containers here have in memory must not reach the disk then, least of all when it comes back
// to this node. So the file system is shut down (mount.Host.Shutdown), and never counts as the volume again. A file system that is shut
// down by mistake is worse than one that goes on for a while, so the rule is:
//
//   - If the kernel has removed the device, the file system is shut down at once. It can reach no disk any more, whatever the cloud says.
//   - Else only if the cloud says that another node holds the disk, by two answers that are at least providers.MaxStale apart, both asked for
//     after this mount: so the second is not older than the attach. That no node holds it counts only if the device cannot be read either.
//   - An answer that is missing, ambiguous or about another disk counts for nothing, nor does any if this node has another id than when it
//     attached the disk. One answer that this node holds the disk ends the doubt.
//
// The cloud is not asked for this from time to time, but when there is a reason: each search for strays (at the start, every few hours, and
// when this node has stood still, by its clocks) tells which disks this node holds, for all volumes at once; errors of the disk and
// the question of a peer for a volume in use raise a doubt about one, at most every 10 minutes; and so does an attach of a disk whose file
// system the kernel holds. While the cloud denies a mounted volume, no further container gets it.
//
// It can be killed at any instruction; the next start continues from the journal, the kernel and the cloud.
//
// The story of an operation reads from top to bottom in the file of its name: create.go, mount.go, unmount.go, remove.go, and
// reconcile.go and strays.go for what nobody told us.
package driver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Config is what a Driver needs. Fields without a default are required.
type Config struct {
	Provider providers.Provider
	Host     node.Host

	StateDir     string // the journal is kept under it, on the host's disk
	PublishedDir string // where Host mounts volumes, as this process sees it

	Takeover      controller.Takeover // default TakeoverStopped
	Peers         controller.Peers    // asks other nodes; nil if they cannot be asked
	Fencing       controller.Fencing  // for controller.TakeoverFence
	DefaultSize   int64               // bytes; default 10 GiB
	DefaultFSType string              // default ext4

	// Probe is the longest use of a volume that counts as Docker's copy-up probe: to see whether there is anything to copy
	// into a volume, Docker mounts it and unmounts it at once, and mounts it again when the container starts. The volume is
	// kept for 5 s then, so that the cloud need not attach it twice. 0: no use does.
	Probe time.Duration

	Restart func() // ends this process, of which the engine starts another: see node.Visible; nil where that cannot be needed

	Journal  node.Journal    // default is the one in StateDir
	Boot     string          // identity of this boot of the machine; default is the kernel's boot_id
	Observer volume.Observer // optional
	Log      logrus.FieldLogger
}

// Driver serves the volumes of one node. Its methods may be called from any number of goroutines.
//
// A method whose context ends before its work does returns an error that says so; work that has begun goes on, and a later
// call for the same volume joins it. What nobody comes back for is released.
//
// Its errors are *volume.Error.
type Driver struct {
	controller *controller.Controller
	node       *node.Node
	log        logrus.FieldLogger
	observer   volume.Observer

	defaultSize   int64
	defaultFSType string
	probe         time.Duration
	started       time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	nodeID atomic.Pointer[string] // of this node, once it is known

	mu      sync.Mutex
	volumes map[string]*handle // those that this node has something of, or that a call is about
	absent  map[string]absence // by name: disks that this node may hold though their devices are not here

	scheduled map[string]*scheduled // by disk: where the schedules of those that this node has stand
}

// How long things may take. They bound waits for events; nothing sleeps for them.
const (
	// idleTTL is how long a volume that was brought up, or failed to, is kept for a caller to come back; Swarm comes
	// back every 5 s.
	idleTTL = 15 * time.Second
	// restartTTL is the same after a restart of the plugin: its callers have their errors, and whoever comes next may be
	// another node.
	restartTTL = time.Second
	// probeGrace is how long a volume is kept after Docker's copy-up probe.
	probeGrace = 5 * time.Second
	// workTimeout is the longest that background work may hold a volume, but for a mkfs or fsck that takes longer.
	workTimeout = time.Hour
	// releaseTimeout is the longest that a release which nobody waits for may hold a volume: what the kernel and the cloud may
	// take for an unmount and a detach fit in.
	releaseTimeout = 15 * time.Minute
	// reconcileEvery is the period of reconciliation.
	reconcileEvery = 30 * time.Second
)

// New reads the journal and starts to reconcile it with the kernel and the cloud in the background. It makes no call to
// the cloud itself. Errors: the state directory cannot be used.
func New(cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = logrus.StandardLogger()
	}
	if cfg.DefaultSize == 0 {
		cfg.DefaultSize = 10 << 30
	}
	if cfg.DefaultFSType == "" {
		cfg.DefaultFSType = "ext4"
	}
	if cfg.Observer == nil {
		cfg.Observer = func(volume.Event) {}
	}
	if cfg.Journal == nil {
		var err error
		if cfg.Journal, err = node.OpenJournal(filepath.Join(cfg.StateDir, "journal")); err != nil {
			return nil, err
		}
	}
	here, volumes, err := node.Open(node.Config{
		Host: cfg.Host, Journal: cfg.Journal, Published: cfg.PublishedDir, Boot: cfg.Boot, Restart: cfg.Restart, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	d := &Driver{
		node: here, log: cfg.Log, observer: cfg.Observer,
		defaultSize: cfg.DefaultSize, defaultFSType: cfg.DefaultFSType, probe: cfg.Probe, started: time.Now(),
		volumes: make(map[string]*handle), absent: make(map[string]absence),
		scheduled: make(map[string]*scheduled),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.controller = controller.New(d.ctx, controller.Config{Provider: cfg.Provider, Takeover: cfg.Takeover, Peers: cfg.Peers, Fencing: cfg.Fencing, Observer: cfg.Observer, Log: cfg.Log})
	for _, v := range volumes {
		d.takeUp(v)
	}
	d.tasks.Go(d.reconcileLoop)
	d.tasks.Go(d.scheduleLoop)
	return d, nil
}

// takeUp continues with a volume that is in the journal.
func (d *Driver) takeUp(v node.Restored) {
	h := newHandle(v.Volume, d.observer)
	d.mu.Lock() // those that were taken up before may be being released
	d.volumes[v.Name] = h
	d.mu.Unlock()
	e := v.Entry()
	if v.SameBoot && e.Releasing {
		d.controller.MayHaveAskedToDetach(e.Volume)
	}
	v.Recognise(d.ctx) // before anybody looks after it
	if len(e.Uses) > 0 {
		return
	}
	ttl := idleTTL
	if e.Ours { // of this boot
		ttl = restartTTL
	}
	d.releaseAfter(h, ttl)
}

// Close ends waits and background work and returns when they have ended, or with ctx. Volumes in use stay mounted: the engine's
// containers go on, and the next start continues. Those whose idle TTL is not over are released, if that does not
// take long.
func (d *Driver) Close(ctx context.Context) error {
	d.releaseIdle(ctx)
	d.cancel()
	done := make(chan struct{})
	go func() { d.tasks.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("work is left unfinished for the next start: %w", ctx.Err())
	}
}

// OtherNodes returns the private addresses of some nodes that hold volumes and are not known yet, as the cloud tells them.
func (d *Driver) OtherNodes(ctx context.Context, known func(node string) bool) (map[string][]netip.Addr, error) {
	here, err := d.thisNode(ctx)
	if err != nil {
		return nil, err
	}
	return d.controller.OtherNodes(ctx, here.ID, known)
}

// stopping is an error for a caller: it says so if the cause is Close.
func (d *Driver) stopping(err error) error {
	if d.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return volume.Stopping(err)
	}
	return err
}

// releaseIdle releases the volumes whose idle TTL is not over.
func (d *Driver) releaseIdle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probeGrace)
	defer cancel()
	var all sync.WaitGroup
	for _, name := range d.held() {
		all.Go(func() {
			d.attempt(name, volume.Detaching, func(h *handle) {
				if e := h.Entry(); e != nil && len(e.Uses) == 0 && !e.Releasing {
					h.keptUntil = time.Time{}
					d.reconcile(ctx, h)
				}
			})
		})
	}
	all.Wait()
}
