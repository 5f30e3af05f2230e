package openstack

import (
	"encoding/json"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// Nova's numbers of power states.
const (
	powerRunning  = 1
	powerShutdown = 4
)

// Forbid makes the policy refuse to let an instance's credentials stop and start servers, or ends that.
func (f *Front) Forbid(instance string, forbid bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forbidden[instance] = forbid
}

// Lock locks a server: then it cannot be changed by users.
func (f *Front) Lock(instance string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.locked[instance] = true
}

// actOnServer stops or starts a server. Nova lets the guest shut down, and cuts its power if it does not.
func (f *Front) actOnServer(r *rest.Request) (rest.Answer, error) {
	body := map[string]json.RawMessage{}
	if err := r.Decode(&body); err != nil || len(body) != 1 {
		return rest.Answer{}, bad("Malformed request body: one action is needed")
	}
	server := r.HTTP.PathValue("server")
	var method string
	var change func() error
	_, stop := body["os-stop"]
	_, start := body["os-start"]
	switch {
	case stop:
		method, change = "stop", func() error { _, err := r.Stop(server, false); return err }
	case start:
		method, change = "start", func() error { _, err := r.Start(server); return err }
	default:
		return rest.Answer{}, bad("There is no such action in this simulation")
	}
	f.mu.Lock()
	forbidden, locked := f.forbidden[r.Caller], f.locked[server]
	f.mu.Unlock()
	i, ok := f.cloud.Instance(server)
	is := f.statusOf(i)
	switch {
	case !ok || i.State == cloud.Terminated:
		return rest.Answer{}, noServer(server)
	case forbidden:
		return rest.Answer{}, refuse(http.StatusForbidden, "forbidden", "Policy doesn't allow os_compute_api:servers:%s to be performed.", method)
	case locked:
		return rest.Answer{}, conflict("Instance %s is locked", server)
	case is.task != "":
		return rest.Answer{}, conflict("Cannot '%s' instance %s while it is in task_state %s", method, server, is.task)
	case is.status != map[string]string{"stop": "ACTIVE", "start": "SHUTOFF"}[method]:
		vm := map[string]string{"ACTIVE": "active", "SHUTOFF": "stopped", "PAUSED": "paused", "SUSPENDED": "suspended"}[is.status]
		return rest.Answer{}, conflict("Cannot '%s' instance %s while it is in vm_state %s", method, server, vm)
	}
	if err := change(); err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusAccepted}, nil
}
