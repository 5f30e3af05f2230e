// Package node is this machine's half of a volume: it finds the device, formats it once, checks, mounts and grows its file
// system, knows who uses it, and keeps the journal. It calls no cloud. The one thing that it asks back is whether it may
// format, and to record that it has.
//
// Truth is the kernel, for what is mounted. The journal holds only what the kernel does not know: which uses of a volume were
// answered, which releases are unfinished, and what it does not tell: which file systems are frozen.
package node

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/mount"
)

// Host is the Linux side of this machine; mount.Host is the real one.
type Host interface {
	Find(ctx context.Context, serial string) (mount.Device, error)
	Wait(ctx context.Context, serial string) (mount.Device, error)
	WaitGone(ctx context.Context, serial string) error
	Probe(ctx context.Context, dev mount.Device) (mount.Contents, error)
	Format(ctx context.Context, dev mount.Device, spec mount.FormatSpec) error
	Stage(ctx context.Context, dev mount.Device, dir string, spec mount.StageSpec) (path string, err error)
	Unstage(ctx context.Context, dir string) error
	Grow(ctx context.Context, dev mount.Device, dir string) (grown bool, err error)
	Freeze(ctx context.Context, dev mount.Device, dir string, limit time.Duration) (thaw func() error, err error)
	Thaw(ctx context.Context, dev mount.Device, dir string) (thawed bool, err error)
	Space(ctx context.Context, dir string, dev mount.Device) (mount.Space, error)
	IsStaged(ctx context.Context, dir string, dev mount.Device) (bool, error)
	WaitFree(ctx context.Context, dev mount.Device) error
	Users(ctx context.Context, dev mount.Device, targets ...string) (mount.Users, error)
	Activity(dev mount.Device) (mount.Activity, error)
	Shutdown(ctx context.Context, dev mount.Device, dir string) error
	Removed(dev mount.Device) (bool, error)
	Answers(ctx context.Context, dev mount.Device) error
	Errors(dev mount.Device) (uint64, error)
	Shared(ctx context.Context) (bool, error)
	Mounted() ([]string, error)
	Examine(ctx context.Context, dev mount.Device, dir string) []mount.Finding
}

// Config is what a Node needs.
type Config struct {
	Host      Host
	Journal   Journal
	Published string // where Host mounts volumes, as this process sees it
	Boot      string // identity of this boot of the machine; default is the kernel's boot_id
	Restart   func() // ends this process, of which the engine starts another: see Visible; nil where that cannot be needed
	Log       logrus.FieldLogger
}

// Node is this machine.
type Node struct {
	host      Host
	journal   Journal
	published string
	boot      string
	restart   func()
	log       logrus.FieldLogger

	newer map[string]error // by name: volumes whose entries a later version of blockvol has written

	mu    sync.Mutex
	disks map[string]*Volume // by the cloud's id: which volume has the disk on this node, or is about to
}

// Restored is a volume of which this node has something since an earlier life of this process.
type Restored struct {
	*Volume
	SameBoot bool // of the machine
}

// Open reads the journal, thaws what an earlier life left frozen, and returns the volumes of which this node has something. Errors: the state directory cannot be used.
func Open(cfg Config) (*Node, []Restored, error) {
	if cfg.Boot == "" {
		var err error
		if cfg.Boot, err = host.BootID(); err != nil {
			return nil, nil, err
		}
	}
	n := &Node{
		host: cfg.Host, journal: cfg.Journal, published: cfg.Published, boot: cfg.Boot, restart: cfg.Restart, log: cfg.Log,
		disks: make(map[string]*Volume),
	}
	loaded, err := n.journal.Load()
	if err != nil {
		return nil, nil, err
	}
	for _, problem := range loaded.Damaged {
		n.log.WithError(problem).Error("A journal entry is damaged and was set aside; the volume's use is found out from the kernel instead")
	}
	n.newer = loaded.Newer
	for name, why := range n.newer {
		n.log.WithField("volume", name).WithError(why).Error("The volume is left as it is")
	}
	var volumes []Restored
	for _, e := range loaded.Entries {
		sameBoot := e.Boot == n.boot
		if !sameBoot {
			// No container outlives the machine, and another node may have had the disk since.
			e.Uses, e.Device, e.Ours, e.Formatting, e.Frozen, e.Taken, e.Boot = nil, mount.Device{}, false, false, false, false, n.boot
		}
		v := n.Volume(e.Name)
		v.become(e)
		v.device = e.Device
		if len(e.Uses) > 0 {
			v.mountedFrom(e.Device)
		}
		n.disks[e.Volume] = v
		if e.Frozen {
			v.thawLeft(context.Background())
		}
		volumes = append(volumes, Restored{v, sameBoot})
	}
	return n, volumes, nil
}

// Volume returns a volume of which this node has nothing yet.
func (n *Node) Volume(name string) *Volume {
	return &Volume{Name: name, node: n, dir: DirOf(name)}
}

// Serves returns why a volume must be left as it is, nil if it need not.
func (n *Node) Serves(name string) error {
	return n.newer[name]
}

// ErrNotVisible is the error if the engine, and so a container, would see an empty directory in place of what is mounted here.
var ErrNotVisible = errors.New("the engine does not see what the plugin mounts, as can happen when it was killed and has started again")

// Visible makes sure that the engine, and so a container, sees what is mounted here, and not the empty directory below. If
// not, this process ends: the engine starts another, and gives that one a directory which it sees.
func (n *Node) Visible(ctx context.Context) error {
	seen, err := n.host.Shared(ctx)
	if err != nil || seen {
		return err
	}
	n.log.Error("The engine does not see what this plugin mounts: this process ends, for the engine to start another")
	if n.restart != nil {
		n.restart()
	}
	return &volume.Error{Code: volume.Unavailable, Cause: ErrNotVisible, Advice: "the plugin restarts, try again"}
}

// Ready returns why volumes cannot be mounted on this node now, or nil: the engine does not see them, or the journal cannot be written.
func (n *Node) Ready(ctx context.Context) error {
	seen, err := n.host.Shared(ctx)
	if err == nil && !seen {
		err = ErrNotVisible
	}
	return errors.Join(err, n.journal.Check())
}

// HasDevice tells whether the kernel shows a device of that serial.
func (n *Node) HasDevice(ctx context.Context, serial string) bool {
	_, err := n.host.Find(ctx, serial)
	return err == nil
}

// FindDevice returns the kernel's device of that serial. Errors: mount.ErrNoDevice.
func (n *Node) FindDevice(ctx context.Context, serial string) (mount.Device, error) {
	return n.host.Find(ctx, serial)
}

// path is where a volume is mounted.
func (n *Node) path(dir string) string { return filepath.Join(n.published, dir) }
