package managed

import (
	"context"
	"errors"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Operation is an attach or a detach that the cloud has accepted.
type Operation struct {
	ID     string // the cloud's own; empty if it has none
	Node   string
	Attach bool
	Other  string // what it is if it is neither attach nor detach

	at      time.Time // when the cloud accepted it
	taken   bool      // the cloud accepted it; false: there was no answer
	over    bool      // an answer has shown its effect
	problem string    // why it failed
}

// State is where an operation stands.
type State string

// The states of an operation.
const (
	Running  State = "running"
	Finished State = "finished"
	Failed   State = "failed"
	Unknown  State = "unknown" // the cloud does not keep it any more
)

// Begin notes an attach or a detach of a volume that the cloud has just accepted.
func (p *Provider[V]) Begin(id string, o Operation) {
	if o.Attach {
		p.holders.took(id, o.Node)
	} else {
		p.holders.left(id, o.Node)
	}
	o.taken = true
	p.note(id, o)
}

func (p *Provider[V]) note(id string, o Operation) {
	if !p.cloud.ShowsOperations {
		o.at = time.Now()
		p.operations.Store(id, o)
	}
}

// LastOperation returns the last attach or detach of a volume known to this process.
func (p *Provider[V]) LastOperation(id string) (Operation, bool) {
	last, _ := p.operations.Load(id)
	o, is := last.(Operation)
	return o, is
}

// asking is when to ask the cloud for the state of an operation whose effect no answer shows yet.
type asking int

const (
	askNever  asking = iota
	askLater         // after Cloud.AttachTime or DetachTime
	askAtOnce        // at once about an attach, otherwise as askLater
)

// settle completes the attachment that an answer shows with the operation that is under way, which most clouds do not show. It asks
// for the operation's state only if the answer does not show its effect, and may return a later answer.
func (p *Provider[V]) settle(ctx context.Context, d Disk[V], ask asking) (Disk[V], error) {
	if p.cloud.Settle != nil {
		return p.cloud.Settle(ctx, d)
	}
	if d.settled {
		d.Attachment, d.nothingLeft = d.shown, false
	}
	d.settled, d.shown = true, d.Attachment
	o, known := p.LastOperation(d.ID)
	holder := d.Attachment.Node
	switch {
	case !known:
		return d, nil
	case o.Attach && holder == o.Node, !o.Attach && holder == "":
		if !o.over && !d.Asked.Before(o.at) {
			p.finished(d.ID, o)
		}
		return d, nil
	case holder != "" && holder != o.Node:
		if !d.Asked.Before(o.at) { // another node got it later
			p.operations.CompareAndDelete(d.ID, o)
			return d, nil
		}
	}
	patience, shown := p.cloud.DetachTime, d
	switch {
	case !o.Attach && (holder != o.Node || !o.taken || o.over && d.Asked.Sub(o.at) >= providers.MaxStale):
		return d, nil // it is attached again, or still
	case !o.Attach:
		d.Attachment = providers.Attachment{Node: o.Node, State: providers.Detaching}
	case p.cloud.OperationState == nil, o.over && p.cloud.AttachTime > 0: // it was seen attached, so it has been detached since
		return d, nil
	case o.problem != "":
		d.Attachment = providers.Attachment{Node: o.Node, State: providers.AttachFailed, Problem: o.problem}
		d.nothingLeft = holder == ""
		return d, nil
	default:
		d.Attachment, patience = providers.Attachment{Node: o.Node, State: providers.Attaching}, p.cloud.AttachTime
	}
	switch {
	case time.Since(o.at) < patience && (ask != askAtOnce || !o.Attach):
		return d, nil
	case p.cloud.OperationState == nil: // it has failed, as no answer shows it by now
		return shown, nil
	case ask == askNever:
		return d, nil
	}
	state, problem, err := p.cloud.OperationState(ctx, d.ID, o.ID)
	switch {
	case err != nil:
		return d, err
	case state == Running:
		return d, nil
	case state == Failed && o.Attach:
		failed := o
		failed.problem = problem
		p.operations.CompareAndSwap(d.ID, o, failed)
		return p.settle(ctx, shown, askNever)
	}
	// The operation has ended after the answer.
	if state == Finished && o.Attach {
		p.holders.took(d.ID, o.Node)
	}
	p.operations.CompareAndDelete(d.ID, o)
	now, err := p.Get(ctx, d.ID)
	if err != nil {
		return d, err
	}
	return p.settle(ctx, now, askNever)
}

// finished notes that an answer has shown the effect of an operation.
func (p *Provider[V]) finished(id string, o Operation) {
	if o.Attach {
		p.holders.took(id, o.Node)
	}
	over := o
	over.over = true
	p.operations.CompareAndSwap(id, o, over)
}

// gone notes that the disk does not exist, if that is the error.
func (p *Provider[V]) gone(id string, asked time.Time, err error) {
	if errors.Is(err, providers.ErrNotFound) {
		p.ours.Put(id, asked, false)
		p.operations.Delete(id)
	}
}
