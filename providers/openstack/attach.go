package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/volumeattach"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

var (
	// errListed means that Nova lists an attachment that Cinder has ended. Nova does so for a moment after each detach, and
	// permanently if it died in that moment.
	errListed = errors.New("Cinder calls the volume available, and Nova still lists it as attached to a server") //nolint:staticcheck // a name
	// errAttaching means that a volume cannot be detached because it is still being attached. Nova completes that.
	errAttaching = fmt.Errorf("%w: the volume is still being attached to the server", providers.ErrBusy)
)

const (
	// settles is how long Nova may list an attachment that Cinder has ended.
	settles = 15 * time.Second
	// settlesMostly is how long it usually does.
	settlesMostly = 100 * time.Millisecond
)

// Attach is managed.Provider.Attach, repeated while Nova and Cinder disagree.
func (p *Provider) Attach(ctx context.Context, id, node string) error {
	return untilNovaAgrees(ctx, func() error { return p.Provider.Attach(ctx, id, node) })
}

// Detach is managed.Provider.Detach, repeated while the volume is being attached, and while Nova and Cinder disagree.
func (p *Provider) Detach(ctx context.Context, id, node string, force bool) error {
	return untilNovaAgrees(ctx, func() error { return p.Provider.Detach(ctx, id, node, force) })
}

// untilNovaAgrees repeats a call after errAttaching, and for a limited time after errListed.
func untilNovaAgrees(ctx context.Context, call func() error) error {
	var listed time.Time
	for retry := (pause.Backoff{Most: 2 * time.Second}); ; {
		err := call()
		switch {
		case errors.Is(err, errAttaching):
		case !errors.Is(err, errListed):
			return err
		case listed.IsZero():
			listed = time.Now()
		case time.Since(listed) >= settles:
			return fmt.Errorf("%w: this has lasted for %s, so an administrator of the cloud must remove Nova's record (nova-manage volume_attachment)", err, settles)
		}
		if over := retry.Wait(ctx); over != nil {
			if !errors.Is(err, providers.ErrBusy) {
				err = fmt.Errorf("%w: %w", providers.ErrBusy, err)
			}
			return fmt.Errorf("%w: %w", err, over)
		}
	}
}

// attach asks Nova, which makes Cinder reserve the volume before it answers. A volume is often attached right after it was detached:
// if Nova lists the attachment yet, it is asked once more before Cinder is asked why.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	err := p.requestAttach(ctx, id, node)
	if says(err, alreadyAttached) && pause.For(ctx, pause.Jitter(settlesMostly)) == nil {
		err = p.requestAttach(ctx, id, node)
	}
	if refused(err, http.StatusBadRequest, http.StatusNotFound) {
		return "", managed.Certain(p.whyNotAttached(ctx, id, node, err))
	}
	return "", explainConflict(node, err)
}

// alreadyAttached is what Nova says of a volume that it lists as attached.
const alreadyAttached = "already attached"

func (p *Provider) requestAttach(ctx context.Context, id, node string) error {
	_, err := call(ctx, p, fmt.Sprintf("to attach volume %s to server %s", id, node), func(ctx context.Context, s *session) (*volumeattach.VolumeAttachment, error) {
		return volumeattach.Create(ctx, s.compute, node, volumeattach.CreateOpts{VolumeID: id}).Extract()
	})
	return err
}

// detach asks Nova, which detaches the volume from that server only. Nova has no force for users: it detaches a volume from a server
// that is shut off without its cooperation, and from a deleted one by itself.
func (p *Provider) detach(ctx context.Context, id, node string, _ bool) (string, error) {
	_, err := call(ctx, p, fmt.Sprintf("to detach volume %s from server %s", id, node), func(ctx context.Context, s *session) (done, error) {
		return done{}, volumeattach.Delete(ctx, s.compute, node, id).ExtractErr()
	})
	if refused(err, http.StatusBadRequest, http.StatusNotFound) {
		return "", managed.Certain(p.whyNotDetached(ctx, id, node, err))
	}
	return "", explainConflict(node, err)
}

