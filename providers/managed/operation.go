package managed

import (
	"context"
	"errors"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Operation is an attach or a detach that the cloud has taken.
type Operation struct {
	ID     string // the cloud's own; empty if it has none
	Node   string
	Attach bool
	Other  string // what it is if it is neither attach nor detach

	at      time.Time // when the cloud had taken it
	taken   bool      // otherwise there was no answer
	over    bool      // an answer shows its effect
	problem string    // why it failed
}

// State is where an operation stands.
type State string

// The states of an operation.
const (
	Running  State = "running"
	Finished State = "finished"
	Failed   State = "failed"
	Unknown  State = "unknown" // any more
)

// Begin notes an attach or a detach of a volume.
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

// LastOperation returns the last attach or detach of a volume that this process knows.
func (p *Provider[V]) LastOperation(id string) (Operation, bool) {
	last, _ := p.operations.Load(id)
	o, is := last.(Operation)
	return o, is
}

// When a cloud is asked what has become of an operation that its answer does not show.
type asking int

const (
	askNever  asking = iota
	askLater         // after Cloud.AttachTime or DetachTime
	askAtOnce        // an attach at once
)

// settle completes the attachment that an answer shows: most clouds do not show what is under way. What has become of that is
// asked only if the answer does not show it; what is returned may be of a later answer.
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
		if !d.Asked.Before(o.at) { // another's since
			p.operations.CompareAndDelete(d.ID, o)
			return d, nil
		}
	}
	patience, shown := p.cloud.DetachTime, d
	switch {
	case !o.Attach && (holder != o.Node || !o.taken || o.over && d.Asked.Sub(o.at) >= Lag):
		return d, nil // it is attached again, or still
	case !o.Attach:
		d.Attachment = providers.Attachment{Node: o.Node, State: providers.Detaching}
	case p.cloud.OperationState == nil, o.over && p.cloud.AttachTime > 0: // it was seen attached, so this is later
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
	case p.cloud.OperationState == nil: // it has failed, if nothing shows it by now
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
	// The answer was of a time before the end.
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

// finished notes that an operation is seen to be over.
func (p *Provider[V]) finished(id string, o Operation) {
	if o.Attach {
		p.holders.took(id, o.Node)
	}
	over := o
	over.over = true
	p.operations.CompareAndSwap(id, o, over)
}

// gone notes that the cloud has no such disk.
func (p *Provider[V]) gone(id string, asked time.Time, err error) {
	if errors.Is(err, providers.ErrNotFound) {
		p.ours.Put(id, asked, false)
		p.operations.Delete(id)
	}
}
