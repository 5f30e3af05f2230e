package hetzner

import (
	"net/http"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// location is a location in an answer.
type location struct {
	ID          int64   `json:"id"`
	Name        string  `json:"name"`
	Description string  `json:"description"`
	Country     string  `json:"country"`
	City        string  `json:"city"`
	Latitude    float64 `json:"latitude"`
	Longitude   float64 `json:"longitude"`
	NetworkZone string  `json:"network_zone"`
}

var locations = []location{
	{1, "fsn1", "Falkenstein DC Park 1", "DE", "Falkenstein", 50.47612, 12.370071, "eu-central"},
	{2, "nbg1", "Nuremberg DC Park 1", "DE", "Nuremberg", 49.452102, 11.076665, "eu-central"},
	{3, "hel1", "Helsinki DC Park 1", "FI", "Helsinki", 60.169855, 24.938379, "eu-central"},
}

func locationOf(zone string) location {
	for _, l := range locations {
		if l.Name == zone {
			return l
		}
	}
	return location{ID: 99, Name: zone, Description: zone, NetworkZone: "eu-central"}
}

func (f *Front) listLocations(r *rest.Request) (rest.Answer, error) {
	if err := query(r, "name", "sort*", "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	var all []location
	for _, zone := range f.cloud.Zones() {
		if name := r.HTTP.URL.Query().Get("name"); name == "" || name == zone {
			all = append(all, locationOf(zone))
		}
	}
	return page(r, "locations", all)
}

// Show sets the status that the API shows for a server, such as "migrating", "rebuilding" or "unknown". "" restores the real
// one.
func (f *Front) Show(server, status string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses[server] = status
}

// statusOf returns a server's status, or "" if Hetzner does not show it.
func (f *Front) statusOf(i cloud.Instance) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if status := f.statuses[i.ID]; status != "" {
		return status
	}
	switch i.State {
	case cloud.Pending:
		return "starting"
	case cloud.Running:
		return "running"
	case cloud.Stopping:
		return "stopping"
	case cloud.Stopped:
		return "off"
	case cloud.ShuttingDown:
		return "deleting"
	case cloud.Terminated:
	}
	return ""
}

func (f *Front) getServer(r *rest.Request) (rest.Answer, error) {
	id := r.HTTP.PathValue("id")
	for _, i := range r.Instances() {
		if status := f.statusOf(i); i.ID == id && status != "" {
			return rest.Answer{Status: http.StatusOK, Body: map[string]any{"server": f.showServer(r, i, status)}}, nil
		}
	}
	return rest.Answer{}, notFound("server", id)
}

func (f *Front) listServers(r *rest.Request) (rest.Answer, error) {
	if err := query(r, "name", "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	var all []map[string]any
	for _, i := range r.Instances() {
		name := r.HTTP.URL.Query().Get("name")
		if status := f.statusOf(i); status != "" && (name == "" || name == serverName(i)) {
			all = append(all, f.showServer(r, i, status))
		}
	}
	return page(r, "servers", all)
}

func serverName(i cloud.Instance) string { return "server-" + i.ID }

func (f *Front) showServer(r *rest.Request, i cloud.Instance, status string) map[string]any {
	held := []int64{}
	for _, v := range r.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 }) {
		if shown := f.show(v); shown.Server != nil && *shown.Server == number(i.ID) {
			held = append(held, shown.ID)
		}
	}
	networks := []any{}
	if f.cfg.Private {
		networks = append(networks, map[string]any{"network": 4711, "ip": i.Address, "alias_ips": []string{}, "mac_address": "86:00:00:2a:7d:e0"})
	}
	return map[string]any{
		"id": number(i.ID), "name": serverName(i), "status": status, "created": stamp(i.LaunchedAt),
		"public_net": map[string]any{
			"ipv4":         map[string]any{"id": 42, "ip": "192.0.2.1", "blocked": false, "dns_ptr": "server.example.com"},
			"ipv6":         nil,
			"floating_ips": []int64{}, "firewalls": []any{},
		},
		"private_net": networks, "server_type": map[string]any{"id": 22, "name": "cpx11", "description": "CPX 11", "cores": 2, "memory": 2, "disk": 40},
		"location": locationOf(i.Zone), "image": nil, "iso": nil, "rescue_enabled": false, "locked": f.engaged(i.ID), "backup_window": nil,
		"outgoing_traffic": nil, "ingoing_traffic": nil, "included_traffic": 20 << 40, "protection": map[string]bool{"delete": false, "rebuild": false},
		"labels": map[string]string{}, "volumes": held, "load_balancers": []int64{}, "primary_disk_size": 40, "placement_group": nil,
	}
}

// Metadata returns an instance's metadata service. See https://docs.hetzner.cloud/reference/cloud#description/server-metadata
func (f *Front) Metadata(instance string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		httpsim.ServeMetadata(f.cloud, instance, w, r, func() (int, string) {
			i, ok := f.cloud.Instance(instance)
			if !ok {
				return http.StatusNotFound, "not found"
			}
			return metadata(i, r)
		})
	})
}

func metadata(i cloud.Instance, r *http.Request) (status int, body string) {
	if r.Method != http.MethodGet {
		return http.StatusMethodNotAllowed, ""
	}
	values := [][2]string{
		{"availability-zone", i.Zone + "-dc14"},
		{"hostname", serverName(i)},
		{"instance-id", i.ID},
		{"public-ipv4", "192.0.2.1"},
		{"region", locationOf(i.Zone).NetworkZone},
	}
	leaf, ok := strings.CutPrefix(r.URL.Path, "/hetzner/v1/metadata")
	if ok && leaf == "" {
		var all strings.Builder
		for _, v := range values {
			all.WriteString(v[0] + ": " + v[1] + "\n")
		}
		return http.StatusOK, all.String()
	}
	for _, v := range values {
		if ok && leaf == "/"+v[0] {
			return http.StatusOK, v[1]
		}
	}
	return http.StatusNotFound, "not found"
}
