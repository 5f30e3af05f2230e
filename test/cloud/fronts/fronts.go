// Package fronts has every cloud that is simulated in one table, for what blockvol has to do on each.
package fronts

import (
	"net/http"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/aws"
	"github.com/blockvol/blockvol/providers/digitalocean"
	"github.com/blockvol/blockvol/providers/hetzner"
	"github.com/blockvol/blockvol/providers/labels"
	"github.com/blockvol/blockvol/providers/linode"
	"github.com/blockvol/blockvol/providers/openstack"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	doFront "github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	hetznerFront "github.com/blockvol/blockvol/test/cloud/hetzner"
	linodeFront "github.com/blockvol/blockvol/test/cloud/linode"
	"github.com/blockvol/blockvol/test/cloud/loop"
	stackFront "github.com/blockvol/blockvol/test/cloud/openstack"
)

// Front is a cloud's API for one account.
type Front interface {
	http.Handler

	// Metadata is the service that tells an instance who it is.
	Metadata(instance string) http.Handler
}

// Kind is one cloud.
type Kind struct {
	Name     string                    // as people know it
	Provider string                    // PROVIDER, on its instances
	Cloud    cloud.Config              // the zones and ids that it has; all else is the test's to choose
	Limits   func(string) cloud.Bucket // that it documents, for cloud.Config
	Hourly   int                       // how many calls it allows in an hour, 0 if it does not count so
	Instance cloud.Instance            // a usual one
	New      func(*cloud.Cloud) Front

	// Settings are what blockvol needs on an instance, for which the API and the metadata service are at these URLs.
	Settings func(f Front, instance, api, metadata string) []string

	// Bus is how the kernel shows disks, Serial as what one. SCSI disks tell who made them.
	Bus             Bus
	Vendor, Product string
	Serial          func(f Front, volume string) string

	// Named tells whether a volume is what a cluster knows by that name.
	Named func(v cloud.Volume, cluster, name string) bool

	// Process starts blockvol's provider on an instance, without sockets.
	Process func(f Front, instance, cluster string) (providers.Provider, error)
}

// Bus is how disks are shown by a kernel.
type Bus string

// The buses.
const (
	NVMe   Bus = "nvme"
	SCSI   Bus = "scsi"
	Virtio Bus = "virtio"
)

// Identity is the file of sysfs that tells who a volume's device is.
func (k Kind) Identity(f Front, volume string) loop.Identity {
	serial := k.Serial(f, volume)
	switch k.Bus {
	case SCSI:
		return loop.SCSI(serial)
	case Virtio:
		return loop.Virtio(serial)
	default:
		return loop.NVMe(serial)
	}
}

// All are the clouds, in the order of their names.
var All = []Kind{EC2(nil), droplets, hcloud, linodes, stack}

