package linode

import (
	"strconv"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// plans are the instance types with their memory in MiB.
var plans = map[string]int{"g6-nanode-1": 1024, "g6-standard-2": 4096, "g6-standard-8": 32768, "g6-standard-32": 196608}

func memoryOf(i cloud.Instance) int {
	if memory, known := plans[i.Type]; known {
		return memory
	}
	return plans["g6-standard-2"]
}

// ownDisks is the number of an instance's own disks: system and swap.
const ownDisks = 2

// mostVolumes returns the maximum number of disks of an instance: its memory in GB, between 8 and 64, including its own disks.
// Volumes that persist across boots are in a configuration profile, which has 8 slots.
func mostVolumes(i cloud.Instance, persist bool) int {
	if persist {
		return 8 - ownDisks
	}
	return min(max(memoryOf(i)/1024, 8), 64) - ownDisks
}

// busy reports whether another volume is being attached to or detached from the instance.
func (f *Front) busy(linode, except string) bool {
	return f.cloud.AnyVolume(func(v cloud.Volume) bool {
		if v.ID == except || len(v.Attachments) == 0 || v.Attachments[0].Instance != linode {
			return false
		}
		s := v.Attachments[0].State
		return s == cloud.Attaching || s == cloud.Detaching
	})
}

func (f *Front) attachVolume(r *rest.Request) (rest.Answer, error) {
	in := struct {
		LinodeID int64 `json:"linode_id"`
		ConfigID int64 `json:"config_id"`
		Persist  bool  `json:"persist_across_boots"`
	}{Persist: true}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	v, err := f.truth(r)
	if err != nil {
		return rest.Answer{}, err
	}
	linode := strconv.FormatInt(in.LinodeID, 10)
	i, ok := f.cloud.Instance(linode)
	switch {
	case !ok || i.State == cloud.Terminated:
		return rest.Answer{}, bad("linode_id", "Linode not found")
	case !in.Persist && in.ConfigID != 0:
		return rest.Answer{}, bad("config_id", "config_id must not be given unless the attachment persists across boots")
	case len(v.Attachments) > 0:
		return rest.Answer{}, bad("", "Volume %s is already attached", v.ID)
	case statusOf(v) != "active":
		return rest.Answer{}, bad("", "Volume busy.")
	case f.busy(linode, v.ID), i.State == cloud.ShuttingDown, i.State == cloud.Stopping:
		return rest.Answer{}, errBusy
	case !in.Persist && i.State != cloud.Running:
		return rest.Answer{}, bad("linode_id", "The Linode must be running")
	}
	_, err = r.AttachVolume(v.ID, linode, "", func(i cloud.Instance, held []cloud.Volume) error {
		if most := mostVolumes(i, in.Persist); len(held) >= most {
			return bad("", "You have reached the maximum number of Volumes (%d) for this Linode", most)
		}
		return nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return f.present(r)
}

// detachVolume detaches the volume from its holder. The hypervisor removes the device even if the instance's kernel uses it.
func (f *Front) detachVolume(r *rest.Request) (rest.Answer, error) {
	if len(r.Body) > 0 {
		if err := decode(r, &struct{}{}); err != nil {
			return rest.Answer{}, err
		}
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	v, err := f.truth(r)
	switch {
	case err != nil:
		return rest.Answer{}, err
	case len(v.Attachments) == 0:
		return rest.Answer{}, bad("", "Volume %s is not attached to a Linode", v.ID)
	case v.Attachments[0].State != cloud.Attached && v.Attachments[0].State != cloud.Busy, f.busy(v.Attachments[0].Instance, v.ID):
		return rest.Answer{}, errBusy
	}
	if _, err := r.DetachVolume(v.ID, "", "", true); err != nil {
		return rest.Answer{}, err
	}
	return nothing, nil
}
