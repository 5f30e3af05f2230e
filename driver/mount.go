package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Mount brings the volume up on this node, if it is not, notes that the mount ID uses it, and returns its path. The path
// shows the volume's file system, verified, or an error is returned; never an empty directory. The ID is in the journal
// before the answer.
func (d *Driver) Mount(ctx context.Context, name, id string) (path string, err error) {
	return d.do(ctx, name, job{
		op: volume.Mount, phase: volume.Reconciling, keep: idleTTL, joins: true,
		work: d.bringUp,
		commit: func(ctx context.Context, h *handle) (string, func(), error) {
			undo, err := d.use(ctx, h, node.Use{Kind: node.Docker, ID: id})
			return h.Mountpoint(), undo, err
		},
	})
}

// bringUp attaches the volume's disk to this node, formats it if it may, and mounts it.
func (d *Driver) bringUp(ctx context.Context, h *handle) (err error) {
	if h.IsStaged(ctx) {
		if h.isDenied() {
			return errDenied()
		}
		return nil
	}
	defer func() { h.attemptEnded(err) }()
	here, err := d.thisNode(ctx)
	if err != nil {
		return err
	}
	vol, attaching, err := d.controller.Attach(ctx, d.claim(h, here))
	if err != nil {
		return err
	}
	if err := d.awaitDevice(ctx, h, vol, here, attaching); err != nil {
		return err
	}
	if err := h.Stage(ctx, vol, cloudFor{d.controller, here}, h); err != nil {
		return err
	}
	d.controller.Mounted(vol, here)
	d.tasks.Go(func() { h.Measure(d.ctx) })
	h.Log().WithFields(logrus.Fields{"device": h.Device().Path, "id": vol.ID}).WithFields(h.durations()).Info("Volume mounted")
	return nil
}

// use notes that a container or a command uses the volume, which it must see.
func (d *Driver) use(ctx context.Context, h *handle, use node.Use) (undo func(), err error) {
	if err := d.node.Visible(ctx); err != nil {
		return nil, err
	}
	if use.Kind == node.Docker && h.Entry().HasKind(node.Operator) {
		return nil, volume.Fail(volume.Busy, "an operator's command on this node fills the volume", "wait until it has ended; if it was killed, two minutes longer")
	}
	first := len(h.Entry().Uses) == 0
	undo, err = h.Use(use)
	if err == nil && first {
		h.usedSince = time.Now()
	}
	return undo, err
}

// claim is this node's wish for the volume.
func (d *Driver) claim(h *handle, here providers.Node) controller.Claim {
	return controller.Claim{
		Name: h.Name, Node: here, Progress: h, Wanted: h.isWanted,
		Record: func(ctx context.Context, vol *providers.Volume, ours bool) error {
			return d.record(ctx, h, vol, here, ours)
		},
		CancelAttach: func(ctx context.Context, vol *providers.Volume) error { return d.cancelAttach(ctx, h, vol, here) },
	}
}

// cancelAttach detaches what an attach has left, unless anything on this node uses the disk.
func (d *Driver) cancelAttach(ctx context.Context, h *handle, vol *providers.Volume, here providers.Node) error {
	if e := h.Entry(); e == nil || e.Volume != vol.ID || !e.Ours {
		return d.reportAbsent(vol)
	}
	if err := h.CancelAttach(ctx, vol, h); err != nil {
		return err
	}
	if err := d.controller.CancelAttach(ctx, vol.ID, here); err != nil {
		return fmt.Errorf("%w: the attach, which has failed, could not be cancelled", err)
	}
	return nil
}

var errAttachTimeout = fmt.Errorf("no device has arrived within %s", controller.AttachTimeout)

// awaitDevice waits for the kernel to show the volume's device, while the cloud is asked seldom, to learn of failure.
func (d *Driver) awaitDevice(ctx context.Context, h *handle, vol *providers.Volume, here providers.Node, attaching bool) error {
	h.Step(volume.Step{Phase: volume.WaitingForDevice})
	waiting, cancel := context.WithTimeoutCause(ctx, controller.AttachTimeout, errAttachTimeout)
	defer cancel()
	waiting, fail := context.WithCancelCause(waiting)
	defer fail(nil)
	watched := *vol // its end is not waited for
	d.tasks.Go(func() { fail(d.controller.WatchAttach(waiting, &watched, here)) })

	err := h.WaitDevice(waiting, vol.Serial)
	if err == nil {
		return nil
	}
	cause := context.Cause(waiting)
	timedOut := errors.Is(cause, errAttachTimeout)
	switch {
	case !timedOut && !errors.Is(cause, controller.ErrAttachFailed):
		if cause != nil {
			err = cause
		}
		return fmt.Errorf("%w: the disk's device was not found", err)
	case !attaching:
		return volume.Advise(fmt.Errorf("%w (%w), though the cloud says that the disk is attached", cause, err),
			"see the kernel's log on this node, and whether another machine runs with this node's id")
	case timedOut:
		cause = d.controller.ExplainAttach(ctx, cause, vol, here)
	}
	// An attach that does not end is called off, or the next one meets it again.
	if err := d.cancelAttach(context.WithoutCancel(ctx), h, vol, here); err != nil {
		failed := *volume.At(err, volume.Error{}).(*volume.Error) //nolint:errorlint // At returns no other
		failed.Cause = fmt.Errorf("%w; %w", cause, failed.Cause)
		return &failed
	}
	return volume.Advise(cause, "the attach was cancelled, try again")
}

// cloudFor answers the node's question whether it may format.
type cloudFor struct {
	*controller.Controller
	here providers.Node
}

// AsHolder implements node.Cloud.
func (c cloudFor) AsHolder(ctx context.Context, vol *providers.Volume) (*providers.Volume, error) {
	return c.Controller.AsHolder(ctx, vol, c.here)
}

// Node is the machine that this process runs on.
type Node = providers.Node

// Request is a request to the cloud's API, as a providers.Observer is told of it.
type Request = providers.Request

// Node tells which node this is, as the cloud knows it.
func (d *Driver) Node(ctx context.Context) (Node, error) { return d.thisNode(ctx) }

// Slots are a node's places for disks.
type Slots = providers.Slots

// Slots counts the places for disks of this node, as they were a few seconds ago. Errors: volume.Invalid if the provider does not know.
func (d *Driver) Slots(ctx context.Context) (Slots, error) { return d.controller.Slots(ctx) }

// thisNode tells which node this is.
func (d *Driver) thisNode(ctx context.Context) (providers.Node, error) {
	here, err := d.controller.Node(ctx)
	if err != nil {
		return here, &volume.Error{Code: volume.Unavailable, Cause: fmt.Errorf("%w: this node does not know which it is", err)}
	}
	if d.nodeID.Swap(&here.ID) == nil {
		d.log.WithField("node", here.ID).WithField("zone", here.Zone).Info("The cloud knows this node")
	}
	return here, nil
}
