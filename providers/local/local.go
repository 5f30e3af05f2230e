// Package local is the machine as its own small cloud: a volume is a sparse image file in a directory of the host, and
// attaching it gives it a loop device. Several engines may share the directory; a volume has one holder among them.
//
// # On disk
//
//	lock                     flock: held while names, sizes or the set of images change
//	disks/<id>.img           the volume's bytes
//	unfinished/<id>.new      the same while it is being made; <id>.del while it is being destroyed
//	disks/<id>.json          its description: name, cluster, size, record, tags, holder; see meta
//	names/<cluster>/<name>   symbolic link to ../../disks/<id>.json, both parts as SHA-256 of the exact words
//	snapshots/…              disks and names again, for snapshots
//	space.json               what can still be promised; see ledger
//	nodes/<node>.json        the boot in which an engine last attached something
//
// An image's own name is the truth about its existence: a volume exists from the rename of <id>.new to <id>.img, which
// comes last when it is made, to the rename of <id>.img to <id>.del, which comes first when it is destroyed. What a
// description says is the truth about everything else; a link counts only if the description that it leads to has
// that name and cluster. Descriptions are replaced whole (written aside, synced, renamed, directory synced). So a
// process may die at any instruction: what it leaves is either done or not there, and the next Create, Snapshot or
// Delete sweeps up images that were half made or half destroyed. An image that ever held data goes in Delete only.
//
// The open image file has the volume's own flock, held while its description or device changes or its bytes are
// copied. The order is image, then lock, and nothing waits while it has the lock. Find and List take neither.
//
// # Attachments
//
// An attachment is a loop device without autoclear, so it outlives the process, and an upgrade or removal of the
// plugin. Holder and boot are recorded before the device is set up. After a reboot the devices are gone: an engine's
// own records of an earlier boot count for nothing, and it clears them when it first asks for its Node or attaches. The
// records of an engine that has not come back stand, and NodeState says Stopped, provided the directory's file system
// is one that only this machine can have mounted. Devices are recognised by the image's name, which is unique for
// ever, in sysfs, and by its inode: paths differ between mount namespaces.
//
// Space is promised, not reserved: what else fills the file system can still take it from the volumes. So a directory
// on a file system of its own is the safest.
//
// Devices show 4096 byte sectors, whatever lies below, so that direct I/O works on every disk and a directory can be
// moved between disks of either kind.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/providers"
)

// Config is what a Provider needs to know. Dir, Node and Cluster have no default.
type Config struct {
	Dir        string // absolute; made if it is not there
	Node       string // this engine's id, unique among all that share Dir, the same after a restart; letters, digits and ._-
	Cluster    string
	Overcommit bool   // promise more than Dir's file system can hold
	Dev        string // default /dev
	Sysfs      string // default /sys
}

// Provider is one engine's view of the directory. It keeps the contract of providers.Provider, Snapshotter and Modifier.
type Provider struct {
	dir, node, cluster string
	overcommit         bool
	dev, sysfs         string

	boot  string
	disks imageDir
	snaps imageDir
	gate  chan struct{} // queues this process's own goroutines for the lock

	taking sync.Mutex
	taken  map[string]bool // loop devices that are being set up

	join   sync.Mutex
	joined bool
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)
)

var nodeID = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// New checks the configuration and makes the directory. It waits for no lock.
func New(c Config) (*Provider, error) {
	if c.Dev == "" {
		c.Dev = "/dev"
	}
	if c.Sysfs == "" {
		c.Sysfs = "/sys"
	}
	switch {
	case !filepath.IsAbs(c.Dir):
		return nil, fmt.Errorf("%w: the directory for volumes must be an absolute path, not %q: set LOCAL_DIR", providers.ErrInvalid, c.Dir)
	case !nodeID.MatchString(c.Node):
		return nil, fmt.Errorf("%w: node id %q: up to 128 letters, digits and ._- are allowed", providers.ErrInvalid, c.Node)
	case c.Cluster == "":
		return nil, fmt.Errorf("%w: the name of the cluster is empty: set CLUSTER", providers.ErrInvalid)
	}
	boot, err := host.BootID()
	if err != nil {
		return nil, err
	}
	p := &Provider{
		dir: c.Dir, node: c.Node, cluster: c.Cluster, overcommit: c.Overcommit, dev: c.Dev, sysfs: c.Sysfs,
		boot:  boot,
		disks: imageDir{dir: c.Dir, prefix: "vol-"},
		snaps: imageDir{dir: filepath.Join(c.Dir, "snapshots"), prefix: "snap-"},
		gate:  make(chan struct{}, 1),
	}
	if err := p.disks.make(); err != nil {
		return nil, fmt.Errorf("cannot make the directory for volumes, see LOCAL_DIR: %w", err)
	}
	return p, nil
}

