package digitalocean

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// statusOf returns a droplet's status, or "" if DigitalOcean does not show it. A droplet that is shutting down is active.
func statusOf(state cloud.InstanceState) string {
	switch state {
	case cloud.Pending:
		return "new"
	case cloud.Running, cloud.Stopping, cloud.ShuttingDown:
		return "active"
	case cloud.Stopped:
		return "off"
	case cloud.Terminated:
	}
	return ""
}

func (f *Front) getAccount(*rest.Request) (rest.Answer, error) {
	return rest.Answer{Status: http.StatusOK, Body: map[string]any{"account": map[string]any{
		"droplet_limit": 25, "floating_ip_limit": 5, "reserved_ip_limit": 5, "volume_limit": f.cfg.Volumes, "email": "ops@example.com", "name": "ops",
		"uuid": "b6fr89dbf6d9156cace5f3c78dc9851d957381ef", "email_verified": true, "status": "active", "status_message": "",
	}}}, nil
}

func (f *Front) getDroplet(r *rest.Request) (rest.Answer, error) {
	for _, i := range r.Instances() {
		status := statusOf(i.State)
		if i.ID != r.HTTP.PathValue("id") || status == "" {
			continue
		}
		held := []string{}
		for _, v := range r.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 }) {
			for _, id := range f.show(r, v).DropletIDs {
				if id == number(i.ID) {
					held = append(held, v.ID)
				}
			}
		}
		return rest.Answer{Status: http.StatusOK, Body: map[string]any{"droplet": map[string]any{
			"id": number(i.ID), "name": "droplet-" + i.ID, "memory": 1024, "vcpus": 1, "disk": 25, "locked": false, "status": status,
			"created_at": stamp(i.LaunchedAt), "features": []string{"private_networking"}, "volume_ids": held,
			"size_slug": "s-1vcpu-1gb", "region": regionOf(i.Zone), "tags": []string{},
		}}}, nil
	}
	return rest.Answer{}, f.notFound()
}

// Metadata returns an instance's metadata service. See https://docs.digitalocean.com/reference/api/metadata/
func (f *Front) Metadata(instance string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		httpsim.ServeMetadata(f.cloud, instance, w, r, func() (int, string) {
			i, ok := f.cloud.Instance(instance)
			if !ok {
				return http.StatusNotFound, "not found"
			}
			if strings.HasSuffix(r.URL.Path, ".json") {
				w.Header().Set("Content-Type", "application/json")
			}
			return metadata(i, r)
		})
	})
}

func metadata(i cloud.Instance, r *http.Request) (status int, body string) {
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, ""
	}
	switch r.URL.Path {
	case "/metadata/v1/":
		return http.StatusOK, "id\nhostname\nregion"
	case "/metadata/v1/id":
		return http.StatusOK, i.ID
	case "/metadata/v1/hostname":
		return http.StatusOK, "droplet-" + i.ID
	case "/metadata/v1/region":
		return http.StatusOK, i.Zone
	case "/metadata/v1.json":
		all, err := json.Marshal(map[string]any{"droplet_id": number(i.ID), "hostname": "droplet-" + i.ID, "region": i.Zone})
		if err != nil {
			panic(err) // impossible: it has only strings and a number
		}
		return http.StatusOK, string(all)
	}
	return http.StatusNotFound, "not found"
}
