package ec2

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
)

const gib = 1 << 30

// kind describes a volume type: sizes in GiB, throughput in MiB/s. See
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateVolume.html and, for the ratios,
// https://docs.aws.amazon.com/ebs/latest/userguide/ebs-volume-types.html
type kind struct {
	minSize, maxSize             int64
	minIOPS, maxIOPS             int // 0: IOPS cannot be set
	defaultIOPS                  int // 0: IOPS must be set, if they can be
	perGiB                       int // IOPS per GiB
	minThroughput, maxThroughput int
}

var kinds = map[string]kind{
	"gp2":      {minSize: 1, maxSize: 16384},
	"gp3":      {1, 65536, 3000, 80000, 3000, 500, 125, 2000},
	"io1":      {minSize: 4, maxSize: 16384, minIOPS: 100, maxIOPS: 64000, perGiB: 50},
	"io2":      {minSize: 4, maxSize: 65536, minIOPS: 100, maxIOPS: 256000, perGiB: 1000},
	"st1":      {minSize: 125, maxSize: 16384},
	"sc1":      {minSize: 125, maxSize: 16384},
	"standard": {minSize: 1, maxSize: 1024},
}

// shape checks the shape of a volume and sets defaults.
func shape(size int64, name string, iops, throughput *int) (cloud.Shape, error) {
	s := cloud.Shape{Size: size * gib, Type: name}
	k, ok := kinds[name]
	switch {
	case !ok:
		return s, refuse("InvalidParameterValue", "Value (%s) for parameter volumeType is invalid. Expected one of: [gp2, gp3, io1, io2, sc1, st1, standard]", name)
	case size < k.minSize:
		return s, refuse("InvalidParameterValue", "Volume of %dGiB is too small for volume type %s; minimum is %dGiB.", size, name, k.minSize)
	case size > k.maxSize:
		return s, refuse("InvalidParameterValue", "Volume of %dGiB is too large for volume type %s; maximum is %dGiB.", size, name, k.maxSize)
	case k.maxIOPS == 0 && iops != nil:
		return s, refuse("InvalidParameterCombination", "The parameter iops is not supported for %s volumes.", name)
	case k.maxIOPS > 0 && k.defaultIOPS == 0 && iops == nil:
		return s, refuse("MissingParameter", "The request must contain the parameter iops for volume type %s", name)
	case iops != nil && (*iops < k.minIOPS || *iops > k.maxIOPS):
		return s, refuse("InvalidParameterValue", "Volume iops of %d is out of range for volume type %s; it must be between %d and %d.", *iops, name, k.minIOPS, k.maxIOPS)
	case k.maxThroughput == 0 && throughput != nil:
		return s, refuse("InvalidParameterCombination", "The parameter throughput is not supported for %s volumes.", name)
	case throughput != nil && (*throughput < k.minThroughput || *throughput > k.maxThroughput):
		return s, refuse("InvalidParameterValue", "Throughput of %d MiB/s is out of range for volume type %s; it must be between %d and %d.", *throughput, name, k.minThroughput, k.maxThroughput)
	}
	s.IOPS, s.Throughput = k.defaultIOPS, k.minThroughput
	if name == "gp2" {
		s.IOPS = int(min(16000, max(100, 3*size)))
	}
	if iops != nil {
		s.IOPS = *iops
	}
	if throughput != nil {
		s.Throughput = *throughput
	}
	// gp3 has 3,000 IOPS and 125 MiB/s at any size.
	if k.perGiB > 0 && s.IOPS > k.defaultIOPS && int64(s.IOPS) > size*int64(k.perGiB) {
		return s, refuse("InvalidParameterValue", "Iops to volume size ratio of %f is too high; maximum is %d.", float64(s.IOPS)/float64(size), k.perGiB)
	}
	if k.maxThroughput > 0 && float64(s.Throughput) > float64(s.IOPS)/4 {
		return s, refuse("InvalidParameterValue", "Throughput (MiBps) to iops ratio of %f is too high; maximum is 0.250000 MiBps per iops.", float64(s.Throughput)/float64(s.IOPS))
	}
	return s, nil
}

