package openstack

import (
	"encoding/json"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/wire"
)

// MetadataAction is the action under which rules of package cloud meet requests to metadata services. The code of Fail is an
// HTTP status then.
const MetadataAction = "Metadata"

// MetadataHost is where Transport finds the metadata service.
const MetadataHost = "169.254.169.254"

// Metadata returns the metadata service of one instance.
func (f *Front) Metadata(instance string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status, body := http.StatusNotFound, []byte("404 Not Found")
		call := cloud.Call{Action: MetadataAction, Caller: instance, Aside: true}
		fault, err := f.cloud.Do(r.Context(), call, func(*cloud.Request) error {
			if i, ok := f.cloud.Instance(instance); ok && r.Method == http.MethodGet && r.URL.Path == "/openstack/latest/meta_data.json" {
				status, body = http.StatusOK, f.document(i)
			}
			return nil
		})
		switch {
		case r.Context().Err() != nil, fault == cloud.LoseAnswer:
			panic(http.ErrAbortHandler)
		case err != nil:
			refusal := translate(err)
			status, body = refusal.Status, nil
		case fault == cloud.Garbage:
			body = []byte("<html><body>Please sign in to the network</body></html")
		case fault == cloud.Truncate:
			body = body[:len(body)/2]
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		w.Write(body) //nolint:errcheck // a client that went away has nothing to be told
	})
}

func (f *Front) document(i cloud.Instance) []byte {
	content, err := json.Marshal(map[string]any{
		"uuid": i.ID, "name": i.ID, "hostname": i.ID + ".novalocal", "launch_index": 0, "project_id": Project,
		"availability_zone": i.Zone, "meta": map[string]string{}, "keys": []string{}, "devices": []string{}, "random_seed": "c2VlZA==",
	})
	if err != nil {
		panic(err) // strings
	}
	return content
}

// Transport returns what connects the clients of one instance without sockets: to its metadata service, and under every other
// host to the cloud. See package wire.
func (f *Front) Transport(instance string) http.RoundTripper {
	metadata := f.Metadata(instance)
	return wire.Transport(func(host string) http.Handler {
		if host == MetadataHost {
			return metadata
		}
		return f
	})
}
