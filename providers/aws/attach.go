package aws

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
)

// attach attaches the volume under a free device name. Only EC2 uses that name: on Nitro instances the kernel chooses its own.
func (p *Provider) attach(ctx context.Context, id, node string) (string, error) {
	slots := p.slotsOf(node)
	for {
		device, err := p.reserveSlot(ctx, slots, node, id)
		if err != nil {
			return "", err
		}
		_, err = alter(ctx, p, id, (*ec2.Client).AttachVolume, &ec2.AttachVolumeInput{VolumeId: &id, InstanceId: &node, Device: &device})
		switch {
		case err == nil:
			return "", nil
		case errors.Is(err, errDeviceTaken):
			slots.refused(device)
			continue
		case errors.Is(err, providers.ErrUnavailable) || ctx.Err() != nil:
			// The request may have taken effect, so the name stays reserved until EC2 shows that it is free.
			slots.outdate()
			return "", err
		}
		slots.release(id)
		switch {
		case errors.Is(err, errWrongState):
			return "", fmt.Errorf("%w: %w", managed.ErrAttached, err)
		case errors.Is(err, providers.ErrAttachLimit):
			slots.outdate()
		}
		return "", err
	}
}

// detach detaches the volume from that instance and from no other.
func (p *Provider) detach(ctx context.Context, id, node string, force bool) (string, error) {
	in := &ec2.DetachVolumeInput{VolumeId: &id, InstanceId: &node}
	if force {
		needed, err := p.needsForce(ctx, id, node)
		if err != nil {
			return "", err
		}
		in.Force = &needed
	}
	_, err := alter(ctx, p, id, (*ec2.Client).DetachVolume, in)
	switch {
	case errors.Is(err, errWrongState), errors.Is(err, errNotAttached), errors.Is(err, providers.ErrNotFound):
		// It is detached or being detached.
	case errors.Is(err, errNoInstance):
		// An instance that EC2 does not know holds nothing, unless a read shows that it does.
		if d, readErr := p.GetOurs(ctx, id); !errors.Is(readErr, providers.ErrNotFound) && (readErr != nil || d.HeldBy(node)) {
			return "", err
		}
	case err != nil:
		return "", err
	}
	p.slotsOf(node).release(id)
	return "", nil
}

// needsForce returns true if a detach of the volume from the instance is in progress. Before that, a detach without force is
// enough: the kernel of a stopped instance does not have to release the disk. And if the instance has been started again in the
// meantime, a detach without force does not take a mounted disk from it: EC2 shows the attachment as busy.
func (p *Provider) needsForce(ctx context.Context, id, node string) (bool, error) {
	d, err := p.GetOurs(ctx, id)
	if errors.Is(err, providers.ErrNotFound) {
		return false, nil
	}
	return err == nil && d.HeldBy(node) && d.Attachment.State == providers.Detaching, err
}
