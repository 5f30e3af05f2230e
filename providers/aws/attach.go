package aws

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/blockvol/blockvol/providers"
)

// attach asks for the volume under a device name that is free on the instance. The name serves EC2 alone; on Nitro instances the
// kernel chooses its own.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	slots := p.slotsOf(node)
	for {
		device, err := p.takeSlot(ctx, slots, node, id)
		if err != nil {
			return "", err
		}
		_, err = alter(ctx, p, id, "AttachVolume", func(ctx context.Context, api *ec2.Client) (*ec2.AttachVolumeOutput, error) {
			return api.AttachVolume(ctx, &ec2.AttachVolumeInput{VolumeId: &id, InstanceId: &node, Device: &device})
		})
		switch {
		case err == nil:
			return "", nil
		case errors.Is(err, errDeviceTaken):
			slots.putOff(device) // something that this process does not know of has it
			continue
		case errors.Is(err, providers.ErrUnavailable) || ctx.Err() != nil:
			// It may have taken effect. The name stays taken until EC2 is seen to say otherwise.
			slots.stale()
			return "", err
		}
		slots.free(id)
		switch {
		case errors.Is(err, errWrongState):
			return "", fmt.Errorf("%w: %w", errInUse, err)
		case errors.Is(err, providers.ErrAttachLimit):
			slots.stale()
		}
		return "", err
	}
}

// detach asks for the volume to be detached from that instance and from no other. Force is the last resort, see needsForce.
func (p *Provider) detach(ctx context.Context, id, node string, force bool) (string, error) {
	var err error
	if force {
		if force, err = p.needsForce(ctx, id, node); err != nil {
			return "", err
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
		if d, lookErr := p.GetOurs(ctx, id); !errors.Is(lookErr, providers.ErrNotFound) && (lookErr != nil || d.HeldBy(node)) {
			return "", err
		}
	case err != nil:
		return "", err
	}
	p.slotsOf(node).free(id)
	return "", nil
}

// needsForce tells whether a detach of the volume from the instance is under way already, and does not end. Otherwise a plain
// one comes first: it is enough for an instance that is stopped, where no guest has to let go; and as EC2's word that it is
// may be old, one that has been started since keeps what it has mounted, where a plain detach ends as "busy".
func (p *Provider) needsForce(ctx context.Context, id, node string) (bool, error) {
	d, err := p.GetOurs(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return d.HeldBy(node) && d.Attachment.State == providers.Detaching, nil
}
