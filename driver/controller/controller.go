// Package controller is the cloud's half of a volume: it finds, creates, attaches, detaches, takes over and removes disks.
// It touches no kernel. What depends on the node that a disk is for, it asks its caller.
//
// Answers of the cloud may be as old as providers.MaxStale. A provider corrects them by what this process has written, where its
// cloud needs that (package managed); the contract does not promise it, so catalog.go does not rely on it for what this node has
// made and removed. The rest no provider can know: what the process before this one has asked for (detach.go), and what other nodes
// have done since the answer (takeover.go for a holder, AsHolder for a format, WatchAttach for an attach). So both keep their own.
package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Config is what a Controller needs.
type Config struct {
	Provider providers.Provider
	Takeover Takeover // default TakeoverStopped
	Peers    Peers    // asks other nodes; nil if they cannot be asked
	Fencing  Fencing
	Observer volume.Observer
	Log      logrus.FieldLogger
}

// Fencing is what TakeoverFence needs besides a Provider that can power off nodes.
type Fencing struct {
	Witnesses Witnesses // nil: no node is powered off
	Reboot    bool      // a node that was powered off is started again
}

// Controller serves the volumes of one cluster. Its methods may be called from any number of goroutines, but only one call
// at a time changes a volume.
type Controller struct {
	cloud    cloud
	catalog  *catalog
	takeover Takeover
	peers    Peers
	life     context.Context // of what goes on in the background
	observer volume.Observer
	log      logrus.FieldLogger

	mu        sync.Mutex
	detaching map[string]asked // by disk

	slots slots

	fencer    providers.Fencer // nil if the cloud cannot power off nodes
	witnesses Witnesses
	reboot    bool
	fences    fences
	begun     time.Time
	resumed   atomic.Bool // what the life before had begun
}

// New makes a Controller. What it does in the background for several callers ends with life.
func New(life context.Context, cfg Config) *Controller {
	if cfg.Takeover == "" {
		cfg.Takeover = TakeoverStopped
	}
	cloud := cloud{cfg.Provider}
	fencer, _ := cfg.Provider.(providers.Fencer)
	return &Controller{
		life: life, fencer: fencer, witnesses: cfg.Fencing.Witnesses, reboot: cfg.Fencing.Reboot,
		begun:  time.Now(),
		fences: fences{asked: make(map[string]fenced), restarts: make(map[string]bool), off: make(map[string]time.Time), claims: make(map[string]time.Time)},
		cloud:  cloud, catalog: newCatalog(life, cloud, cfg.Log), takeover: cfg.Takeover, peers: cfg.Peers, observer: cfg.Observer, log: cfg.Log,
		detaching: make(map[string]asked),
	}
}

// Supports lists the create options that depend on the cloud and that this one has.
func (c *Controller) Supports() []string { return c.cloud.provider.Supports() }

// HasSnapshots tells whether the cloud has snapshots.
func (c *Controller) HasSnapshots() bool {
	_, has := c.cloud.provider.(providers.Snapshotter)
	return has
}

// Node tells which node this is.
func (c *Controller) Node(ctx context.Context) (providers.Node, error) { return c.cloud.node(ctx) }

// Get returns the volume for a caller that must be quick: the answer may be catalogTTL old, and older while the cloud cannot
// be reached. Errors: volume.NotFound only if the cloud said so; volume.Unsure.
func (c *Controller) Get(ctx context.Context, name string) (*providers.Volume, error) {
	return c.catalog.find(ctx, name)
}

// Last returns what the cloud last said of the volume, without asking; nil if nothing is remembered.
func (c *Controller) Last(name string) *providers.Volume { return c.catalog.last(name) }

// List returns all volumes, sorted by name, as Get does.
func (c *Controller) List(ctx context.Context) ([]*providers.Volume, error) {
	return c.catalog.list(ctx)
}

// ListHeld asks the cloud itself which volumes the node holds, and notes the answer for Last. Some that cannot be read do not hide the
// others.
func (c *Controller) ListHeld(ctx context.Context, node string) ([]*providers.Volume, error) {
	asked := c.catalog.now()
	held, err := c.cloud.listHeld(ctx, node)
	if held != nil && err != nil {
		c.log.WithError(err).Error("Some volumes cannot be read: whether this node holds them cannot be told")
		err = nil
	}
	for _, v := range held {
		if !c.catalog.changedLately(v.Name) {
			c.catalog.learn(asked, v.Name, v)
		}
	}
	return held, err
}

