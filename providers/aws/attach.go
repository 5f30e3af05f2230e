package aws

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/recent"
)

// lookupOurs is GetOurs in the contract's words.
func (p *Provider) lookupOurs(ctx context.Context, id string) (*providers.Volume, error) {
	d, err := p.GetOurs(ctx, id)
	if err != nil {
		return nil, err
	}
	return p.Volume(ctx, d, false)
}

// Attach asks for the volume under a device name that is free on this instance. The name serves EC2 alone; on Nitro
// instances the kernel chooses its own.
func (p *Provider) Attach(ctx context.Context, id string) error {
	if err := p.EnsureOurs(ctx, id, recent.WhileFree); err != nil {
		return err
	}
	s, err := p.session(ctx)
	if err != nil {
		return err
	}
	for {
		device, err := p.takeSlot(ctx, s, id)
		if err != nil {
			return err
		}
		_, err = alter(ctx, p, id, "AttachVolume", func(ctx context.Context, api *ec2.Client) (*ec2.AttachVolumeOutput, error) {
			return api.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &id, InstanceId: &s.instance, Device: &device})
		})
		switch {
		case err == nil:
			p.memory.hold(id)
			return nil
		case errors.Is(err, errDeviceTaken):
			p.slots.putOff(device) // something that this process does not know of has it
			continue
		case errors.Is(err, providers.ErrUnavailable) || ctx.Err() != nil:
			// It may have taken effect. The name stays taken until EC2 is seen to say otherwise.
			p.slots.stale()
			return err
		}
		p.slots.free(id)
		switch {
		case errors.Is(err, errInUse), errors.Is(err, errWrongState):
			return p.whyNotAttached(ctx, s, id, err)
		case errors.Is(err, providers.ErrAttachLimit):
			p.slots.stale()
		}
		return err
	}
}

// whyNotAttached finds out what an attached volume, or one in the wrong state, means for this node.
func (p *Provider) whyNotAttached(ctx context.Context, s *session, id string, refusal error) error {
	v, err := p.lookupOurs(ctx, id)
	if err != nil {
		return err
	}
	err = v.Attachment.Refused(id, s.instance, refusal)
	if err == nil && p.memory.frees(id) {
		// It was detached from here a moment ago: the read may be older, and another instance have it.
		return fmt.Errorf("%w: %w", providers.ErrBusy, refusal)
	}
	return err
}

// Detach asks for the volume to be detached from that instance and from no other. Force is the last resort, see needsForce.
func (p *Provider) Detach(ctx context.Context, id, node string, force bool) error {
	err := p.EnsureOurs(ctx, id, recent.WhileHeld)
	if errors.Is(err, providers.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if force {
		if force, err = p.needsForce(ctx, id, node); err != nil {
			return err
		}
	}
	_, err = alter(ctx, p, id, "DetachVolume", func(ctx context.Context, api *ec2.Client) (*ec2.DetachVolumeOutput, error) {
		in := &ec2.DetachVolumeInput{VolumeId: &id, InstanceId: &node}
		if force {
			in.Force = &force
		}
		return api.DetachVolume(ctx, in)
	})
	switch {
	case errors.Is(err, errWrongState), errors.Is(err, errNotAttached), errors.Is(err, providers.ErrNotFound):
		// It is detached, or on its way.
	case errors.Is(err, errNoInstance):
		// An instance that EC2 does not know holds nothing, unless a read says otherwise.
		if v, lookErr := p.lookupOurs(ctx, id); !errors.Is(lookErr, providers.ErrNotFound) && (lookErr != nil || v.HeldBy(node)) {
			return err
		}
	case err != nil:
		return err
	}
	if s := p.begun(); s != nil && node == s.instance {
		p.slots.free(id)
		p.memory.free(id)
	}
	return nil
}

// needsForce tells whether a detach of the volume from the instance is under way already, and does not end. Otherwise a plain
// one comes first: it is enough for an instance that is stopped, where no guest has to let go; and as EC2's word that it is
// may be old, one that has been started since keeps what it has mounted, where a plain detach ends as "busy".
func (p *Provider) needsForce(ctx context.Context, id, node string) (bool, error) {
	v, err := p.lookupOurs(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return v.HeldBy(node) && v.Attachment.State == providers.Detaching, nil
}
