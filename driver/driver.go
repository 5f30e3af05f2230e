// Package driver is the life of a volume on one node: it is created, attached, formatted once, mounted, released and
// removed here, and nothing is done to a disk anywhere else.
//
// Truth is the kernel, for what is mounted, and the cloud, for what exists and who holds it. The driver keeps on disk only
// what neither knows: the journal of mount IDs and unfinished releases. It can be killed at any instruction; the next start
// continues from the journal, the kernel and the cloud.
//
// The story of an operation reads from top to bottom in the file of its name: create.go, mount.go, unmount.go, remove.go,
// takeover.go for a disk that another node holds, and reconcile.go for what nobody told us.
package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Host is the Linux side of this node; mount.Host is the real one.
type Host interface {
	Find(ctx context.Context, serial string) (mount.Device, error)
	Wait(ctx context.Context, serial string) (mount.Device, error)
	WaitGone(ctx context.Context, serial string) error
	Probe(ctx context.Context, dev mount.Device) (mount.Contents, error)
	Format(ctx context.Context, dev mount.Device, spec mount.FormatSpec) error
	Stage(ctx context.Context, dev mount.Device, dir string, spec mount.StageSpec) (path string, err error)
	Unstage(ctx context.Context, dir string) error
	Grow(ctx context.Context, dev mount.Device, dir string) (grown bool, err error)
	IsStaged(ctx context.Context, dir string, dev mount.Device) (bool, error)
	WaitFree(ctx context.Context, dev mount.Device) error
	InUse(ctx context.Context, dev mount.Device, targets ...string) (bool, error)
	Activity(dev mount.Device) (string, error)
	Shared(ctx context.Context) (bool, error)
}

// Config is what a Driver needs. Fields without a default are required.
type Config struct {
	Provider providers.Provider
	Host     Host

	StateDir     string // the journal is kept under it, on the host's disk
	PublishedDir string // where Host publishes volumes, as this process sees it

	Takeover      Takeover // default TakeoverStopped
	DefaultSize   int64    // bytes; default 10 GiB
	DefaultFSType string   // default ext4

	// Glance is the longest use of a volume after which its user is expected back: to see whether there is anything to copy
	// into it, Docker mounts a volume and unmounts it at once, and mounts it again when the container starts. It is kept for
	// 5 s then, so that the cloud need not attach it twice. 0: nobody is expected back.
	Glance time.Duration

	Restart func() // ends this process, of which the engine starts another: see mustBeSeen; nil where that cannot be needed

	Boot string // identity of this boot of the machine; default is the kernel's boot_id
	Log  logrus.FieldLogger
}

// Driver serves the volumes of one node. Its methods may be called from any number of goroutines.
//
// A method whose context ends before its work does returns an error that says so; work that has begun goes on, and a later
// call for the same volume joins it. What nobody comes back for is released.
type Driver struct {
	provider  providers.Provider
	snapshots providers.Snapshotter // nil if the provider has none
	host      Host
	journal   journalStore
	catalog   *catalog
	log       logrus.FieldLogger

	published     string
	takeover      Takeover
	defaultSize   int64
	defaultFSType string
	boot          string
	glance        time.Duration
	restart       func()

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	introduce sync.Once // logs who this node is

	mu      sync.Mutex
	volumes map[string]*volume // those that this node has something of, or that a call is about
	absent  map[string]absence // by name: disks that this node may hold though their devices are not here
}

// How long things may take. They bound waits for events; nothing sleeps for them.
const (
	// linger is how long a volume that was brought up, or failed to, is kept for a caller to come back; Swarm comes
	// back every 5 s.
	linger = 15 * time.Second
	// restartLinger is the same after a restart of the plugin: its callers have their errors, and whoever comes next may be
	// another node.
	restartLinger = time.Second
	// comeback is how long a volume is kept after a glance at it.
	comeback = 5 * time.Second
	// staleAfter is how long mount IDs may stand that no container's mount backs. Between the answer to Mount and the
	// container's own mount lie a few seconds.
	staleAfter = 2 * time.Minute
	// attachTimeout is the longest that an attach may take before it is called off (EBS may stay "attaching" for good).
	attachTimeout = 90 * time.Second
	// attachDoubt is when the cloud is asked about an attach whose device has not arrived: once, and again only if it
	// answers that the attach has come to nothing.
	attachDoubt = 15 * time.Second
	// freeTimeout is how long the kernel may hold a file system after its last mount here is gone: the time that a
	// dead container's mounts take to be torn down.
	freeTimeout = 20 * time.Second
	// detachTimeout is the longest that a detach is watched before it is left to the next reconciliation.
	detachTimeout = 2 * time.Minute
	// patience is how long a holder that may be letting go by itself is given before the volume is taken from it.
	patience = 15 * time.Second
	// workTimeout is the longest that background work may hold a volume, but for a mkfs or fsck that takes longer.
	workTimeout = time.Hour
	// releaseTimeout is the longest that a release which nobody waits for may hold a volume: freeTimeout, changeTimeout
	// and detachTimeout fit in.
	releaseTimeout = 15 * time.Minute
	// reconcileEvery is the period of reconciliation.
	reconcileEvery = 30 * time.Second
	// straysEvery is how often the cloud is asked for volumes that this node holds unknowingly, straysDoubted how often if
	// there may be one.
	straysEvery, straysDoubted = 6 * time.Hour, 10 * time.Minute
)

