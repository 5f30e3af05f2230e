package managed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/recent"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Errors of Cloud.Attach, Cloud.Detach, Cloud.PowerOff and Cloud.PowerOn. After any other refusal, the volume is read: its holder may be the reason.
var (
	// ErrVolumeBusy is providers.ErrBusy because of the volume and not of the node: other changes of the node need not wait.
	ErrVolumeBusy = fmt.Errorf("%w: another change of the volume is under way", providers.ErrBusy)
	// ErrPowered is for a refusal to power a node off or on because it is so, or has just been.
	ErrPowered = errors.New("it is so already")
	// ErrNotAttached says that the node does not hold the volume.
	ErrNotAttached = errors.New("the volume is not attached there")
	// errOld is for an answer that may be older than the last attach or detach of the volume.
	errOld = fmt.Errorf("%w: the cloud may not show yet what has just changed", providers.ErrBusy)
)

// Certain marks an error whose reason the Cloud has found out: the caller gets it as it is, and no question is asked for it.
func Certain(err error) error {
	if err == nil {
		return nil
	}
	return &certain{err}
}

type certain struct{ error }

func (c *certain) Unwrap() error { return c.error }

func isCertain(err error) bool {
	var c *certain
	return errors.As(err, &c)
}

// Attach asks for the volume to be attached to the node.
func (p *Provider[V]) Attach(ctx context.Context, id, node string) error {
	if !p.cloud.IsNode(node) {
		return errors.Join(ctx.Err(), fmt.Errorf("%w: %q is no id of a %s of %s", providers.ErrInvalid, sanitize.Clip(node), p.cloud.Machine, p.cloud.Name))
	}
	if err := p.EnsureOurs(ctx, id, recent.WhileFree); err != nil {
		return err
	}
	if p.cloud.BeforeAttach != nil {
		if err := p.cloud.BeforeAttach(ctx, id); err != nil {
			return err
		}
	}
	return p.inTurn(ctx, node, func(ctx context.Context) error {
		operation, err := p.cloud.Attach(ctx, id, node)
		switch {
		case err == nil:
			p.Begin(id, Operation{ID: operation, Node: node, Attach: true})
			return nil
		case p.isNoAnswer(ctx, err):
			p.holders.took(id, node) // it may have been accepted
			return err
		case errors.Is(err, providers.ErrBusy) && p.underWay(id, node, true):
			return nil // busy with this attach
		case isCertain(err), errors.Is(err, providers.ErrAttachLimit), errors.Is(err, providers.ErrBusy) && !errors.Is(err, ErrVolumeBusy):
			return err
		}
		return p.attachRefused(ctx, id, node, err)
	})
}

// underWay reports whether this process has asked for this attach or detach so recently that it is still running.
func (p *Provider[V]) underWay(id, node string, attach bool) bool {
	o, known := p.LastOperation(id)
	patience := p.cloud.AttachTime
	if !attach {
		patience = p.cloud.DetachTime
	}
	return known && p.cloud.OperationState != nil && o.Attach == attach && o.Node == node && o.problem == "" && (attach || !o.over) && time.Since(o.at) < patience
}

func (p *Provider[V]) isNoAnswer(ctx context.Context, err error) bool {
	return errors.Is(err, providers.ErrUnavailable) || ctx.Err() != nil
}

// attachRefused finds out why an attach was refused. It returns nil if the volume is attached or being attached to the node.
func (p *Provider[V]) attachRefused(ctx context.Context, id, node string, refusal error) error {
	if done, err := p.runningForAttach(ctx, id, node, refusal); done {
		return err
	}
	d, err := p.GetOurs(ctx, id)
	if err == nil {
		d, err = p.settle(ctx, d, askLater)
	}
	if err != nil {
		return err
	}
	if p.cloud.Explain != nil {
		if why := p.cloud.Explain(ctx, d, node, refusal); why != nil {
			return why
		}
	}
	if last, is := p.LastOperation(id); is && !last.Attach && !last.taken && d.HeldBy(node) && last.Node == node && time.Since(last.at) < p.cloud.DetachTime {
		return fmt.Errorf("%w: volume %s may still be being detached from %s %s", providers.ErrBusy, id, p.cloud.Machine, node)
	}
	why := p.Refused(d, node, refusal)
	switch {
	case why == nil:
		p.holders.took(id, node)
		return nil
	case errors.Is(refusal, ErrAttached), errors.Is(refusal, providers.ErrBusy), errors.Is(why, providers.ErrHeld):
		return why
	case errors.Is(refusal, providers.ErrNotFound):
		return fmt.Errorf("%s knows volume %s, but no %s %s: if this node is meant, %s (%s)",
			p.cloud.Name, id, p.cloud.Machine, node, p.cloud.NodeAdvice, strings.TrimPrefix(refusal.Error(), providers.ErrNotFound.Error()+": "))
	}
	return refusal
}

