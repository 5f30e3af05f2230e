package managed

import (
	"context"
	"errors"
	"fmt"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// PowerOff implements providers.Fencer. It sends one request, also if its answer is lost: a second one could hit a node that has been
// started since. So a caller that gets an error asks for the node's state before it calls again.
func (p *Provider[V]) PowerOff(ctx context.Context, node string) error {
	return p.power(ctx, node, p.cloud.PowerOff, func(s NodeStatus, busy bool) bool {
		return s.Stopping || s.Life == providers.Stopped && !busy // what keeps a stopped node busy may be its start
	})
}

// PowerOn implements providers.Fencer. Like PowerOff it sends one request.
func (p *Provider[V]) PowerOn(ctx context.Context, node string) error {
	return p.power(ctx, node, p.cloud.PowerOn, func(s NodeStatus, busy bool) bool {
		return s.Life == providers.Running && !s.Stopping && !busy
	})
}

// power asks for the node's power to be changed. If the cloud refuses, done tells whether the node's status shows that nothing is left
// to do; busy is whether the cloud has refused because another change is under way.
func (p *Provider[V]) power(ctx context.Context, node string, ask func(context.Context, string) error, done func(s NodeStatus, busy bool) bool) error {
	c := &p.cloud
	if !c.IsNode(node) {
		return errors.Join(ctx.Err(), sanitize.Error(fmt.Sprintf("%q is no id of a %s of %s", sanitize.Clip(node), c.Machine, c.Name), providers.ErrNotFound))
	}
	self, err := c.Self(ctx)
	switch {
	case err != nil:
		return err
	case self.ID == node:
		return fmt.Errorf("%w: %s %s is this node itself, which powers only others off and on", providers.ErrInvalid, c.Machine, node)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	refusal := ask(ctx, node)
	switch {
	case refusal == nil, p.isNoAnswer(ctx, refusal), isCertain(refusal), errors.Is(refusal, providers.ErrCredentials):
		return refusal
	case errors.Is(refusal, providers.ErrDenied):
		return p.fenceDenied(refusal)
	case errors.Is(refusal, providers.ErrNotFound):
		return p.notThere(ctx, node)
	}
	status, err := c.Status(ctx, node)
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return p.notThere(ctx, node)
	case err != nil:
		return fmt.Errorf("%w; and the %s's state is not known: %w", refusal, c.Machine, err)
	case status.Life == providers.Gone:
		return sanitize.Error(fmt.Sprintf("%s says that %s %s is %s", c.Name, c.Machine, node, status.Word), providers.ErrNotFound)
	case done(status, errors.Is(refusal, providers.ErrBusy)):
		return nil
	case errors.Is(refusal, ErrPowered): // the status may be older
		return fmt.Errorf("%w: %w, and its status %s", providers.ErrBusy, refusal, status.Word)
	}
	return fmt.Errorf("%w: the %s is %s", refusal, c.Machine, status.Word)
}

// notThere explains that the cloud knows no such node: to credentials that do not see it every node is missing.
func (p *Provider[V]) notThere(ctx context.Context, node string) error {
	state, err := p.nodeState(ctx, node)
	switch {
	case err != nil:
		return err
	case state.Life == providers.Gone:
		return sanitize.Error(state.Evidence, providers.ErrNotFound)
	case p.cloud.Stale: // what it does not know it may show a little later
		return fmt.Errorf("%w: %s", providers.ErrBusy, state.Evidence)
	}
	return fmt.Errorf("%s cannot power off or on what it does not know: %s", p.cloud.Name, state.Evidence)
}

// fenceDenied adds to a refusal what is missing, and where that is described.
func (p *Provider[V]) fenceDenied(refusal error) error {
	if p.cloud.FenceRight == "" {
		return refusal
	}
	return sanitize.Error(fmt.Sprintf("%v: to power a %s off and on, blockvol needs %s: see %s", refusal, p.cloud.Machine, p.cloud.FenceRight, p.cloud.Manual), refusal)
}

// ExamineFence implements providers.Fencer.
func (p *Provider[V]) ExamineFence(ctx context.Context) providers.Finding {
	const check = "fence"
	c := &p.cloud
	var tried string
	var off, on error
	if c.TryFence != nil {
		tried, off, on = c.TryFence(ctx)
	}
	switch {
	case off != nil:
		return p.judge(check, p.fenceRefused(off))
	case on != nil:
		f := p.judge(check, p.fenceRefused(on))
		if errors.Is(on, providers.ErrDenied) {
			f.Severity = providers.Warning
			f.Message += fmt.Sprintf(": a %s that is powered off stays off", c.Machine)
		}
		return f
	case tried == "":
		return providers.Passed(check, fmt.Sprintf("%s does not tell whether the credentials may power a %s off and on, and it cannot be tried without doing it: they need %s, see %s", c.Name, c.Machine, c.FenceRight, c.Manual))
	}
	return providers.Passed(check, tried)
}

func (p *Provider[V]) fenceRefused(err error) error {
	if errors.Is(err, providers.ErrDenied) {
		return p.fenceDenied(err)
	}
	return err
}