// New reads the journal and starts to reconcile it with the kernel and the cloud in the background. It makes no call to
// the cloud itself. Errors: the state directory cannot be used.
func New(cfg Config) (*Driver, error) {
	if cfg.Boot == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("the kernel does not tell which boot this is: %w", err)
		}
		cfg.Boot = strings.TrimSpace(string(id))
	}
	store, err := openJournal(filepath.Join(cfg.StateDir, "journal"))
	if err != nil {
		return nil, err
	}
	return start(cfg, store)
}

func start(cfg Config, store journalStore) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = logrus.StandardLogger()
	}
	d := &Driver{
		provider: timely{cfg.Provider}, host: cfg.Host, journal: store, log: cfg.Log,
		published: cfg.PublishedDir, takeover: cfg.Takeover, defaultSize: cfg.DefaultSize, defaultFSType: cfg.DefaultFSType,
		boot: cfg.Boot, glance: cfg.Glance, restart: cfg.Restart,
		volumes: make(map[string]*volume), absent: make(map[string]absence),
	}
	d.snapshots, _ = cfg.Provider.(providers.Snapshotter)
	if d.takeover == "" {
		d.takeover = TakeoverStopped
	}
	if d.defaultSize == 0 {
		d.defaultSize = 10 << 30
	}
	if d.defaultFSType == "" {
		d.defaultFSType = "ext4"
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.catalog = newCatalog(d.ctx, d.provider, d.log)
	if err := d.restore(); err != nil {
		d.cancel()
		return nil, err
	}
	d.tasks.Go(d.reconcileLoop)
	return d, nil
}

// Close ends waits and background work and returns when they have ended, or with ctx. Volumes in use stay mounted: the engine's
// containers go on, and the next start continues. Those that are kept for somebody to come back are released, if that does not
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

// releaseIdle releases the volumes that are kept for somebody to come back.
func (d *Driver) releaseIdle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, comeback)
	defer cancel()
	var all sync.WaitGroup
	for _, name := range d.held() {
		all.Go(func() {
			v := d.tryEnter(name, "being released")
			if v == nil {
				return
			}
			if e := v.journaled(); e != nil && len(e.IDs) == 0 && !e.Releasing {
				v.idleUntil = time.Time{}
				d.reconcile(ctx, v)
			}
			d.leave(v)
		})
	}
	all.Wait()
}

// restore takes up what the journal says, and asks the kernel what of it is mounted now.
func (d *Driver) restore() error {
	entries, damaged, err := d.journal.load()
	if err != nil {
		return err
	}
	for _, problem := range damaged {
		d.log.WithError(problem).Error("A journal entry is damaged and was set aside; the volume's use is found out from the kernel instead")
	}
	for _, e := range entries {
		v := d.obtain(e.Name)
		if e.Boot != d.boot {
			// No container outlives the machine, and another node may have had the disk since.
			e.IDs, e.Device, e.Ours, e.Formatting, e.Boot = nil, mount.Device{}, false, false, d.boot
		} else if e.Releasing {
			v.detachedAt = time.Now() // the life before may have asked for that last of all
		}
		v.entry, v.device = e, e.Device
		d.recognise(d.ctx, v, e.Serial) // before anybody looks after it
		if len(e.IDs) == 0 {
			wait := linger
			if e.Ours { // of this boot
				wait = restartLinger
			}
			d.releaseIn(v, wait)
		}
		d.drop(v) // the entry keeps it
	}
	return nil
}

// recognise asks the kernel which device the volume has on this node, and whether it is mounted at its path.
func (d *Driver) recognise(ctx context.Context, v *volume, serial string) {
	dev, err := d.host.Find(ctx, serial)
	if err != nil {
		if !errors.Is(err, mount.ErrNoDevice) {
			d.volumeLog(v).WithError(err).Warn("The device of a volume that this node may hold cannot be identified")
		}
		return
	}
	v.setDevice(dev)
	d.active(v)
	if up, err := d.host.IsStaged(ctx, v.dir, dev); err == nil && up {
		v.setPath(filepath.Join(d.published, v.dir))
	}
}
