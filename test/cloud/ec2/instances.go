package ec2

import (
	"slices"
	"strings"

	"github.com/blockvol/blockvol/test/cloud"
)

// instanceType has the volume limits of an instance type. See
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/volume_limits.html
type instanceType struct {
	name        string
	hypervisor  string // nitro or xen
	nvme        string // required, supported, unsupported
	limitType   string // shared with network interfaces, or dedicated to volumes
	attachments int
	interfaces  int // maximum
	arch        string
}

// The types by name. A shared limit does not count the first network interface. AWS's API says shared for Xen types too, but
// there only volumes count.
var types = []instanceType{
	{"c7g.large", "nitro", "required", "shared", 27, 3, "arm64"},
	{"m5.large", "nitro", "required", "shared", 27, 3, "x86_64"},
	{"m7i.48xlarge", "nitro", "required", "dedicated", 128, 15, "x86_64"},
	{"m7i.large", "nitro", "required", "dedicated", 32, 3, "x86_64"},
	{"t2.micro", "xen", "unsupported", "shared", 39, 2, "x86_64"},
	{"t3.micro", "nitro", "required", "shared", 27, 2, "x86_64"},
}

// typeOf returns a type. An unknown one is like most.
func typeOf(name string) instanceType {
	for _, t := range types {
		if t.name == name {
			return t
		}
	}
	return instanceType{name, "nitro", "required", "shared", 27, 2, "x86_64"}
}

type instanceItem struct {
	InstanceID   string `xml:"instanceId"`
	ImageID      string `xml:"imageId"`
	State        state  `xml:"instanceState"`
	Type         string `xml:"instanceType"`
	LaunchTime   string `xml:"launchTime"`
	Zone         string `xml:"placement>availabilityZone"`
	Tenancy      string `xml:"placement>tenancy"`
	Address      string `xml:"privateIpAddress"`
	Architecture string `xml:"architecture"`
	Hypervisor   string `xml:"hypervisor"`
	RootType     string `xml:"rootDeviceType"`
	RootDevice   string `xml:"rootDeviceName,omitempty"`
	Mappings     []struct {
		Device string      `xml:"deviceName"`
		EBS    mappingItem `xml:"ebs"`
	} `xml:"blockDeviceMapping>item"`
	Interfaces []interfaceItem `xml:"networkInterfaceSet>item"`
	Tags       []tagItem       `xml:"tagSet>item"`
}

type state struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

type mappingItem struct {
	VolumeID            string `xml:"volumeId"`
	Status              string `xml:"status"`
	AttachTime          string `xml:"attachTime"`
	DeleteOnTermination bool   `xml:"deleteOnTermination"`
}

type interfaceItem struct {
	ID     string `xml:"networkInterfaceId"`
	Status string `xml:"status"`
}

var stateCodes = map[cloud.InstanceState]int{
	cloud.Pending: 0, cloud.Running: 16, cloud.ShuttingDown: 32, cloud.Terminated: 48, cloud.Stopping: 64, cloud.Stopped: 80,
}

// mapped is an instance with its volumes as a read shows them.
type mapped struct {
	cloud.Instance
	volumes []cloud.Volume
}

func mapVolumes(instances []cloud.Instance, volumes []cloud.Volume) []mapped {
	all := make([]mapped, 0, len(instances))
	for _, i := range instances {
		m := mapped{Instance: i}
		for _, v := range volumes {
			if slices.Contains(attachmentsOf(v, func(a cloud.Attachment) string { return a.Instance }), i.ID) {
				m.volumes = append(m.volumes, v)
			}
		}
		all = append(all, m)
	}
	return all
}

func (m mapped) item() instanceItem {
	t := typeOf(m.Type)
	item := instanceItem{
		InstanceID: m.ID, ImageID: imageID, State: state{stateCodes[m.State], string(m.State)}, Type: m.Type,
		LaunchTime: stamp(m.LaunchedAt), Zone: m.Zone, Tenancy: "default", Address: m.Address, Architecture: t.arch,
		Hypervisor: "xen", RootType: "ebs", RootDevice: m.RootDevice, Tags: tagItems(m.Tags), // "xen" is also right for Nitro
	}
	for _, v := range m.volumes {
		for _, a := range v.Attachments {
			item.Mappings = append(item.Mappings, struct {
				Device string      `xml:"deviceName"`
				EBS    mappingItem `xml:"ebs"`
			}{a.Device, mappingItem{v.ID, string(a.State), stamp(a.Since), a.DeleteOnTermination}})
		}
	}
	for n := range m.Interfaces {
		item.Interfaces = append(item.Interfaces, interfaceItem{"eni-" + m.ID[2:len(m.ID)-1] + integer(n)[0], "in-use"})
	}
	return item
}

// imageID is the image of all instances.
const imageID = "ami-0b10c6b10c6b10c6b"

func (m mapped) mappings(field func(cloud.Volume, cloud.Attachment) string) (values []string) {
	for _, v := range m.volumes {
		for _, a := range v.Attachments {
			values = append(values, field(v, a))
		}
	}
	return values
}

