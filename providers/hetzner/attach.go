package hetzner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/recent"
)

// Attach asks for the volume when it is this volume's turn on the server, whose changes Hetzner takes one at a time.
func (p *Provider) Attach(ctx context.Context, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	protected, known := p.protected.Within(recent.WhileFree, number(id))
	if !known || !p.KnownOurs(id, recent.WhileFree) {
		v, err := p.getOurs(ctx, id)
		if err != nil {
			return err
		}
		protected = v.Protection.Delete
	}
	node, err := p.Node(ctx)
	if err != nil {
		return err
	}
	if !protected {
		// A volume that is busy is protected the next time.
		if err := p.protect(ctx, id, true); err != nil && !errors.Is(err, providers.ErrBusy) {
			return err
		}
	}
	return p.inLine(ctx, node.ID, func(ctx context.Context) error { return p.attach(ctx, id, node) })
}

// getOurs is GetOurs in Hetzner's words.
func (p *Provider) getOurs(ctx context.Context, id string) (*volume, error) {
	d, err := p.GetOurs(ctx, id)
	return d.Native, err
}

// errNothing says that a server need not be changed.
var errNothing = errors.New("nothing has been changed")

// errStale says that a read shows what may have been so before the last change.
var errStale = fmt.Errorf("%w: Hetzner Cloud may show what has changed since", providers.ErrBusy)

// inLine makes a change of a server when it is its turn, and again while the server is locked. A volume that is locked itself, or
// shown as it was, does not keep the others waiting: that is told to its own caller.
func (p *Provider) inLine(ctx context.Context, server string, change func(context.Context) error) error {
	var busy error
	err := p.servers.Do(ctx, server, func(ctx context.Context) error {
		err := change(ctx)
		if busy = nil; (errors.Is(err, errVolumeLocked) || errors.Is(err, errStale)) && !errors.Is(err, errServerLocked) {
			busy, err = err, errNothing
		}
		return err
	})
	if errors.Is(err, errNothing) {
		return busy
	}
	return err
}

func (p *Provider) attach(ctx context.Context, id string, node providers.Node) error {
	request := fmt.Sprintf("the request to attach volume %s to server %s", id, node.ID)
	a, err := p.api.attach(ctx, number(id), number(node.ID))
	if err == nil {
		if a.ID == 0 {
			return p.notItsOwn(ctx, request)
		}
		p.begin(id, move{action: a.ID, server: number(node.ID)})
		return nil
	}
	err = p.explain(ctx, request, err)
	if !isRefusal(err) {
		p.holders.Took(id, node.ID) // perhaps: there was no answer
	}
	var said *refusal
	switch {
	case !errors.As(err, &said), errors.Is(err, errServerLocked):
		return err
	case errors.Is(err, errLimit):
		return fmt.Errorf("%w: %s: Hetzner Cloud attaches up to 16 volumes to a server: run the service on another node", providers.ErrAttachLimit, said.said)
	case errors.Is(err, providers.ErrNotFound):
		if _, err := p.getOurs(ctx, id); err != nil {
			return err
		}
		return fmt.Errorf("%s: the volume is there, so this server is not: take a token of the project that server %s is in", said.said, node.ID)
	case errors.Is(err, providers.ErrInvalid):
		if v, look := p.getOurs(ctx, id); look == nil && v.Location.Name != node.Zone {
			return fmt.Errorf("%w: volume %s is in location %s and server %s in %s, where it cannot be attached: run the service in location %s (%s)",
				providers.ErrInvalid, id, v.Location.Name, node.ID, node.Zone, v.Location.Name, said.said)
		}
	case errors.Is(err, providers.ErrBusy) && !errors.Is(err, errVolumeLocked):
		return err
	}
	// The reference does not say how a volume is refused that is attached: whatever it was, its holder may be the reason.
	return p.whyNotAttached(ctx, id, node.ID, err)
}

