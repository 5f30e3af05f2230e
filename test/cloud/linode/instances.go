package linode

import (
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