// whyNotAttached explains a refusal. It returns nil if the server holds the volume.
func (p *Provider) whyNotAttached(ctx context.Context, id, node string, refusal error) error {
	d, err := p.withHolder(ctx, id)
	v, held := d.Native, d.Attachment
	switch {
	case err != nil:
		return err
	case held.State == providers.Detached && refused(refusal, http.StatusNotFound):
		return fmt.Errorf("Nova does not know server %s, which is this node's ID: check %s, and that the credentials are of this server's project and region: %w", node, serverSetting, withoutMeaning(refusal)) //nolint:staticcheck // a name
	case held.State == providers.Detached && says(refusal, "availability_zone"):
		return fmt.Errorf("%w: %w: this cloud attaches volumes within a zone only: run the service in zone %s, or copy the volume by a snapshot", providers.ErrInvalid, refusal, sanitize.Clip(v.AvailabilityZone))
	case v.Multiattach:
		return multiattachError("volume " + id)
	case held.State == providers.Detached && v.Status == "available" && says(refusal, alreadyAttached):
		return fmt.Errorf("%w: %w", errListed, withoutMeaning(refusal))
	case held.State == providers.Detached && v.Status != "available" && failed(v.Volume) != nil:
		return failed(v.Volume)
	case held.Node == "":
		return isBusy(v, refusal)
	}
	return p.Refused(d, node, refusal)
}

// whyNotDetached explains a refusal. It returns nil if the server does not hold the volume.
func (p *Provider) whyNotDetached(ctx context.Context, id, node string, refusal error) error {
	d, err := p.withHolder(ctx, id)
	v, held := d.Native, d.Attachment
	switch {
	case errors.Is(err, providers.ErrNotFound):
		return ctx.Err()
	case err != nil:
		return err
	case refused(refusal, http.StatusBadRequest) && held.State == providers.Detached:
		return p.ensureNotListed(ctx, id, node)
	case held.State == providers.Detached, held.Node != node && held.Node != "", held.State == providers.Detaching, p.HasLeft(d, node):
		return nil
	case held.Node == "" && refused(refusal, http.StatusNotFound): // an old Cinder does not name the server, and Nova says that it is not this one
		return nil
	case held.State == providers.Attaching, v.Status == "in-use" && says(refusal, "status must be 'in-use'"): // it is attached by now
		return fmt.Errorf("%w: volume %s is %q: %w", errAttaching, id, sanitize.Clip(v.Status), refusal)
	case refused(refusal, http.StatusBadRequest), held.Node == "": // it was attached just now, or is being changed
		return isBusy(v, refusal)
	case refused(refusal, http.StatusNotFound):
		return fmt.Errorf("Cinder shows volume %s as attached to server %s, and Nova has no such attachment: an administrator of the cloud must end it (cinder reset-state --attach-status detached): %w", id, node, withoutMeaning(refusal)) //nolint:staticcheck // a name
	}
	return refusal
}

// withHolder returns a volume of this cluster with its attachment.
func (p *Provider) withHolder(ctx context.Context, id string) (managed.Disk[volume], error) {
	d, err := p.GetOurs(ctx, id)
	if err != nil {
		return d, err
	}
	return p.withAttachment(ctx, d)
}

// isBusy returns ErrBusy for a volume whose status is the reason of a refusal.
func isBusy(v volume, refusal error) error {
	return fmt.Errorf("%w: volume %s is %q: %w", providers.ErrBusy, v.ID, sanitize.Clip(v.Status), refusal)
}

// ensureNotListed returns errListed if Nova lists the volume as attached to the server.
func (p *Provider) ensureNotListed(ctx context.Context, id, node string) error {
	_, err := call(ctx, p, fmt.Sprintf("the request for the attachment of volume %s to server %s", id, node), func(ctx context.Context, s *session) (*volumeattach.VolumeAttachment, error) {
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

// multiattachError returns an error for a volume that several servers can attach at once. Nova attaches those only to callers that
// ask for that, which blockvol does not.
func multiattachError(what string) error {
	return fmt.Errorf("%w: %s is made for several servers, and all of them may write to it; blockvol needs volumes with one writer: choose a volume type without multiattach", providers.ErrInvalid, what)
}

// withoutMeaning returns a refusal without its usual sentinel and advice.
func withoutMeaning(err error) error {
	var r *refusal
	if errors.As(err, &r) {
		return fmt.Errorf("%s says: %s", cloudName, sanitize.Clip(r.message))
	}
	return err
}

// explainConflict explains status 409 by Nova's message. Only a server that is busy with a task is ErrBusy: other conflicts do not
// end by themselves.
func explainConflict(node string, err error) error {
	switch {
	case !refused(err, http.StatusConflict):
		return err
	case says(err, "locked"):
		return managed.Certain(fmt.Errorf("server %s is locked: unlock it (openstack server unlock): %w", node, err))
	case says(err, "vm_state"):
		return managed.Certain(fmt.Errorf("the state of server %s allows no changes of its volumes: repair, stop or delete the server: %w", node, err))
	}
	return fmt.Errorf("%w: server %s is busy with another task: %w", providers.ErrBusy, node, err)
}
