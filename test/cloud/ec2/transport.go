package ec2

import (
	"net/http"

	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// MetadataHost is where Transport finds the metadata service.
const MetadataHost = httpsim.MetadataHost

// Transport returns what connects the clients of one instance without sockets, see httpsim.InstanceTransport. The instance is who asks for
// metadata; EC2 knows the sender of a request by its credentials.
func (f *Front) Transport(instance string) http.RoundTripper {
	return f.TransportWith(instance, MetadataOptions{})
}

// TransportWith is Transport with a metadata service of that kind.
func (f *Front) TransportWith(instance string, options MetadataOptions) http.RoundTripper {
	return httpsim.InstanceTransport(f, f.Metadata(instance, options))
}
