package ec2

import (
	"net/http"

	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// MetadataHost is the address of the metadata service.
const MetadataHost = httpsim.MetadataHost

// Transport connects an instance's clients without sockets, see httpsim.InstanceTransport. The instance matters for metadata
// only: the API identifies it by its credentials.
func (f *Front) Transport(instance string) http.RoundTripper {
	return f.TransportWith(instance, MetadataOptions{})
}

// TransportWith is Transport with options for the metadata service.
func (f *Front) TransportWith(instance string, options MetadataOptions) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance, options))
}