// Refused is providers.Attachment.Refused. Errors: providers.ErrBusy also if the answer may be older than a detach from the node.
func (p *Provider[V]) Refused(d Disk[V], node string, refusal error) error {
	return p.holders.refused(d.Attachment, d.ID, node, d.Asked, refusal)
}

// runningForAttach asks for the operation of the volume that is under way, if the cloud shows it. done: this explains the refusal.
func (p *Provider[V]) runningForAttach(ctx context.Context, id, node string, refusal error) (done bool, err error) {
	if p.cloud.Running == nil {
		return false, nil
	}
	now, err := p.cloud.Running(ctx, id)
	switch {
	case err != nil:
		return true, err
	case now == nil:
		return false, nil
	case !now.Attach && now.Node == node:
		return true, fmt.Errorf("%w: volume %s is still being detached from %s %s", providers.ErrBusy, id, p.cloud.Machine, node)
	case !now.Attach, now.Node == "":
		return true, fmt.Errorf("%w: %w", ErrVolumeBusy, refusal)
	case now.Node != node:
		return true, &providers.HeldError{Volume: id, Node: now.Node}
	}
	p.Begin(id, *now) // it is being attached to the node
	return true, nil
}

// Detach asks for the volume to be detached from the node.
func (p *Provider[V]) Detach(ctx context.Context, id, node string, force bool) error {
	if !p.cloud.IsID(id) || !p.cloud.IsNode(node) {
		return ctx.Err() // there is no such volume or node
	}
	if !p.cloud.DetachesAnyHolder {
		err := p.EnsureOurs(ctx, id, recent.WhileHeld)
		if errors.Is(err, providers.ErrNotFound) {
			return ctx.Err()
		} else if err != nil {
			return err
		}
		return p.inTurn(ctx, node, func(ctx context.Context) error { return p.detach(ctx, id, node, force) })
	}
	for retry := (pause.Backoff{Most: time.Second}); ; {
		err := p.inTurn(ctx, node, func(ctx context.Context) error { return p.detachHolder(ctx, id, node) })
		if !errors.Is(err, errOld) {
			return err
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w", err, over)
		}
	}
}

// detach makes a request that names the node.
func (p *Provider[V]) detach(ctx context.Context, id, node string, force bool) error {
	operation, err := p.cloud.Detach(ctx, id, node, force)
	switch {
	case err == nil:
		p.Begin(id, Operation{ID: operation, Node: node})
		return nil
	case errors.Is(err, providers.ErrBusy) && p.underWay(id, node, false):
		return nil // busy with this detach
	case isCertain(err), p.isNoAnswer(ctx, err), errors.Is(err, providers.ErrBusy):
		return err
	case errors.Is(err, ErrNotAttached), errors.Is(err, providers.ErrNotFound):
		return p.released(ctx, id, node, err)
	}
	if p.released(ctx, id, node, err) == nil { // whatever the refusal says
		return nil
	}
	return err
}

// released checks a refusal which says that the node does not hold the volume.
func (p *Provider[V]) released(ctx context.Context, id, node string, refusal error) error {
	held, _, err := p.holding(ctx, id, node)
	switch {
	case err != nil:
		return err
	case held == providers.Attaching, held == providers.Attached:
		return fmt.Errorf("%w: volume %s is shown as %s to %s %s all the same: %w", providers.ErrBusy, id, held, p.cloud.Machine, node, refusal)
	}
	return nil
}