type volumeItem struct {
	VolumeID         string           `xml:"volumeId"`
	Size             int64            `xml:"size"`
	SnapshotID       string           `xml:"snapshotId"`
	AvailabilityZone string           `xml:"availabilityZone"`
	Status           string           `xml:"status"`
	CreateTime       string           `xml:"createTime"`
	Attachments      []attachmentItem `xml:"attachmentSet>item"`
	Tags             []tagItem        `xml:"tagSet>item"`
	VolumeType       string           `xml:"volumeType"`
	IOPS             int              `xml:"iops,omitempty"`
	Throughput       int              `xml:"throughput,omitempty"`
	Encrypted        bool             `xml:"encrypted"`
	KMSKeyID         string           `xml:"kmsKeyId,omitempty"`
	MultiAttach      bool             `xml:"multiAttachEnabled"`
}

type attachmentItem struct {
	VolumeID            string `xml:"volumeId"`
	InstanceID          string `xml:"instanceId"`
	Device              string `xml:"device"`
	Status              string `xml:"status"`
	AttachTime          string `xml:"attachTime"`
	DeleteOnTermination bool   `xml:"deleteOnTermination"`
}

type tagItem struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func tagItems(tags map[string]string) (items []tagItem) {
	for key, value := range tags {
		items = append(items, tagItem{key, value})
	}
	slices.SortFunc(items, func(a, b tagItem) int { return strings.Compare(a.Key, b.Key) })
	return items
}

func (f *Front) volumeItem(v cloud.Volume) volumeItem {
	item := volumeItem{
		VolumeID: v.ID, Size: v.Size / gib, SnapshotID: v.SnapshotID, AvailabilityZone: v.Zone, Status: string(v.State),
		CreateTime: stamp(v.CreatedAt), Tags: tagItems(v.Tags), VolumeType: v.Type, IOPS: v.IOPS, Throughput: v.Throughput,
		Encrypted: v.Encrypted, KMSKeyID: v.KMSKey,
	}
	for _, a := range v.Attachments {
		item.Attachments = append(item.Attachments, attachmentOf(v.ID, a))
	}
	return item
}

func attachmentOf(volume string, a cloud.Attachment) attachmentItem {
	return attachmentItem{volume, a.Instance, a.Device, string(a.State), stamp(a.Since), a.DeleteOnTermination}
}

// volumeFields are the filters of DescribeVolumes.
func volumeFields(v cloud.Volume, name string) ([]string, bool) {
	switch name {
	case "attachment.attach-time":
		return attachmentsOf(v, func(a cloud.Attachment) string { return stamp(a.Since) }), true
	case "attachment.delete-on-termination":
		return attachmentsOf(v, func(a cloud.Attachment) string { return boolean(a.DeleteOnTermination)[0] }), true
	case "attachment.device":
		return attachmentsOf(v, func(a cloud.Attachment) string { return a.Device }), true
	case "attachment.instance-id":
		return attachmentsOf(v, func(a cloud.Attachment) string { return a.Instance }), true
	case "attachment.status":
		return attachmentsOf(v, func(a cloud.Attachment) string { return string(a.State) }), true
	case "availability-zone":
		return []string{v.Zone}, true
	case "create-time":
		return []string{stamp(v.CreatedAt)}, true
	case "encrypted":
		return boolean(v.Encrypted), true
	case "fast-restored", "multi-attach-enabled", "operator.managed":
		return boolean(false), true
	case "size":
		return integer(v.Size / gib), true
	case "snapshot-id":
		return []string{v.SnapshotID}, true
	case "status":
		return []string{string(v.State)}, true
	case "volume-id":
		return []string{v.ID}, true
	case "volume-type":
		return []string{v.Type}, true
	default:
		return tagFields(v.Tags, name)
	}
}

