// Package fronts has every cloud that is simulated in one table, for what blockvol has to do on each.
package fronts

import (
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

// Front is a cloud's API for one account.
type Front interface {
	http.Handler

	// Metadata is the service that tells an instance who it is.
	Metadata(instance string) http.Handler
}

// Kind is one cloud.
type Kind struct {
	Provider string                    // PROVIDER, on its instances
	Cloud    cloud.Config              // the zones and ids that it has; all else is the test's to choose
	Limits   func(string) cloud.Bucket // that it documents, for cloud.Config
	Instance cloud.Instance            // a usual one
	New      func(*cloud.Cloud) Front

	// Settings are what blockvol needs on an instance, for which the API and the metadata service are at these URLs.
	Settings func(f Front, instance, api, metadata string) []string

	// Identity is how the kernel shows a volume's disk.
	Identity func(f Front, volume string) loop.Identity
}

// All are the clouds, in the order of their names.
var All = []Kind{
	{
		Provider: "aws",
		Cloud:    cloud.Config{Zones: []string{"eu-test-1a", "eu-test-1b"}},
		Limits:   ec2.Limits,
		Instance: cloud.Instance{Type: "m5.large", RootDevice: "/dev/xvda"},
		New:      func(c *cloud.Cloud) Front { return amazon{ec2.New(ec2.Config{Cloud: c, Region: "eu-test-1"})} },
		Settings: func(_ Front, _, api, metadata string) []string {
			return []string{"AWS_ENDPOINT_URL_EC2=" + api, "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + metadata}
		},
		Identity: func(_ Front, volume string) loop.Identity { return loop.NVMe(volume) },
	},
}

type amazon struct{ *ec2.Front }

func (a amazon) Metadata(instance string) http.Handler {
	return a.Front.Metadata(instance, ec2.MetadataOptions{})
}

// Disks returns the volumes that are no instance's root.
func Disks(c *cloud.Cloud) (volumes []cloud.Volume) {
	for _, v := range c.Volumes() {
		if len(v.Attachments) == 0 || !v.Attachments[0].DeleteOnTermination {
			volumes = append(volumes, v)
		}
	}
	return volumes
}
