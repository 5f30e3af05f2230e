package ec2

import (
	"errors"
	"regexp"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
)

// deviceName matches AWS's device names on Linux: the recommended ones and others that work. See
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/device_naming.html
var deviceName = regexp.MustCompile(`^(/dev/)?(sd[a-z][1-9]?|sd[a-z]1[0-5]|xvd[a-z]|xvd[a-d][a-z]|hd[a-z][1-9]?)$`)

// point returns the same string for names of the same device: /dev/sdf, sdf, /dev/xvdf.
func point(device string) string {
	device = strings.TrimPrefix(device, "/dev/")
	if rest, ok := strings.CutPrefix(device, "xvd"); ok {
		return rest
	}
	return strings.TrimPrefix(device, "sd")
}

func attachVolume(r *request) (any, error) {
	volume, err := r.idParam("vol", "VolumeId")
	if err != nil {
		return nil, err
	}
	instance, err := r.idParam("i", "InstanceId")
	if err != nil {
		return nil, err
	}
	if err := r.params.need("Device"); err != nil {
		return nil, err
	}
	device := r.params.get("Device")
	if !deviceName.MatchString(device) {
		return nil, refuse("InvalidParameterValue", "Value (%s) for parameter device is invalid. %[1]s is not a valid EBS device name.", device)
	}
	if card, err := r.params.number("EbsCardIndex"); err != nil || card != nil && *card != 0 {
		return nil, errors.Join(err, refuse("InvalidParameterValue", "The instance type has no such EBS card."))
	}
	a, err := r.AttachVolume(volume, instance, device, func(i cloud.Instance, held []cloud.Volume) error {
		for _, v := range held {
			for _, a := range v.Attachments {
				if point(a.Device) == point(device) {
					return refuse("InvalidParameterValue", "Invalid value '%s' for unixDevice. Attachment point %[1]s is already in use", device)
				}
			}
		}
		if limit := limitOf(i); len(held) >= limit {
			return refuse("AttachmentLimitExceeded", "You may attach up to %d devices for this instance type. Please use a larger instance size to attach more volumes.", limit)
		}
		return nil
	})
	switch {
	case errors.Is(err, cloud.ErrNoVolume):
		return nil, noVolume(volume)
	case errors.Is(err, cloud.ErrNoInstance):
		return nil, noInstance(instance)
	case errors.Is(err, cloud.ErrInUse):
		return nil, refuse("VolumeInUse", "%s is already attached to an instance", volume)
	case errors.Is(err, cloud.ErrState) && a.Instance != "":
		i, _ := r.front.cloud.Instance(instance)
		if i.State == cloud.Terminated || i.State == cloud.ShuttingDown {
			return nil, refuse("IncorrectInstanceState", "The instance '%s' is in the '%s' state.", instance, i.State)
		}
		return nil, refuse("IncorrectState", "Instance '%s' is not 'running'.", instance)
	case errors.Is(err, cloud.ErrState):
		return nil, refuse("IncorrectState", "%s is not 'available'.", volume)
	case errors.Is(err, cloud.ErrZoneMismatch):
		return nil, refuse("InvalidVolume.ZoneMismatch", "The volume '%s' is not in the same availability zone as instance '%s'", volume, instance)
	case err != nil:
		return nil, err
	}
	return attachmentOf(volume, a), nil
}

func detachVolume(r *request) (any, error) {
	volume, err := r.idParam("vol", "VolumeId")
	if err != nil {
		return nil, err
	}
	instance := r.params.get("InstanceId")
	if instance != "" {
		if err := malformed("i", instance, "instanceId"); err != nil {
			return nil, err
		}
		if _, ok := r.front.cloud.Instance(instance); !ok {
			return nil, noInstance(instance)
		}
	}
	force, err := r.params.truth("Force")
	if err != nil {
		return nil, err
	}
	a, err := r.DetachVolume(volume, instance, r.params.get("Device"), force)
	switch {
	case errors.Is(err, cloud.ErrNoVolume):
		return nil, noVolume(volume)
	case errors.Is(err, cloud.ErrState):
		v, _ := r.front.cloud.Volume(volume)
		return nil, refuse("IncorrectState", "Volume '%s' is in the '%s' state.", volume, v.State)
	case errors.Is(err, cloud.ErrNotAttached):
		return nil, refuse("InvalidAttachment.NotFound", "The volume '%s' is not attached to instance '%s' as device '%s'.", volume, instance, r.params.get("Device"))
	case errors.Is(err, cloud.ErrRoot):
		return nil, refuse("OperationNotPermitted", "Unable to detach root volume '%s' from instance '%s'", volume, a.Instance)
	case err != nil:
		return nil, err
	}
	return attachmentOf(volume, a), nil
}