// whyNotAttached finds out what it means for this node that a volume is attached, or that something is being done with it.
func (p *Provider) whyNotAttached(ctx context.Context, id, node string, refusal error) error {
	running, err := p.running(ctx, id)
	if err != nil {
		return err
	}
	if len(running) > 0 { // there is no more than one
		a := &running[0]
		server := serverOf(a)
		switch {
		case a.Command != "attach_volume" && server == number(node):
			return fmt.Errorf("%w: volume %s is still being detached from it", errServerLocked, id)
		case a.Command != "attach_volume", server == 0:
			return fmt.Errorf("%w (%s): %w", errVolumeLocked, p.client.Clean(a.Command), refusal)
		case server != number(node):
			return &providers.HeldError{Volume: id, Node: text(server)}
		}
		p.begin(id, move{action: a.ID, server: server}) // on its way here
		return errNothing
	}
	v, err := p.getOurs(ctx, id)
	switch {
	case err != nil:
		return err
	case v.Server == nil && !errors.Is(refusal, errAttached) && !errors.Is(refusal, errVolumeLocked):
		return refusal
	case v.Server == nil: // by now
		return fmt.Errorf("%w: %w", providers.ErrBusy, refusal)
	case *v.Server != number(node):
		return &providers.HeldError{Volume: id, Node: text(*v.Server)}
	}
	return errNothing
}

// running are the actions of a volume that are under way.
func (p *Provider) running(ctx context.Context, id string) ([]schema.Action, error) {
	request := "the question what is being done with volume " + id
	answer, err := p.api.running(ctx, number(id))
	switch {
	case err != nil:
		return nil, p.explain(ctx, request, err)
	case answer.Meta.Pagination == nil:
		return nil, p.notItsOwn(ctx, request)
	}
	return answer.Actions, nil
}

// Detach asks for the volume to be detached from that server.
//
// Hetzner's request does not name the server: it is of whichever has the volume when it is carried out. So the holder is read
// right before, each time, and the request is never repeated after an answer that was lost. What remains is that, between the
// read and the request, the volume is detached by somebody else, to the end, and taken by another server: both take seconds, in
// which Hetzner refuses this request, so it would have to be held up for so long on its way. It cannot be undone then, and is
// told as an error. Force is the same: Hetzner asks no guest.
func (p *Provider) Detach(ctx context.Context, id, node string, _ bool) error {
	if !isID.MatchString(node) || !isID.MatchString(id) {
		return ctx.Err() // such a node holds nothing
	}
	for retry := (pace.Backoff{Most: 500 * time.Millisecond}); ; {
		err := p.inLine(ctx, node, func(ctx context.Context) error { return p.detach(ctx, id, node) })
		if !errors.Is(err, errStale) {
			return err
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w", err, over)
		}
	}
}

func (p *Provider) detach(ctx context.Context, id, node string) error {
	held, err := p.heldBy(ctx, id, node)
	switch {
	case err != nil:
		return err
	case held == providers.Attaching:
		return fmt.Errorf("%w: volume %s is still being attached to it", errServerLocked, id)
	case held != providers.Attached:
		return errNothing
	}
	request := fmt.Sprintf("the request to detach volume %s from server %s", id, node)
	a, err := p.api.detach(ctx, number(id))
	if err == nil {
		switch server := serverOf(a); {
		case a.ID == 0:
			return p.notItsOwn(ctx, request)
		case server != 0 && server != number(node):
			return fmt.Errorf("volume %s has been detached from server %d, which must have taken it from server %s in the moment of the request to detach it there: stop what uses it on server %d", id, server, node, server)
		}
		p.begin(id, move{action: a.ID, server: number(node), leaves: true})
		return nil
	}
	err = p.explain(ctx, request, err)
	switch {
	case errors.Is(err, errVolumeLocked):
		return p.whyNotDetached(ctx, id, node, err)
	case !isRefusal(err), errors.Is(err, providers.ErrBusy):
		return err
	}
	// The reference does not say how a volume is refused that is not attached.
	if held, look := p.heldBy(ctx, id, node); look == nil && held != providers.Attached {
		return errNothing
	}
	return err
}

// heldBy tells how the server holds the volume, if it is this cluster's. That it does not is believed only if the read cannot be
// of a time before the server got it. Errors: errStale.
func (p *Provider) heldBy(ctx context.Context, id, node string) (providers.AttachState, error) {
	asked, held := time.Now(), providers.Attachment{}
	v, err := p.getOurs(ctx, id)
	if _, known := p.moving(number(id)); err == nil && v.Server == nil && !known {
		v, err = p.arriving(ctx, id, node)
	}
	if err == nil {
		_, held, err = p.attachment(ctx, v, true)
	}
	switch {
	case err != nil && !errors.Is(err, providers.ErrNotFound):
		return "", err
	case held.Node != node && !p.holders.Denies(id, node, asked):
		return "", fmt.Errorf("%w: volume %s was just attached to server %s", errStale, id, node)
	case held.Node != node:
		return providers.Detached, nil
	}
	if held.State == providers.AttachFailed { // nothing is left of it
		p.holders.Left(id)
		if begun, is := p.moving(v.ID); is {
			p.moves.CompareAndDelete(v.ID, begun)
		}
	}
	return held.State, nil
}

