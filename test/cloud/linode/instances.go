package linode

import (
	"fmt"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

type instance struct {
	ID              int64    `json:"id"`
	Label           string   `json:"label"`
	Group           string   `json:"group"`
	Status          string   `json:"status"`
	Region          string   `json:"region"`
	Type            string   `json:"type"`
	Image           string   `json:"image"`
	IPv4            []string `json:"ipv4"`
	Hypervisor      string   `json:"hypervisor"`
	HostUUID        string   `json:"host_uuid"`
	WatchdogEnabled bool     `json:"watchdog_enabled"`
	Tags            []string `json:"tags"`
	Specs           specs    `json:"specs"`
	Created         string   `json:"created"`
	Updated         string   `json:"updated"`
}

type specs struct {
	Disk     int `json:"disk"`   // MiB
	Memory   int `json:"memory"` // MiB
	VCPUs    int `json:"vcpus"`
	GPUs     int `json:"gpus"`
	Transfer int `json:"transfer"` // GB
}

func labelOf(instance string) string { return "linode" + instance }

func specsOf(i cloud.Instance) specs {
	return specs{Disk: 81920, Memory: memoryOf(i), VCPUs: 2, Transfer: 4000}
}

const (
	image    = "linode/debian13"
	hostUUID = "a9d4c0d5e4b1f0a7c1b2d3e4f5061728"
)

var statuses = map[cloud.InstanceState]string{
	cloud.Pending: "booting", cloud.Running: "running", cloud.Stopping: "shutting_down", cloud.Stopped: "offline", cloud.ShuttingDown: "deleting",
}

type disk struct {
	ID         int64  `json:"id"`
	Label      string `json:"label"`
	Status     string `json:"status"`
	Size       int    `json:"size"` // MiB
	Filesystem string `json:"filesystem"`
	Created    string `json:"created"`
	Updated    string `json:"updated"`
}

// listDisks lists an instance's own disks.
func (f *Front) listDisks(r *rest.Request) (rest.Answer, error) {
	i, is := f.cloud.Instance(r.HTTP.PathValue("id"))
	if !is || i.State == cloud.Terminated {
		return rest.Answer{}, notFound()
	}
	all := make([]disk, ownDisks)
	for n := range all {
		all[n] = disk{
			ID: number(i.ID)*10 + int64(n), Label: fmt.Sprintf("disk %d", n), Status: "ready", Size: 512, Filesystem: "ext4",
			Created: stamp(i.LaunchedAt), Updated: stamp(i.LaunchedAt),
		}
	}
	return paginate(r, all)
}

// listHeld lists the volumes of an instance.
func (f *Front) listHeld(r *rest.Request) (rest.Answer, error) {
	i, is := f.cloud.Instance(r.HTTP.PathValue("id"))
	if !is || i.State == cloud.Terminated {
		return rest.Answer{}, notFound()
	}
	var all []any
	for _, v := range r.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 && v.Attachments[0].Instance == i.ID }) {
		all = append(all, show(v))
	}
	return paginate(r, all)
}

func (f *Front) getInstance(r *rest.Request) (rest.Answer, error) {
	for _, i := range r.Instances() {
		if i.ID != r.HTTP.PathValue("id") || i.State == cloud.Terminated {
			continue
		}
		f.mu.Lock()
		status := f.shown[i.ID]
		f.mu.Unlock()
		if status == "" {
			status = statuses[i.State]
		}
		return rest.Answer{Status: http.StatusOK, Body: instance{
			ID: number(i.ID), Label: labelOf(i.ID), Status: status, Region: i.Zone, Type: i.Type, Image: image, IPv4: []string{i.Address},
			Hypervisor: "kvm", HostUUID: hostUUID, WatchdogEnabled: true, Tags: []string{}, Specs: specsOf(i),
			Created: stamp(i.LaunchedAt), Updated: stamp(i.LaunchedAt),
		}}, nil
	}
	return rest.Answer{}, notFound()
}