// FromEnv is New with LOCAL_DIR and LOCAL_OVERCOMMIT from the environment. Without LOCAL_DIR it is /data/volumes, where
// the managed plugin finds the host's directory, or else /var/lib/blockvol/volumes.
func FromEnv(getenv func(string) string, node, cluster string, log logrus.FieldLogger, _ providers.Observer) (providers.Provider, error) {
	c := Config{Dir: getenv("LOCAL_DIR"), Node: node, Cluster: cluster}
	if s := getenv("LOCAL_OVERCOMMIT"); s != "" {
		var err error
		if c.Overcommit, err = strconv.ParseBool(s); err != nil { // no reason to take away the volumes that exist
			log.Warnf("LOCAL_OVERCOMMIT is %q but must be true or false: the default, false, is used", s)
		}
	}
	if c.Dir == "" {
		c.Dir = defaultDir
		if info, err := os.Stat("/data/volumes"); err == nil && info.IsDir() {
			c.Dir = "/data/volumes"
		}
	}
	return providers.AsProvider(New(c))
}

// Supports lists the options of a volume that mean something here.
func (p *Provider) Supports() []string { return []string{"snapshot", "tags"} }

// Buses returns those on which this provider's disks appear.
func (p *Provider) Buses() []string { return []string{"loop"} }

// Node tells this engine's id.
func (p *Provider) Node(ctx context.Context) (providers.Node, error) {
	if err := ctx.Err(); err != nil {
		return providers.Node{}, err
	}
	_ = p.register(ctx) // what keeps it from registering, Attach reports
	return providers.Node{ID: p.node}, nil
}

// visit is what is known of an engine.
type visit struct {
	Boot string    `json:"boot"`
	At   time.Time `json:"at"`
}

func (p *Provider) visitFile(node string) string {
	return filepath.Join(p.dir, "nodes", node+".json")
}

func (p *Provider) lastVisit(node string) (visit, error) {
	var v visit
	file := p.visitFile(node)
	data, err := os.ReadFile(file)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(data, &v); err != nil || v.Boot == "" {
		return v, fmt.Errorf("%w: %s: remove it if node %s is gone", errDamaged, file, node)
	}
	return v, nil
}

// NodeState says Stopped if the node was last seen in an earlier boot of this machine. An engine of this boot counts as
// running even if its plugin does not: its containers may go on writing.
func (p *Provider) NodeState(ctx context.Context, node string) (providers.NodeState, error) {
	if err := ctx.Err(); err != nil {
		return providers.NodeState{}, err
	}
	if node == p.node {
		return providers.NodeState{Life: providers.Running, Evidence: "it is this node"}, nil
	}
	unclear := func(format string, a ...any) (providers.NodeState, error) {
		return providers.NodeState{Life: providers.Unclear, Evidence: fmt.Sprintf(format, a...)}, nil
	}
	if !nodeID.MatchString(node) {
		return unclear("%q is no id of a node", node)
	}
	v, err := p.lastVisit(node)
	if errors.Is(err, fs.ErrNotExist) {
		return unclear("no node %s has used %s", node, p.dir)
	} else if err != nil {
		return unclear("%v", err)
	}
	if v.Boot == p.boot {
		return providers.NodeState{
			Life:     providers.Running,
			Evidence: fmt.Sprintf("node %s has used %s since this machine was started", node, p.dir),
			Remedy:   "start its engine again, or reboot this machine",
		}, nil
	}
	local, err := onThisMachineOnly(p.dir)
	if err != nil {
		return providers.NodeState{}, err
	}
	if !local {
		return unclear("node %s used %s under another boot, which may be of another machine: the file system can be shared", node, p.dir)
	}
	return providers.NodeState{
		Life: providers.Stopped,
		Evidence: fmt.Sprintf("the machine has rebooted since node %s used %s at %s (boot %s then, %s now)",
			node, p.dir, v.At.Format(time.RFC3339), v.Boot, p.boot),
	}, nil
}