// instanceFields are the filters of DescribeInstances.
func instanceFields(m mapped, name string) ([]string, bool) {
	switch name {
	case "architecture":
		return []string{typeOf(m.Type).arch}, true
	case "availability-zone":
		return []string{m.Zone}, true
	case "block-device-mapping.device-name":
		return m.mappings(func(_ cloud.Volume, a cloud.Attachment) string { return a.Device }), true
	case "block-device-mapping.status":
		return m.mappings(func(_ cloud.Volume, a cloud.Attachment) string { return string(a.State) }), true
	case "block-device-mapping.volume-id":
		return m.mappings(func(v cloud.Volume, _ cloud.Attachment) string { return v.ID }), true
	case "image-id":
		return []string{imageID}, true
	case "instance-id":
		return []string{m.ID}, true
	case "instance-state-code":
		return integer(stateCodes[m.State]), true
	case "instance-state-name":
		return []string{string(m.State)}, true
	case "instance-type":
		return []string{m.Type}, true
	case "launch-time":
		return []string{stamp(m.LaunchedAt)}, true
	case "private-ip-address":
		return []string{m.Address}, true
	case "root-device-name":
		return []string{m.RootDevice}, true
	case "root-device-type":
		return []string{"ebs"}, true
	default:
		return tagFields(m.Tags, name)
	}
}

func describeInstances(r *request) (any, error) {
	page, next, err := read[mapped]{
		param: "InstanceId", kind: "i", shown: "instancesSet",
		id:      func(m mapped) string { return m.ID },
		key:     func(m mapped) string { return byAge(m.LaunchedAt, m.ID) },
		missing: noInstance,
		fields:  instanceFields,
		least:   5, most: 1000,
	}.of(r, everything(mapVolumes(r.Instances(), r.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 }))))
	if err != nil {
		return nil, err
	}
	type reservation struct {
		ID        string         `xml:"reservationId"`
		Owner     string         `xml:"ownerId"`
		Instances []instanceItem `xml:"instancesSet>item"`
	}
	answer := struct {
		Reservations []reservation `xml:"reservationSet>item"`
		Next         string        `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, m := range page {
		answer.Reservations = append(answer.Reservations, reservation{"r-" + m.ID[2:], r.front.cfg.Account, []instanceItem{m.item()}})
	}
	return answer, nil
}

type typeItem struct {
	Name       string `xml:"instanceType"`
	Current    bool   `xml:"currentGeneration"`
	BareMetal  bool   `xml:"bareMetal"`
	Hypervisor string `xml:"hypervisor"`
	Arch       string `xml:"processorInfo>supportedArchitectures>item"`
	EBS        struct {
		Optimized  string `xml:"ebsOptimizedSupport"`
		Encryption string `xml:"encryptionSupport"`
		NVMe       string `xml:"nvmeSupport"`
		Most       int    `xml:"maximumEbsAttachments"`
		LimitType  string `xml:"attachmentLimitType"`
	} `xml:"ebsInfo"`
	Storage    bool `xml:"instanceStorageSupported"`
	Interfaces int  `xml:"networkInfo>maximumNetworkInterfaces"`
}

func typeFields(t instanceType, name string) ([]string, bool) {
	switch name {
	case "bare-metal", "instance-storage-supported":
		return boolean(false), true
	case "current-generation":
		return boolean(t.hypervisor == "nitro"), true
	case "ebs-info.attachment-limit-type":
		return []string{t.limitType}, true
	case "ebs-info.maximum-ebs-attachments":
		return integer(t.attachments), true
	case "ebs-info.nvme-support":
		return []string{t.nvme}, true
	case "hypervisor":
		return []string{t.hypervisor}, true
	case "instance-type":
		return []string{t.name}, true
	case "processor-info.supported-architecture":
		return []string{t.arch}, true
	default:
		return nil, false
	}
}

func describeInstanceTypes(r *request) (any, error) {
	page, next, err := read[instanceType]{
		param: "InstanceType", shown: "instanceTypes",
		id:  func(t instanceType) string { return t.name },
		key: func(t instanceType) string { return t.name },
		missing: func(id string) error {
			return refuse("InvalidInstanceType", "The following supplied instance types do not exist: [%s]", id)
		},
		fields: typeFields,
		least:  5, most: 100,
	}.of(r, everything(slices.Clone(types)))
	if err != nil {
		return nil, err
	}
	answer := struct {
		Types []typeItem `xml:"instanceTypeSet>item"`
		Next  string     `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, t := range page {
		item := typeItem{Name: t.name, Current: t.hypervisor == "nitro", Hypervisor: t.hypervisor, Arch: t.arch, Interfaces: t.interfaces}
		item.EBS.Optimized, item.EBS.Encryption = "default", "supported"
		item.EBS.NVMe, item.EBS.Most, item.EBS.LimitType = t.nvme, t.attachments, t.limitType
		answer.Types = append(answer.Types, item)
	}
	return answer, nil
}

// arnOf returns an object's ARN, for policies.
func (f *Front) arnOf(kind, id string) string {
	account := f.cfg.Account
	if kind == "snapshot" {
		account = ""
	}
	return strings.Join([]string{"arn", "aws", "ec2", f.cfg.Region, account, kind + "/" + id}, ":")
}