// detachHolder makes a request that does not name the node: the cloud detaches the volume from whichever node holds it when the
// request is carried out. So the holder is read right before each request, and none is sent while an accepted one is under way.
func (p *Provider[V]) detachHolder(ctx context.Context, id, node string) error {
	held, err := p.heldBy(ctx, id, node)
	switch {
	case err != nil:
		return err
	case held == providers.Attaching:
		return fmt.Errorf("%w: volume %s is still being attached to it", providers.ErrBusy, id)
	case held != providers.Attached:
		return nil
	}
	operation, err := p.cloud.Detach(ctx, id, node, false)
	switch {
	case err == nil:
		p.Begin(id, Operation{ID: operation, Node: node})
		return nil
	case errors.Is(err, ErrNotAttached), errors.Is(err, providers.ErrNotFound):
		return nil
	case isCertain(err):
		return err
	case p.isNoAnswer(ctx, err):
		if p.cloud.OperationState == nil { // it cannot be asked whether it was accepted
			p.note(id, Operation{Node: node})
		}
		return err
	case errors.Is(err, ErrVolumeBusy) && p.cloud.Running != nil:
		if now, lookErr := p.cloud.Running(ctx, id); lookErr == nil && now != nil && now.Other == "" && !now.Attach && (now.Node == "" || now.Node == node) {
			now.Node = node
			p.Begin(id, *now) // this detach is under way already
			return nil
		}
		return fmt.Errorf("%w: %w", providers.ErrBusy, errors.New(err.Error())) // the node is busy with it, too
	case errors.Is(err, providers.ErrBusy):
		return err
	}
	if held, lookErr := p.heldBy(ctx, id, node); lookErr == nil && held != providers.Attached { // whatever the refusal says
		return nil
	}
	return err
}

// heldBy returns how the node holds the volume, Detached if it does not or if the volume is not this cluster's.
// Errors: errOld if the answer says Detached and may be older than an attach to the node.
func (p *Provider[V]) heldBy(ctx context.Context, id, node string) (providers.AttachState, error) {
	held, asked, err := p.holding(ctx, id, node)
	if err == nil && held == providers.Detached && !p.holders.denies(id, node, asked) {
		return "", fmt.Errorf("%w: volume %s, %s %s", errOld, id, p.cloud.Machine, node)
	}
	return held, err
}

// holding is heldBy without the check for an old answer. asked is when the cloud was asked, or earlier.
func (p *Provider[V]) holding(ctx context.Context, id, node string) (held providers.AttachState, asked time.Time, err error) {
	asked = time.Now()
	d, err := p.GetOurs(ctx, id)
	if _, known := p.LastOperation(id); err == nil && !d.Held() && !known && p.cloud.Running != nil {
		// Another process, such as this one before a restart, may have asked for an attach, which shows only when it has ended.
		var now *Operation
		if now, err = p.cloud.Running(ctx, id); err == nil {
			if now != nil && now.Attach && now.Node == node {
				p.Begin(id, *now)
			}
			d, err = p.GetOurs(ctx, id)
		}
	}
	if err == nil {
		d, err = p.settle(ctx, d, askAtOnce)
	}
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return providers.Detached, asked, nil
	case err != nil:
		return "", asked, err
	case !d.HeldBy(node):
		return providers.Detached, asked, nil
	case !p.holders.confirms(id, node, asked): // it has been detached since
		return providers.Detached, asked, nil
	}
	if d.nothingLeft {
		p.holders.left(id, node)
		p.operations.Delete(id)
	}
	return d.Attachment.State, asked, nil
}

// inTurn makes a change of a node as Cloud.Queue says: after the changes before it, and again while the node is busy. An error that
// is the volume's does not keep other changes of the node waiting.
func (p *Provider[V]) inTurn(ctx context.Context, node string, change func(context.Context) error) error {
	if p.cloud.Queue == Unqueued {
		return change(ctx)
	}
	if p.cloud.Queue == QueuedWhenBusy {
		if err := change(ctx); !errors.Is(err, providers.ErrBusy) || ofVolume(err) {
			return err
		}
	}
	var busy error
	err := p.nodes.Do(ctx, node, func(ctx context.Context) error {
		err := change(ctx)
		if busy = nil; ofVolume(err) {
			busy, err = err, errNothingDone
		}
		return err
	})
	if errors.Is(err, errNothingDone) {
		return busy
	}
	return err
}

// ofVolume reports whether an error is the volume's, and not the node's.
func ofVolume(err error) bool {
	return errors.Is(err, ErrVolumeBusy) || errors.Is(err, errOld) || isCertain(err)
}

// errNothingDone tells the queue that the node has not been changed.
var errNothingDone = errors.New("nothing has been changed")
