package ec2

import (
	"net/http"
	"slices"

	"github.com/blockvol/blockvol/test/cloud/wire"
)

// MetadataHosts are where Transport finds the metadata service.
var MetadataHosts = []string{"169.254.169.254", "metadata"}

// Transport returns what connects the clients of one instance without sockets: to the instance's metadata service, see
// MetadataHosts, and under every other host to EC2. The instance is who asks for metadata; EC2 knows the sender of a
// request by its credentials. Requests are handled in the goroutine that sends them, so that it works in a bubble of
// testing/synctest.
func (f *Front) Transport(instance string) http.RoundTripper {
	return f.TransportWith(instance, MetadataOptions{})
}

// TransportWith is Transport with a metadata service of that kind.
func (f *Front) TransportWith(instance string, options MetadataOptions) http.RoundTripper {
	metadata := f.Metadata(instance, options)
	return wire.Transport(func(host string) http.Handler {
		if slices.Contains(MetadataHosts, host) {
			return metadata
		}
		return f
	})
}