// ListWhole asks the cloud itself for all volumes. A list from which some are missing is an error: what is not in it need not be gone.
func (c *Controller) ListWhole(ctx context.Context) ([]*providers.Volume, error) {
	all, err := c.cloud.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: which volumes exist cannot be told", err)
	}
	return all, nil
}

// Find asks the cloud itself for a volume, for work that must know who holds it. An answer that is older than what this node
// has just made or removed is asked for again, and not believed. All else that it says may be as old as providers.MaxStale. The
// answer is the caller's own.
func (c *Controller) Find(ctx context.Context, name string) (*providers.Volume, error) {
	retry := newBackoff()
	for {
		vol, err := c.cloud.find(ctx, name)
		if err != nil && !errors.Is(err, providers.ErrNotFound) {
			return nil, err
		}
		known, older := c.catalog.olderThanOurs(name, vol)
		switch {
		case !older && err == nil:
			return ownCopy(vol), nil
		case !older:
			return nil, err
		case known == nil:
			return nil, fmt.Errorf("%w: this node has just removed it", providers.ErrNotFound)
		}
		if err := waitFor(ctx, retry.Next()); err != nil {
			return nil, fmt.Errorf("%w: the cloud does not show yet what was just made", err)
		}
	}
}

// AsHolder returns the cloud's answer on a volume that is attached to the node, from a time after the attach: another node
// may have formatted the disk and marked it so between the first query and the attach, and an answer that shows this node as
// the holder is not older than that.
func (c *Controller) AsHolder(ctx context.Context, vol *providers.Volume, node providers.Node) (*providers.Volume, error) {
	retry := newBackoff()
	for begun := time.Now(); ; {
		now, err := c.cloud.find(ctx, vol.Name)
		missing := errors.Is(err, providers.ErrNotFound)
		switch {
		case err != nil && !missing:
			return nil, fmt.Errorf("%w: the disk is not formatted before the cloud has said again what it knows of it", err)
		case !missing && now.ID == vol.ID && now.HeldBy(node.ID):
			return ownCopy(now), nil
		case time.Since(begun) >= providers.MaxStale:
			return nil, volume.Fail(volume.WrongDisk, "the cloud does not say that this node holds the disk whose device is here, so it is not formatted", "see who took it in the cloud's records")
		}
		if cause := waitFor(ctx, retry.Next()); cause != nil {
			return nil, fmt.Errorf("%w: the disk is not formatted", cause)
		}
	}
}

// Formatted records with the cloud that the volume has been formatted.
func (c *Controller) Formatted(ctx context.Context, vol *providers.Volume, fstype string) error {
	if err := c.cloud.mark(ctx, vol.ID, volume.KeyFormatted, fstype); err != nil {
		return volume.Advise(fmt.Errorf("%w: that the disk is formatted could not be recorded with the cloud, so it is not mounted yet", err), "try again")
	}
	vol.Record[volume.KeyFormatted] = fstype
	return nil
}

// Mark records something of the volume with the cloud.
func (c *Controller) Mark(ctx context.Context, vol *providers.Volume, key, value string) error {
	if vol.Record[key] == value {
		return nil
	}
	if err := c.cloud.mark(ctx, vol.ID, key, value); err != nil {
		return err
	}
	vol.Record[key] = value
	c.catalog.put(vol)
	return nil
}

// Modify has the cloud change the volume, and returns once the cloud shows it so.
func (c *Controller) Modify(ctx context.Context, name string, change providers.Change) (*providers.Volume, error) {
	vol, err := c.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	if vol, err = c.cloud.modify(ctx, vol.ID, change); err != nil {
		return nil, err
	}
	c.catalog.put(vol)
	return vol, nil
}

// Mounted notes that the node has mounted the volume.
func (c *Controller) Mounted(vol *providers.Volume, node providers.Node) {
	vol.Attachment = providers.Attachment{Node: node.ID, State: providers.Attached}
	c.catalog.put(vol)
}
