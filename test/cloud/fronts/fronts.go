// Package fronts lists the simulated clouds and how to run blockvol on each.
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

// Front is the front end of a cloud: its API for one account.
type Front interface {
	http.Handler

	// Metadata returns an instance's metadata service.
	Metadata(instance string) http.Handler
}

// Kind describes a cloud.
type Kind struct {
	Name     string                    // for people
	Provider string                    // setting PROVIDER
	Cloud    cloud.Config              // zones and IDs; the test sets the rest
	Limits   func(string) cloud.Bucket // the documented rate limits, for cloud.Config
	Hourly   int                       // documented calls per hour; 0 if the limit is not hourly
	Instance cloud.Instance            // a typical one
	New      func(*cloud.Cloud) Front

	// Settings returns blockvol's settings on an instance, given the URLs of the API and the metadata service.
	Settings func(f Front, instance, api, metadata string) []string

	// Bus and Serial are how the kernel shows disks. Vendor and Product are for SCSI.
	Bus             Bus
	Vendor, Product string
	Serial          func(f Front, volume string) string

	// Named reports whether a volume has this name in a cluster.
	Named func(v cloud.Volume, cluster, name string) bool

	// Process starts blockvol's provider on an instance, without sockets.
	Process func(f Front, instance, cluster string) (providers.Provider, error)
}

// Bus is the bus of a cloud's disks.
type Bus string

// The buses.
const (
	NVMe   Bus = "nvme"
	SCSI   Bus = "scsi"
	Virtio Bus = "virtio"
)

// Identity returns how sysfs identifies a volume's device.
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

// All are all clouds, by name.
var All = []Kind{EC2(nil), droplets, hcloud, linodes, stack}

// EC2 is EC2 with this IAM policy for its instances; nil allows everything.
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
	New:      func(c *cloud.Cloud) Front { return hetznerFront.New(hetznerFront.Config{Cloud: c, Private: true}) },
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
		transport := front.Transport(instance)
		return openstack.New(openstack.Config{
			Cluster: cluster, Auth: gophercloud.AuthOptions{IdentityEndpoint: "http://openstack/identity/v3", ApplicationCredentialID: id},
			Secret: cloudtest.Token("SECRET", secret), Transport: transport, Neighbour: &http.Client{Transport: transport},
		})
	},
}

type amazon struct{ *ec2.Front }

func (a amazon) Metadata(instance string) http.Handler {
	return a.Front.Metadata(instance, ec2.MetadataOptions{})
}

// Disks returns the volumes except root volumes.
func Disks(c *cloud.Cloud) (volumes []cloud.Volume) {
	for _, v := range c.Volumes() {
		if len(v.Attachments) == 0 || !v.Attachments[0].DeleteOnTermination {
			volumes = append(volumes, v)
		}
	}
	return volumes
}
