package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/volumeattach"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/pace"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Attach is managed.Provider.Attach, again while Nova may be about to agree with Cinder.
func (p *Provider) Attach(ctx context.Context, id, node string) error {
	return untilNovaAgrees(ctx, func() error { return p.Provider.Attach(ctx, id, node) })
}

// attach asks Nova, which has Cinder reserve the volume before it answers. Where the device is, Nova only guesses.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	_, err := call(ctx, p, fmt.Sprintf("to attach volume %s to server %s", id, node), func(ctx context.Context, s *session) (*volumeattach.VolumeAttachment, error) {
		return volumeattach.Create(ctx, s.compute, node, volumeattach.CreateOpts{VolumeID: id}).Extract()
	})
	if refused(err, http.StatusBadRequest, http.StatusNotFound) {
		return "", managed.Certain(p.whyNotAttached(ctx, id, node, err))
	}
	return "", busy(node, err)
}

// errListed says that Nova still lists an attachment that Cinder has ended. Nova does so for a moment after each detach, and for
// good if it died in this moment.
var errListed = errors.New("Cinder calls the volume available, and Nova still lists it as attached to a server") //nolint:staticcheck // a name

// settles is how long Nova may list an attachment that Cinder has ended, before that is called a mistake.
const settles = 15 * time.Second

// untilNovaAgrees repeats a call for as long as Nova may be in that moment.
func untilNovaAgrees(ctx context.Context, call func() error) error {
	begin := time.Now()
	for retry := (pace.Backoff{Most: 2 * time.Second}); ; {
		err := call()
		switch {
		case !errors.Is(err, errListed):
			return err
		case time.Since(begin) >= settles:
			return fmt.Errorf("%w: this has lasted for %s, so it takes an administrator of the cloud to remove Nova's record (nova-manage volume_attachment)", err, settles)
		}
		if over := retry.Wait(ctx); over != nil {
			return fmt.Errorf("%w: %w: %w", providers.ErrBusy, err, over)
		}
	}
}

// whyNotAttached finds out what a refusal means for this server.
func (p *Provider) whyNotAttached(ctx context.Context, id, node string, refusal error) error {
	d, err := p.GetOurs(ctx, id)
	if err == nil {
		d, err = p.settled(ctx, d)
	}
	v, held := d.Native, d.Attachment
	switch {
	case err != nil:
		return err
	case held.State == providers.Detached && refused(refusal, http.StatusNotFound):
		return fmt.Errorf("Nova does not know server %s, as which this node is known: check %s, and that the credentials are of this server's project and region: %w", node, serverSetting, plain(refusal)) //nolint:staticcheck // a name
	case held.State == providers.Detached && says(refusal, "availability_zone"):
		return fmt.Errorf("%w: %w: this cloud attaches volumes within a zone only: run the service in zone %s, or copy the volume by a snapshot", providers.ErrInvalid, refusal, sanitize.Clip(v.AvailabilityZone))
	case v.Multiattach:
		return severalServers(id)
	case held.State == providers.Detached && v.Status == "available" && says(refusal, "already attached"):
		return fmt.Errorf("%w: %w", errListed, plain(refusal))
	case held.State == providers.Detached && v.Status != "available" && broken(v.Volume) != nil:
		return broken(v.Volume)
	case held.Node == "":
		return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, sanitize.Clip(v.Status), refusal)
	}
	return p.Refused(d, node, refusal)
}

// Detach is managed.Provider.Detach, again while the volume is on its way to the server, which Nova lets it finish, and while Nova
// may be about to agree with Cinder.
func (p *Provider) Detach(ctx context.Context, id, node string, force bool) error {
	return untilNovaAgrees(ctx, func() error {
		for retry := (pace.Backoff{Most: 2 * time.Second}); ; {
			err := p.Provider.Detach(ctx, id, node, force)
			if !errors.Is(err, errArriving) {
				return err
			}
			if over := retry.Wait(ctx); over != nil {
				return fmt.Errorf("%w: %w", err, over)
			}
		}
	})
}

