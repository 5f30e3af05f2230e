package openstack

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// status is a server's status and task set by SetStatus.
type status struct{ status, task string }

// SetStatus sets a server's status and task in Nova; "" restores the real one. During a task, such as rebooting, the server
// refuses to attach and detach.
func (f *Front) SetStatus(instance, word, task string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses[instance] = status{word, task}
}

func (f *Front) statusOf(i cloud.Instance) status {
	f.mu.Lock()
	said := f.statuses[i.ID]
	f.mu.Unlock()
	is := status{"ACTIVE", ""}
	switch i.State {
	case cloud.Pending:
		is.task = "powering-on"
	case cloud.Stopping:
		is.task = "powering-off"
	case cloud.Stopped:
		is.status = "SHUTOFF"
	case cloud.ShuttingDown:
		is.task = "deleting"
	}
	if said.status != "" {
		is.status = said.status
	}
	if said.task != "" {
		is.task = said.task
	}
	return is
}

// SetPower sets the power state that Nova shows for a server's machine.
func (f *Front) SetPower(instance string, state int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.power[instance] = state
}

// powerOf returns the power state of a server's machine as Nova last saw it.
func (f *Front) powerOf(instance, status string) int {
	f.mu.Lock()
	set := f.power[instance]
	f.mu.Unlock()
	switch {
	case set != 0:
		return set
	case status == "SHUTOFF", status == "SOFT_DELETED", strings.HasPrefix(status, "SHELVED"):
		return powerShutdown
	}
	return powerRunning
}

func noServer(id string) error { return missing("Instance %s could not be found.", id) }

func (f *Front) showServer(r *rest.Request) (rest.Answer, error) {
	id := r.HTTP.PathValue("server")
	all := r.Instances()
	at := slices.IndexFunc(all, func(i cloud.Instance) bool { return i.ID == id && i.State != cloud.Terminated })
	if at < 0 {
		return rest.Answer{}, noServer(id)
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"server": f.viewServer(r, all[at])}}, nil
}

func (f *Front) viewServer(r *rest.Request, i cloud.Instance) map[string]any {
	attached := []map[string]any{}
	for _, v := range held(r, i.ID) {
		attached = append(attached, map[string]any{"id": v.ID})
	}
	is := f.statusOf(i)
	return map[string]any{
		"id": i.ID, "name": i.ID, "status": is.status, "tenant_id": Project, "user_id": User, "metadata": map[string]string{},
		"created": i.LaunchedAt.UTC().Format(time.RFC3339), "updated": i.LaunchedAt.UTC().Format(time.RFC3339),
		"OS-EXT-STS:task_state": orNull(is.task), "OS-EXT-STS:power_state": f.powerOf(i.ID, is.status), "OS-EXT-AZ:availability_zone": i.Zone,
		"os-extended-volumes:volumes_attached": attached,
	}
}

// held returns the volumes of a server, subject to Lag.
func held(r *rest.Request, server string) []cloud.Volume {
	return r.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 && v.Attachments[0].Instance == server })
}

func (f *Front) listServers(r *rest.Request) (rest.Answer, error) {
	views := []map[string]any{}
	for _, i := range r.Instances() {
		if i.State != cloud.Terminated {
			views = append(views, f.viewServer(r, i))
		}
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"servers": views}}, nil
}

func (f *Front) listServerAttachments(r *rest.Request) (rest.Answer, error) {
	server := r.HTTP.PathValue("server")
	views := []map[string]any{}
	for _, v := range held(r, server) {
		views = append(views, map[string]any{"id": v.ID, "volumeId": v.ID, "serverId": server, "device": v.Attachments[0].Device})
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volumeAttachments": views}}, nil
}

// attach begins to attach a volume. The device in the answer is Nova's guess, as in real clouds.
func (f *Front) attach(r *rest.Request) (rest.Answer, error) {
	type order struct {
		Volume string `json:"volumeId"`
		Device string `json:"device"`
	}
	in, err := decode[order](r, "volumeAttachment")
	if err != nil {
		return rest.Answer{}, err
	}
	server := r.HTTP.PathValue("server")
	if err := f.changeable(server, "attach_volume"); err != nil {
		return rest.Answer{}, err
	}
	v, err := f.now(in.Volume)
	if err != nil {
		return rest.Answer{}, err
	}
	reserve := func() error {
		now, _ := f.cloud.Volume(v.ID)
		return bad("Invalid input received: Invalid volume: Volume %s status must be available or downloading to reserve, but the current status is %s. (HTTP 400) (Request-ID: req-00000000-0000-4000-8000-000000000000)", v.ID, statusOf(now))
	}
	if statusOf(v) == "extending" {
		return rest.Answer{}, reserve()
	}
	if slices.Contains(f.cfg.Multiattach, v.Type) {
		return rest.Answer{}, bad("Multiattach volumes are only supported starting with compute API version 2.60.")
	}
	if other := f.listing(v); other != "" && len(v.Attachments) == 0 {
		return rest.Answer{}, bad("Invalid volume: volume %s is already attached to instances: %s", v.ID, other)
	}
	device := ""
	_, err = r.AttachVolume(v.ID, server, "/dev/vdb", func(_ cloud.Instance, held []cloud.Volume) error {
		if len(held) >= f.cfg.Devices {
			return refuse(http.StatusForbidden, "forbidden", "The maximum allowed number of disk devices (%d) to attach to a single instance has been exceeded.", f.cfg.Devices)
		}
		device = fmt.Sprintf("/dev/vd%c", 'b'+len(held)%25)
		return nil
	})
	switch {
	case errors.Is(err, cloud.ErrNoInstance):
		return rest.Answer{}, noServer(server)
	case errors.Is(err, cloud.ErrZoneMismatch):
		i, _ := f.cloud.Instance(server)
		return rest.Answer{}, bad("Invalid volume: Instance %s and volume %s are not in the same availability_zone. Instance is in %s. Volume is in %s", server, v.ID, i.Zone, f.volumeZone(v.Zone))
	case errors.Is(err, cloud.ErrNoVolume), errors.Is(err, cloud.ErrInUse), errors.Is(err, cloud.ErrState):
		return rest.Answer{}, reserve()
	case err != nil:
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volumeAttachment": map[string]any{
		"id": v.ID, "volumeId": v.ID, "serverId": server, "device": device,
	}}}, nil
}