// arriving takes note of an attach to the server that is under way and was asked for by another process, such as this one's
// predecessor: the volume may show it only when it has ended. It returns the volume as it is afterwards.
func (p *Provider) arriving(ctx context.Context, id, node string) (*volume, error) {
	running, err := p.running(ctx, id)
	if err != nil {
		return nil, err
	}
	for i := range running {
		if a := &running[i]; a.Command == "attach_volume" && serverOf(a) == number(node) {
			p.begin(id, move{action: a.ID, server: number(node)})
		}
	}
	return p.getOurs(ctx, id)
}

// whyNotDetached finds out whether what is being done with the volume is the detach that was asked for. Otherwise that locks its
// server too.
func (p *Provider) whyNotDetached(ctx context.Context, id, node string, refusal error) error {
	running, err := p.running(ctx, id)
	if err != nil {
		return err
	}
	for i := range running {
		a := &running[i]
		if server := serverOf(a); a.Command == "detach_volume" && (server == 0 || server == number(node)) {
			p.begin(id, move{action: a.ID, server: number(node), leaves: true})
			return errNothing
		}
	}
	return fmt.Errorf("%w: %w", errServerLocked, refusal)
}

// move is an attach or a detach that Hetzner has accepted.
type move struct {
	action int64 // its id
	server int64
	leaves bool // a detach
	at     time.Time
}

// begin notes an attach or a detach of a volume.
func (p *Provider) begin(id string, begun move) {
	begun.at = time.Now()
	if begun.leaves {
		p.holders.Left(id)
	} else {
		p.holders.Took(id, text(begun.server))
	}
	p.moves.Store(number(id), begun)
}

// moving returns what was begun with a volume, and has not been seen to be over.
func (p *Provider) moving(id int64) (move, bool) {
	last, _ := p.moves.Load(id)
	begun, is := last.(move)
	return begun, is
}

// leaving is how long a detach that this process has begun is taken to be under way without asking.
const leaving = 20 * time.Second

// attachment tells who holds the volume, by the volume itself and what this process has begun with it; and returns the volume as
// it was when that was so. It asks what has become of that only if it may, and only if the volume does not show it.
func (p *Provider) attachment(ctx context.Context, v *volume, ask bool) (*volume, providers.Attachment, error) {
	begun, is := p.moving(v.ID)
	shown := int64(0)
	if v.Server != nil {
		shown = *v.Server
	}
	held := providers.Attachment{}
	if shown != 0 {
		held = providers.Attachment{Node: text(shown), State: providers.Attached}
	}
	var meanwhile providers.AttachState
	switch {
	case !is, !begun.leaves && shown == begun.server:
		return v, held, nil
	case begun.leaves && shown == begun.server:
		meanwhile = providers.Detaching
	case !begun.leaves && shown == 0:
		meanwhile = providers.Attaching
	default: // it is over
		p.moves.CompareAndDelete(v.ID, begun)
		return v, held, nil
	}
	underway := providers.Attachment{Node: text(begun.server), State: meanwhile}
	if !ask || begun.leaves && time.Since(begun.at) < leaving {
		return v, underway, nil
	}
	a, err := p.action(ctx, begun.action)
	switch {
	case err != nil:
		return nil, providers.Attachment{}, err
	case a.Status == actionRunning:
		return v, underway, nil
	case a.Status == actionError && !begun.leaves:
		return v, providers.Attachment{Node: underway.Node, State: providers.AttachFailed, Problem: p.failed("attach it", a).Error()}, nil
	}
	// The volume was read before the end.
	if !begun.leaves {
		p.holders.Took(text(v.ID), text(begun.server))
	}
	p.moves.CompareAndDelete(v.ID, begun)
	now, err := p.get(ctx, text(v.ID))
	if err != nil {
		return nil, providers.Attachment{}, err
	}
	return p.attachment(ctx, now, false)
}

// serverOf is the server that an action is about, 0 if it does not tell.
func serverOf(a *schema.Action) int64 {
	for _, r := range a.Resources {
		if r.Type == "server" {
			return r.ID
		}
	}
	return 0
}