// detach asks for the volume to be detached from that server; Nova takes it from no other. Nova has no force for its users: it
// takes a volume from a server that is shut off without its co-operation, and from one that is deleted by itself.
func (p *Provider) detach(ctx context.Context, id, node string, _ bool) (string, error) {
	_, err := call(ctx, p, fmt.Sprintf("to detach volume %s from server %s", id, node), func(ctx context.Context, s *session) (done, error) {
		return done{}, volumeattach.Delete(ctx, s.compute, node, id).ExtractErr()
	})
	if refused(err, http.StatusBadRequest, http.StatusNotFound) {
		return "", managed.Certain(p.whyNotDetached(ctx, id, node, err))
	}
	return "", busy(node, err)
}

// errArriving says that a volume is still on its way to the server.
var errArriving = fmt.Errorf("%w: the volume is still on its way to the server", providers.ErrBusy)

// whyNotDetached finds out whether a refusal means that there is nothing to detach.
func (p *Provider) whyNotDetached(ctx context.Context, id, node string, refusal error) error {
	d, err := p.GetOurs(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return ctx.Err()
	} else if err == nil {
		d, err = p.settled(ctx, d)
	}
	v, held := d.Native, d.Attachment
	switch {
	case err != nil:
		return err
	case refused(refusal, http.StatusBadRequest) && held.State == providers.Detached:
		return p.ensureNotListed(ctx, id, node)
	case held.State == providers.Detached, held.Node != node && held.Node != "", held.State == providers.Detaching, p.HasLeft(d, node):
		return nil
	case held.Node == "" && refused(refusal, http.StatusNotFound): // an old Cinder does not say which has it; Nova says that this one has not
		return nil
	case held.State == providers.Attaching, v.Status == "in-use" && says(refusal, "status must be 'in-use'"): // by now
		return fmt.Errorf("%w: volume %s is %q: %w", errArriving, id, sanitize.Clip(v.Status), refusal)
	case refused(refusal, http.StatusBadRequest), held.Node == "": // it has just arrived, or is being changed
		return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, id, sanitize.Clip(v.Status), refusal)
	case refused(refusal, http.StatusNotFound):
		return fmt.Errorf("Cinder shows volume %s as attached to server %s, and Nova knows nothing of that: it takes an administrator of the cloud to end it (cinder reset-state --attach-status detached): %w", id, node, plain(refusal)) //nolint:staticcheck // a name
	}
	return refusal
}

// ensureNotListed returns an error if Nova lists the volume as attached to the server. Errors: errListed.
func (p *Provider) ensureNotListed(ctx context.Context, id, node string) error {
	_, err := call(ctx, p, fmt.Sprintf("the question whether volume %s is attached to server %s", id, node), func(ctx context.Context, s *session) (*volumeattach.VolumeAttachment, error) {
		return volumeattach.Get(ctx, s.compute, node, id).Extract()
	})
	switch {
	case refused(err, http.StatusNotFound):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: volume %s, server %s", errListed, id, node)
}

// severalServers is the error for a volume of a type that several servers can write to at once. Nova attaches those only to
// callers who ask for that, which blockvol does not.
func severalServers(id string) error {
	return fmt.Errorf("%w: %s is made for several servers, which may all write to it: blockvol keeps volumes with one writer only: choose a volume type without multiattach", providers.ErrInvalid, id)
}

// plain is a refusal without what it usually means.
func plain(err error) error {
	var r *refusal
	if errors.As(err, &r) {
		return fmt.Errorf("%s says: %s", cloudName, sanitize.Clip(r.message))
	}
	return err
}

// busy tells by what Nova calls a conflict whether a server is busy with a task; what else is called so does not pass by itself.
func busy(node string, err error) error {
	switch {
	case !refused(err, http.StatusConflict):
		return err
	case says(err, "locked"):
		return managed.Certain(fmt.Errorf("server %s is locked: unlock it (openstack server unlock): %w", node, err))
	case says(err, "vm_state"):
		return managed.Certain(fmt.Errorf("server %s can give or take no volumes as it is: bring it into order, or stop or delete it: %w", node, err))
	}
	return fmt.Errorf("%w: server %s is busy with something else: %w", providers.ErrBusy, node, err)
}