func describeVolumes(r *request) (any, error) {
	page, next, err := read[cloud.Volume]{
		param: "VolumeId", kind: "vol", shown: "volumes",
		id:      func(v cloud.Volume) string { return v.ID },
		key:     func(v cloud.Volume) string { return byAge(v.CreatedAt, v.ID) },
		missing: noVolume,
		fields:  volumeFields,
		least:   5, most: 500, capped: true,
	}.of(r, r.VolumesThat)
	if err != nil {
		return nil, err
	}
	answer := struct {
		Volumes []volumeItem `xml:"volumeSet>item"`
		Next    string       `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, v := range page {
		answer.Volumes = append(answer.Volumes, r.front.volumeItem(v))
	}
	return answer, nil
}

// token is the result of a CreateVolume with a client token.
type token struct {
	mark   string // fingerprint of the request
	answer volumeItem
	burnt  bool // the create failed
	since  time.Time
}

// tokenLife is how long AWS keeps a token at least.
const tokenLife = 24 * time.Hour

func createVolume(r *request) (any, error) {
	spec, err := r.front.volumeSpec(r)
	if err != nil {
		return nil, err
	}
	name := r.params.get("ClientToken")
	if name != "" && !clientToken.MatchString(name) {
		return nil, refuse("InvalidParameterValue", "Value (%s) for parameter ClientToken is invalid. It must be 1 to 64 ASCII characters.", name)
	}
	f := r.front
	f.mu.Lock() // calls with the same token make one volume
	defer f.mu.Unlock()
	mark := r.params.fingerprint()
	if known := f.tokens[name]; name != "" && known != nil && time.Since(known.since) < tokenLife {
		if known.burnt || known.mark != mark {
			return nil, refuse("IdempotentParameterMismatch", "Client token already used before, but with different parameters")
		}
		return known.answer, nil
	}
	v, err := r.CreateVolume(spec)
	item := f.volumeItem(v)
	if name != "" {
		f.tokens[name] = &token{mark, item, err != nil || spec.Doomed, time.Now()}
	}
	switch {
	case errors.Is(err, cloud.ErrNoSnapshot):
		return nil, noSnapshot(spec.SnapshotID)
	case errors.Is(err, cloud.ErrState):
		return nil, refuse("IncorrectState", "Snapshot is in invalid state - %s", cloud.SnapshotPending)
	case errors.Is(err, cloud.ErrTooSmall):
		return nil, refuse("InvalidParameterValue", "The volume size is too small for snapshot '%s'.", spec.SnapshotID)
	case err != nil:
		return nil, err
	}
	return item, nil
}

// volumeSpec checks the parameters of CreateVolume that do not refer to other objects.
func (f *Front) volumeSpec(r *request) (spec cloud.VolumeSpec, err error) {
	p := r.params
	if err := p.need("AvailabilityZone"); err != nil {
		return spec, err
	}
	spec.Zone, spec.SnapshotID = p.get("AvailabilityZone"), p.get("SnapshotId")
	if !slices.Contains(f.cloud.Zones(), spec.Zone) {
		return spec, refuse("InvalidZone.NotFound", "The zone '%s' does not exist.", spec.Zone)
	}
	size, err := p.number("Size")
	if err != nil {
		return spec, err
	}
	if spec.SnapshotID != "" {
		if err := malformed("snap", spec.SnapshotID, "snapshotId"); err != nil {
			return spec, err
		}
	}
	if size == nil {
		if spec.SnapshotID == "" {
			return spec, refuse("MissingParameter", "The request must contain the parameter size/snapshot")
		}
		size = f.snapshotSize(r, spec.SnapshotID)
	}
	iops, err := p.number("Iops")
	if err != nil {
		return spec, err
	}
	throughput, err := p.number("Throughput")
	if err != nil {
		return spec, err
	}
	name := p.get("VolumeType")
	if name == "" {
		name = "gp2"
	}
	if spec.Shape, err = shape(int64(*size), name, iops, throughput); err != nil {
		return spec, err
	}
	if multi, err := p.truth("MultiAttachEnabled"); err != nil || multi {
		return spec, errors.Join(err, refuse("InvalidParameterCombination", "Multi-Attach is not simulated."))
	}
	if spec.Encrypted, err = p.truth("Encrypted"); err != nil {
		return spec, err
	}
	if err := f.encrypt(&spec, p.get("KmsKeyId")); err != nil {
		return spec, err
	}
	spec.Tags, err = p.specifiedTags("volume")
	return spec, err
}

// encrypt sets the key. AWS checks it only after accepting the volume.
func (f *Front) encrypt(spec *cloud.VolumeSpec, key string) error {
	switch {
	case key != "" && !spec.Encrypted:
		return refuse("InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set.")
	case spec.Encrypted && key == "":
		key = "aws-ebs-default"
	}
	spec.Doomed = strings.Contains(key, "invalid")
	if key != "" && !strings.HasPrefix(key, "arn:") {
		key = fmt.Sprintf("arn:aws:kms:%s:%s:key/%s", f.cfg.Region, f.cfg.Account, key)
	}
	spec.KMSKey = key
	return nil
}

// snapshotSize returns the default size of a volume from a snapshot. It is arbitrary if CreateVolume will refuse the volume.
func (f *Front) snapshotSize(r *request, id string) *int {
	size := 1
	for _, s := range f.cloud.Snapshots() {
		if s.ID == id {
			size = int(s.Size / gib)
		}
	}
	return &size
}

func deleteVolume(r *request) (any, error) {
	id, err := r.idParam("vol", "VolumeId")
	if err != nil {
		return nil, err
	}
	err = r.DeleteVolume(id)
	switch {
	case errors.Is(err, cloud.ErrNoVolume):
		return nil, noVolume(id)
	case errors.Is(err, cloud.ErrInUse):
		v, _ := r.front.cloud.Volume(id)
		holder := strings.Join(attachmentsOf(v, func(a cloud.Attachment) string { return a.Instance }), ", ")
		return nil, refuse("VolumeInUse", "Volume %s is currently attached to %s", id, holder)
	case errors.Is(err, cloud.ErrState):
		return nil, refuse("IncorrectState", "The volume '%s' is in the 'creating' state.", id)
	}
	return done{true}, err
}

// idParam returns a required ID.
func (r *request) idParam(kind, name string) (string, error) {
	if err := r.params.need(name); err != nil {
		return "", err
	}
	id := r.params.get(name)
	return id, malformed(kind, id, strings.ToLower(name[:1])+name[1:])
}

// The limits of modifications. See https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyVolume.html
const (
	modifications       = 4
	modificationsWithin = 24 * time.Hour
)

func modifyVolume(r *request) (any, error) {
	id, err := r.idParam("vol", "VolumeId")
	if err != nil {
		return nil, err
	}
	p := r.params
	size, err := p.number("Size")
	if err != nil {
		return nil, err
	}
	iops, err := p.number("Iops")
	if err != nil {
		return nil, err
	}
	throughput, err := p.number("Throughput")
	if err != nil {
		return nil, err
	}
	name := p.get("VolumeType")
	if size == nil && iops == nil && throughput == nil && name == "" {
		return nil, refuse("InvalidParameterCombination", "At least one of size, iops, throughput, multiAttachEnabled or volumeType must be specified.")
	}
	m, err := r.ModifyVolume(id, func(v cloud.Volume) (cloud.Shape, error) {
		if err := modifiable(v); err != nil {
			return cloud.Shape{}, err
		}
		wanted := v.Size / gib
		if size != nil {
			wanted = int64(*size)
		}
		if wanted < v.Size/gib {
			return cloud.Shape{}, refuse("InvalidParameterValue", "New size cannot be smaller than existing size")
		}
		if name == "" || name == v.Type {
			name = v.Type
			keep(&iops, v.IOPS, kinds[name].maxIOPS > 0)
			keep(&throughput, v.Throughput, kinds[name].maxThroughput > 0)
		}
		if kinds[name].maxIOPS > 0 { // the default of the new type
			keep(&iops, 3000, true)
		}
		return shape(wanted, name, iops, throughput)
	})
	switch {
	case errors.Is(err, cloud.ErrNoVolume):
		return nil, noVolume(id)
	case errors.Is(err, cloud.ErrState):
		return nil, refuse("IncorrectState", "The volume '%s' cannot be modified in its state.", id)
	case err != nil:
		return nil, err
	}
	return struct {
		Modification modificationItem `xml:"volumeModification"`
	}{modificationOf(id, m)}, nil
}

// keep sets a value that was not requested to the current one.
func keep(wanted **int, had int, possible bool) {
	if *wanted == nil && possible {
		*wanted = &had
	}
}

// modifiable refuses a modification too soon after others.
func modifiable(v cloud.Volume) error {
	if m := v.Modification; m != nil && (m.State == cloud.Modifying || m.State == cloud.Optimizing) {
		return refuse("IncorrectModificationState", "Volume %s with current state %s is not modifiable", v.ID, m.State)
	}
	recent := 0
	for _, start := range v.ModifiedAt {
		if time.Since(start) < modificationsWithin {
			recent++
		}
	}
	if recent >= modifications {
		return refuse("VolumeModificationRateExceeded", "You've reached the maximum modification rate per volume limit. You can modify a volume up to %d times within a rolling 24-hour period.", modifications)
	}
	return nil
}

type modificationItem struct {
	VolumeID           string `xml:"volumeId"`
	State              string `xml:"modificationState"`
	TargetSize         int64  `xml:"targetSize"`
	TargetIOPS         int    `xml:"targetIops,omitempty"`
	TargetType         string `xml:"targetVolumeType"`
	TargetThroughput   int    `xml:"targetThroughput,omitempty"`
	OriginalSize       int64  `xml:"originalSize"`
	OriginalIOPS       int    `xml:"originalIops,omitempty"`
	OriginalType       string `xml:"originalVolumeType"`
	OriginalThroughput int    `xml:"originalThroughput,omitempty"`
	Progress           int    `xml:"progress"`
	StartTime          string `xml:"startTime"`
	EndTime            string `xml:"endTime,omitempty"`
}

func modificationOf(volume string, m cloud.Modification) modificationItem {
	return modificationItem{
		volume, string(m.State),
		m.Target.Size / gib, m.Target.IOPS, m.Target.Type, m.Target.Throughput,
		m.Original.Size / gib, m.Original.IOPS, m.Original.Type, m.Original.Throughput,
		m.Progress, stamp(m.Start), stamp(m.End),
	}
}

func modificationFields(v cloud.Volume, name string) ([]string, bool) {
	m := cloud.Modification{}
	if v.Modification != nil {
		m = *v.Modification
	}
	switch name {
	case "modification-state":
		return []string{string(m.State)}, true
	case "original-iops":
		return integer(m.Original.IOPS), true
	case "original-size":
		return integer(m.Original.Size / gib), true
	case "original-volume-type":
		return []string{m.Original.Type}, true
	case "originalMultiAttachEnabled", "targetMultiAttachEnabled":
		return boolean(false), true
	case "start-time":
		return []string{stamp(m.Start)}, true
	case "target-iops":
		return integer(m.Target.IOPS), true
	case "target-size":
		return integer(m.Target.Size / gib), true
	case "target-volume-type":
		return []string{m.Target.Type}, true
	case "volume-id":
		return []string{v.ID}, true
	default:
		return nil, false
	}
}

func describeModifications(r *request) (any, error) {
	all := r.Volumes()
	if len(r.params.list("VolumeId")) == 0 { // a requested volume must have a modification
		all = slices.DeleteFunc(all, func(v cloud.Volume) bool { return v.Modification == nil })
	}
	page, next, err := read[cloud.Volume]{
		param: "VolumeId", kind: "vol", shown: "volumes",
		id:      func(v cloud.Volume) string { return v.ID },
		key:     func(v cloud.Volume) string { return byAge(v.CreatedAt, v.ID) },
		missing: noVolume,
		fields:  modificationFields,
		least:   1, most: 500,
	}.of(r, everything(all))
	if err != nil {
		return nil, err
	}
	answer := struct {
		Modifications []modificationItem `xml:"volumeModificationSet>item"`
		Next          string             `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, v := range page {
		if v.Modification == nil {
			return nil, refuse("InvalidVolumeModification.NotFound", "Modification for volume '%s' does not exist.", v.ID)
		}
		answer.Modifications = append(answer.Modifications, modificationOf(v.ID, *v.Modification))
	}
	return answer, nil
}

// limitOf returns the maximum number of volumes of an instance, including the root volume.
func limitOf(i cloud.Instance) int {
	t := typeOf(i.Type)
	if t.limitType == "shared" && t.hypervisor == "nitro" { // including network interfaces
		return t.attachments - (i.Interfaces - 1)
	}
	return t.attachments
}