// EC2 is the front whose instances have a role with that IAM policy, nil being all rights.
func EC2(policy []byte) Kind {
	return Kind{
		Name:     "EC2",
		Provider: "aws",
		Cloud:    cloud.Config{Zones: []string{"eu-test-1a", "eu-test-1b"}},
		Limits:   ec2.Limits,
		Instance: cloud.Instance{Type: "m7i.48xlarge", RootDevice: "/dev/xvda"},
		New: func(c *cloud.Cloud) Front {
			return amazon{ec2.New(ec2.Config{Cloud: c, Region: "eu-test-1", Policy: policy})}
		},
		Settings: func(_ Front, _, api, metadata string) []string {
			return []string{"AWS_ENDPOINT_URL_EC2=" + api, "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + metadata}
		},
		Bus:    NVMe,
		Serial: func(_ Front, volume string) string { return strings.Replace(volume, "-", "", 1) },
		Named:  func(v cloud.Volume, _, name string) bool { return v.Tags["blockvol:name"] == name },
		Process: func(f Front, instance, cluster string) (providers.Provider, error) {
			return aws.New(aws.Config{Cluster: cluster, HTTPClient: &http.Client{Transport: f.(amazon).Transport(instance)}})
		},
	}
}

var droplets = Kind{
	Name:     "DigitalOcean",
	Provider: "digitalocean",
	Cloud:    cloud.Config{Zones: []string{"fra1", "ams3"}, ID: doFront.ID},
	Limits:   doFront.Limits,
	Hourly:   5000,
	New:      func(c *cloud.Cloud) Front { return doFront.New(doFront.Config{Cloud: c, Most: 15}) },
	Settings: func(f Front, instance, api, metadata string) []string {
		return []string{"DIGITALOCEAN_TOKEN=" + f.(*doFront.Front).Token(instance), "DIGITALOCEAN_API_URL=" + api, "DIGITALOCEAN_METADATA_URL=" + metadata}
	},
	Bus: SCSI, Vendor: "DO", Product: "Volume",
	Serial: func(f Front, volume string) string { return f.(*doFront.Front).Serial(volume) },
	Named: func(v cloud.Volume, cluster, name string) bool {
		return v.Tags["name"] == labels.Name(cluster, name, 36)
	},
	Process: func(f Front, instance, cluster string) (providers.Provider, error) {
		front := f.(*doFront.Front)
		return digitalocean.New(digitalocean.Config{Cluster: cluster, Token: cloudtest.Token("TOKEN", front.Token(instance)), Transport: front.Transport(instance)})
	},
}

var hcloud = Kind{
	Name:     "Hetzner",
	Provider: "hetzner",
	Cloud:    cloud.Config{Zones: []string{"fsn1", "nbg1"}, ID: hetznerFront.ID},
	Limits:   hetznerFront.Limits,
	Hourly:   3600,
	New:      func(c *cloud.Cloud) Front { return hetznerFront.New(hetznerFront.Config{Cloud: c}) },
	Settings: func(f Front, instance, api, metadata string) []string {
		return []string{"HCLOUD_TOKEN=" + f.(*hetznerFront.Front).Token(instance), "HCLOUD_ENDPOINT=" + api + "/v1", "HCLOUD_METADATA_URL=" + metadata}
	},
	Bus: SCSI, Vendor: "HC", Product: "Volume",
	Serial: func(_ Front, volume string) string { return volume },
	Named: func(v cloud.Volume, cluster, name string) bool {
		return v.Tags["name"] == labels.Name(cluster, name, 63)
	},
	Process: func(f Front, instance, cluster string) (providers.Provider, error) {
		front := f.(*hetznerFront.Front)
		return hetzner.New(hetzner.Config{Cluster: cluster, Token: cloudtest.Token("TOKEN", front.Token(instance)), Transport: front.Transport(instance)})
	},
}

var linodes = Kind{
	Name:     "Linode",
	Provider: "linode",
	Cloud:    cloud.Config{Zones: []string{"eu-test", "us-test"}, ID: linodeFront.ID},
	Limits:   linodeFront.Limits,
	Instance: cloud.Instance{Type: "g6-standard-32"},
	New:      func(c *cloud.Cloud) Front { return linodeFront.New(linodeFront.Config{Cloud: c}) },
	Settings: func(f Front, instance, api, metadata string) []string {
		return []string{"LINODE_TOKEN=" + f.(*linodeFront.Front).Token(instance), "LINODE_API_URL=" + api + "/v4", "LINODE_METADATA_URL=" + metadata}
	},
	Bus: SCSI, Vendor: "Linode", Product: "Volume",
	Serial: func(f Front, volume string) string { return f.(*linodeFront.Front).Serial(volume) },
	Named: func(v cloud.Volume, cluster, name string) bool {
		return v.Tags["label"] == labels.Name(cluster, name, 32)
	},
	Process: func(f Front, instance, cluster string) (providers.Provider, error) {
		front := f.(*linodeFront.Front)
		return linode.New(linode.Config{Cluster: cluster, Token: cloudtest.Token("TOKEN", front.Token(instance)), Transport: front.Transport(instance)})
	},
}

var stack = Kind{
	Name:     "OpenStack",
	Provider: "openstack",
	Cloud:    cloud.Config{Zones: []string{"nova"}, ID: stackFront.ID},
	Limits:   stackFront.Limits,
	New:      func(c *cloud.Cloud) Front { return stackFront.New(stackFront.Config{Cloud: c, Gigabytes: 100_000}) },
	Settings: func(f Front, instance, api, metadata string) []string {
		id, secret := f.(*stackFront.Front).Credentials(instance)
		return []string{
			"OS_AUTH_URL=" + api + "/identity/v3", "OS_APPLICATION_CREDENTIAL_ID=" + id, "OS_APPLICATION_CREDENTIAL_SECRET=" + secret,
			"OS_METADATA_URL=" + metadata + "/openstack/latest/meta_data.json",
		}
	},
	Bus:    Virtio,
	Serial: func(_ Front, volume string) string { return volume },
	Named: func(v cloud.Volume, cluster, name string) bool {
		return v.Tags["blockvol:name"] == name
	},
	Process: func(f Front, instance, cluster string) (providers.Provider, error) {
		front := f.(*stackFront.Front)
		id, secret := front.Credentials(instance)
		way := front.Transport(instance)
		return openstack.New(openstack.Config{
			Cluster: cluster, Auth: gophercloud.AuthOptions{IdentityEndpoint: "http://openstack/identity/v3", ApplicationCredentialID: id},
			Secret: cloudtest.Token("SECRET", secret), Transport: way, Neighbour: &http.Client{Transport: way},
		})
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
