// Package local is a provider for a single machine. A volume is a sparse image file in a directory of the host, attached as a
// loop device. Several engines may share the directory; they are the nodes, and a volume is attached to one of them at a time.
//
// # On disk
//
//	lock                     flock, held while names, sizes or the set of images change
//	space.json               how much space can still be promised; see ledger
//	disks/<id>.img           the image: the volume's bytes
//	disks/<id>.json          its description; see meta
//	unfinished/<id>.new      an image that is being created
//	unfinished/<id>.del      an image that is being deleted
//	names/<cluster>/<name>   symbolic link to ../../disks/<id>.json; cluster and name are SHA-256 digests
//	snapshots/…              disks, unfinished and names of snapshots
//	nodes/<node>.json        the boot in which an engine last attached something
//
// A volume exists from the rename of <id>.new to <id>.img, the last step of Create, to the rename of <id>.img to <id>.del,
// the first step of Delete. Everything else about it is in its description. A link counts only if the description that it
// leads to has that name and cluster. Descriptions are replaced atomically and durably. So a process may die at any
// instruction: the operation is then either done or not begun, and the next Create, Snapshot or Delete removes what is left
// in unfinished. Only Delete removes an image that has held data.
//
// Each image has its own flock, held while its description or device changes or its bytes are copied. It is taken before the
// directory's lock. Nothing waits while it holds the directory's lock. Find and List take no lock.
//
// # Attachments
//
// An attachment is a loop device without autoclear, so it outlives the process, and an upgrade or removal of the plugin.
// The holder and its boot are recorded before the device is set up. After a reboot the devices are gone: an engine clears its
// own records of earlier boots when it is first asked for its Node, or attaches. The records of an engine that has not come
// back stay, and NodeState reports it as Stopped, provided no other machine can have mounted the directory's file system.
//
// A device is identified by the name of its backing file in sysfs, which is unique for ever, and by the file's inode. Its path
// differs between mount namespaces.
//
// Devices have 4096-byte sectors whatever the disk below has, so that direct I/O works on every disk, and the directory can be
// moved to another disk.
package local

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/providers"
)

// Config configures a Provider. Dir, Node and Cluster have no default.
type Config struct {
	Dir        string // absolute; created if it does not exist
	Node       string // id of this engine, unique among those that share Dir, the same after a restart; letters, digits and ._-
	Cluster    string
	Overcommit bool   // promise more space than Dir's file system has
	Dev        string // default /dev
	Sysfs      string // default /sys
}

// Provider is one engine's view of the directory. It implements providers.Provider, Snapshotter and Modifier.
type Provider struct {
	dir, node, cluster string
	overcommit         bool
	dev, sysfs         string

	boot  string
	disks imageDir
	snaps imageDir
	gate  chan struct{} // the lock among this process's goroutines

	reserving sync.Mutex
	reserved  map[string]bool // loop devices that are being set up

	registering sync.Mutex
	registered  bool
}

var (
	_ providers.Provider    = (*Provider)(nil)
	_ providers.Snapshotter = (*Provider)(nil)
	_ providers.Modifier    = (*Provider)(nil)

	_ providers.OrphanLister = (*Provider)(nil)
	_ providers.TagReader    = (*Provider)(nil)
)

var nodeID = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// New checks the configuration and creates the directory. It waits for no lock.
func New(c Config) (*Provider, error) {
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
		dir: c.Dir, node: c.Node, cluster: c.Cluster, overcommit: c.Overcommit,
		dev: cmp.Or(c.Dev, "/dev"), sysfs: cmp.Or(c.Sysfs, "/sys"),
		boot:     boot,
		disks:    imageDir{dir: c.Dir, prefix: "vol-"},
		snaps:    imageDir{dir: filepath.Join(c.Dir, "snapshots"), prefix: "snap-"},
		gate:     make(chan struct{}, 1),
		reserved: map[string]bool{},
	}
	err = p.disks.make()
	if err == nil && p.hasSnapshots() {
		err = p.snaps.make() // a backup may have left out empty directories
	}
	if err != nil {
		return nil, fmt.Errorf("the directory for volumes cannot be created, check LOCAL_DIR: %w", err)
	}
	return p, nil
}

// FromEnv is New with LOCAL_DIR and LOCAL_OVERCOMMIT from the environment. The default of LOCAL_DIR is /data/volumes if it
// exists, where the managed plugin has the host's directory, and else /var/lib/blockvol/volumes.
func FromEnv(getenv func(string) string, node, cluster string, log logrus.FieldLogger, _ providers.Observer) (providers.Provider, error) {
	c := Config{Dir: getenv("LOCAL_DIR"), Node: node, Cluster: cluster}
	if s := getenv("LOCAL_OVERCOMMIT"); s != "" {
		var err error
		if c.Overcommit, err = strconv.ParseBool(s); err != nil { // existing volumes stay usable
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

// Supports lists the options of a volume beyond name and size.
func (p *Provider) Supports() []string { return []string{"snapshot", "tags"} }

// Buses lists the buses on which this provider's disks appear.
func (p *Provider) Buses() []string { return []string{"loop"} }