// List makes Nova list a volume as attached to a server regardless of Cinder; "" restores the real list.
func (f *Front) List(volume, server string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listed[volume] = server
}

// listing returns the server that Nova lists a volume for. Nova's list lags behind Cinder's end of an attachment.
func (f *Front) listing(v cloud.Volume) string {
	f.mu.Lock()
	listed := f.listed[v.ID]
	f.mu.Unlock()
	switch {
	case listed != "":
		return listed
	case len(v.Attachments) > 0:
		return v.Attachments[0].Instance
	case time.Since(v.Left.Since) < f.cfg.Settles:
		return v.Left.Instance
	}
	return ""
}

func (f *Front) showAttachment(r *rest.Request) (rest.Answer, error) {
	server, id := r.HTTP.PathValue("server"), r.HTTP.PathValue("volume")
	if i, ok := f.cloud.Instance(server); !ok || i.State == cloud.Terminated {
		return rest.Answer{}, noServer(server)
	}
	if v, err := f.now(id); err != nil || f.listing(v) != server {
		return rest.Answer{}, missing("volume_id not found: %s", id)
	}
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"volumeAttachment": map[string]any{
		"id": id, "volumeId": id, "serverId": server, "device": "/dev/vdb",
	}}}, nil
}

// changeable returns an error if a server refuses changes now.
func (f *Front) changeable(server, method string) error {
	i, ok := f.cloud.Instance(server)
	if !ok || i.State == cloud.Terminated {
		return noServer(server)
	}
	if is := f.statusOf(i); is.task != "" {
		return conflict("Cannot '%s' instance %s while it is in task_state %s", method, server, is.task)
	} else if !slices.Contains([]string{"ACTIVE", "SHUTOFF", "PAUSED"}, is.status) {
		return conflict("Cannot '%s' instance %s while it is in vm_state %s", method, server, is.status)
	}
	return nil
}

// detach begins to detach a volume from the server in the path, if that is its holder.
func (f *Front) detach(r *rest.Request) (rest.Answer, error) {
	server, id := r.HTTP.PathValue("server"), r.HTTP.PathValue("volume")
	if err := f.changeable(server, "detach_volume"); err != nil {
		return rest.Answer{}, err
	}
	v, err := f.now(id)
	if err != nil {
		return rest.Answer{}, err
	}
	if f.listing(v) != server {
		return rest.Answer{}, missing("volume_id not found: %s", id)
	}
	if status := statusOf(v); status != "in-use" {
		return rest.Answer{}, bad("Invalid input received: Invalid volume: Unable to detach volume. Volume status must be 'in-use' and attach_status must be 'attached' to detach. (HTTP 400) (Request-ID: req-00000000-0000-4000-8000-000000000000)")
	}
	switch _, err := r.DetachVolume(id, server, "", false); {
	case errors.Is(err, cloud.ErrNotAttached), errors.Is(err, cloud.ErrState), errors.Is(err, cloud.ErrNoVolume):
		return rest.Answer{}, missing("volume_id not found: %s", id)
	case errors.Is(err, cloud.ErrRoot):
		return rest.Answer{}, refuse(http.StatusForbidden, "forbidden", "Cannot detach a root device volume")
	case err != nil:
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusAccepted}, nil
}

// listAttachments returns Cinder's attachments, including pending ones.
func (f *Front) listAttachments(r *rest.Request) (rest.Answer, error) {
	if !microversion(r, 27) {
		return rest.Answer{}, missing("The resource could not be found.")
	}
	volume := r.HTTP.URL.Query().Get("volume_id")
	all := r.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 && (volume == "" || v.ID == volume) })
	return page(f, r, "attachments", all, func(v cloud.Volume) string { return attachmentID(v.ID, v.Attachments[0]) }, func(v cloud.Volume) map[string]any {
		a := v.Attachments[0]
		word := "attached"
		if a.State == cloud.Attaching {
			word = "reserved"
		}
		return map[string]any{
			"id": attachmentID(v.ID, a), "volume_id": v.ID, "instance": a.Instance, "status": word, "attach_mode": "rw",
			"attached_at": stamp(a.Since), "detached_at": "", "connection_info": map[string]any{},
		}
	}, "volume_id")
}
