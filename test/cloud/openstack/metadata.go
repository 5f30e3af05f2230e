package openstack

import (
	"encoding/json"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// Metadata returns an instance's metadata service.
func (f *Front) Metadata(instance string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		httpsim.ServeMetadata(f.cloud, instance, w, r, func() (int, string) {
			w.Header().Set("Content-Type", "application/json")
			if i, ok := f.cloud.Instance(instance); ok && r.Method == http.MethodGet && r.URL.Path == "/openstack/latest/meta_data.json" {
				return http.StatusOK, string(f.document(i))
			}
			return http.StatusNotFound, "404 Not Found"
		})
	})
}

func (f *Front) document(i cloud.Instance) []byte {
	content, err := json.Marshal(map[string]any{
		"uuid": i.ID, "name": i.ID, "hostname": i.ID + ".novalocal", "launch_index": 0, "project_id": Project,
		"availability_zone": i.Zone, "meta": map[string]string{}, "keys": []string{}, "devices": []string{}, "random_seed": "c2VlZA==",
	})
	if err != nil {
		panic(err) // impossible: it has only strings
	}
	return content
}

// Transport connects an instance's clients without sockets, see httpsim.InstanceTransport.
func (f *Front) Transport(instance string) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance))
}