// onThisMachineOnly tells whether dir is on a file system that no second kernel can have mounted.
func onThisMachineOnly(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("cannot look at the file system of %s: %w", dir, err)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC,
		zfsMagic, bcachefsMagic:
		return true, nil
	}
	return false, nil
}

const (
	zfsMagic      = 0x2fc12fc1
	bcachefsMagic = 0xca451a4e
)

// register notes, once per boot, that this engine lives, and clears what it held when the machine went down. Without
// that, volumes would count as held by a node that runs, and no other node could have them.
func (p *Provider) register(ctx context.Context) error {
	p.join.Lock()
	defer p.join.Unlock()
	if err := ctx.Err(); err != nil || p.joined {
		return err
	}
	v, err := p.lastVisit(p.node)
	if err == nil && v.Boot == p.boot {
		p.joined = true
		return nil
	}
	ids, err := p.disks.all()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.release(ctx, id); err != nil {
			return err
		}
	}
	data, err := json.Marshal(visit{Boot: p.boot, At: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	file := p.visitFile(p.node)
	if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
		err = p.disks.replace(file, data)
	}
	if err != nil {
		return fmt.Errorf("cannot note that node %s is here: %w", p.node, err)
	}
	p.joined = true
	return nil
}

// release clears the volume's holder if that was this node in an earlier boot.
func (p *Provider) release(ctx context.Context, id string) error {
	stale := func(m *meta) bool {
		return m.Holder != nil && m.Holder.Node == p.node && m.Holder.Boot != p.boot
	}
	if m, err := p.disks.read(id); err != nil || !stale(m) {
		return nil // a damaged or vanished description is reported to whoever asks for that volume
	}
	m, lock, err := p.disks.open(ctx, id)
	if errors.Is(err, providers.ErrNotFound) || errors.Is(err, errDamaged) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	// A container's boot id changes without its kernel's (LXC, systemd-nspawn), and then the device is still there.
	devices, err := p.loopsOf(id)
	if err != nil || !stale(m) || len(devices) > 0 {
		return err
	}
	m.Holder = nil
	return p.disks.write(m)
}

// lock takes the directory's lock, for as long as names, sizes or the set of images change.
func (p *Provider) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case p.gate <- struct{}{}:
	case <-ctx.Done():
		return nil, busy(ctx, "the lock of "+p.dir)
	}
	f, err := os.OpenFile(filepath.Join(p.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = flock(ctx, f)
	}
	if err != nil {
		<-p.gate
		return nil, fmt.Errorf("cannot lock %s: %w", p.dir, err)
	}
	return func() { f.Close(); <-p.gate }, nil
}

// flock takes an exclusive flock on f, or closes it.
func flock(ctx context.Context, f *os.File) error {
	err := poll(ctx, func() (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		f.Close()
	}
	if ctx.Err() != nil && err != nil {
		return busy(ctx, "the lock of "+f.Name())
	}
	return err
}

// busy is the error of a wait that was given up.
func busy(ctx context.Context, what string) error {
	return fmt.Errorf("gave up waiting for %s: %w: %w", what, providers.ErrBusy, ctx.Err())
}

// poll asks until it is done, fails or ctx ends. The kernel has nothing to wait on for what is asked here that ends
// with a context.
func poll(ctx context.Context, done func() (bool, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		timer.Reset(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
