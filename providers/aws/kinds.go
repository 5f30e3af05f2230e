package aws

import (
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
)

// span is an inclusive range. Its zero value means that the option cannot be chosen.
type span struct{ least, most int64 }

func (s span) contains(n int64) bool { return s.least <= n && n <= s.most }

// kind is a volume type.
type kind struct {
	name         types.VolumeType
	gib          span // size in GiB
	iops         span // per second
	iopsPerGiB   int64
	iopsRequired bool
	throughput   span  // MiB/s
	iopsPerMiBps int64 // IOPS required for each MiB/s of throughput
}

// kinds are the volume types of EBS. The ranges are from the EC2 API reference (CreateVolume), the ratios from the Amazon EBS User
// Guide ("Amazon EBS volume types").
var kinds = []kind{
	{name: types.VolumeTypeGp3, gib: span{1, 65536}, iops: span{3000, 80000}, iopsPerGiB: 500, throughput: span{125, 2000}, iopsPerMiBps: 4},
	{name: types.VolumeTypeGp2, gib: span{1, 16384}},
	{name: types.VolumeTypeIo2, gib: span{4, 65536}, iops: span{100, 256000}, iopsPerGiB: 1000, iopsRequired: true},
	{name: types.VolumeTypeIo1, gib: span{4, 16384}, iops: span{100, 64000}, iopsPerGiB: 50, iopsRequired: true},
	{name: types.VolumeTypeSt1, gib: span{125, 16384}},
	{name: types.VolumeTypeSc1, gib: span{125, 16384}},
	{name: types.VolumeTypeStandard, gib: span{1, 1024}},
}

func kindNamed(name types.VolumeType) (kind, bool) {
	for _, k := range kinds {
		if k.name == name {
			return k, true
		}
	}
	return kind{}, false
}

// gp3Base is the IOPS of a gp3 volume of any size.
const gp3Base = 3000

// checkKind returns ErrInvalid for a volume that EBS does not offer. An iops or throughput of 0 is the default of the type.
func checkKind(name types.VolumeType, gib int64, iops, throughput int) error {
	k, known := kindNamed(name)
	if !known {
		names := make([]string, 0, len(kinds))
		for _, k := range kinds {
			names = append(names, string(k.name))
		}
		return fmt.Errorf("%w: type %q: EBS has %s", providers.ErrInvalid, name, strings.Join(names, ", "))
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: type %s: %s", providers.ErrInvalid, name, fmt.Sprintf(format, args...))
	}
	switch n := int64(iops); {
	case !k.gib.contains(gib):
		return refuse("the size is %d GiB, and must be from %d to %d GiB", gib, k.gib.least, k.gib.most)
	case n == 0 && k.iopsRequired:
		return refuse("iops must be given, from %d to %d", k.iops.least, k.iops.most)
	case n == 0:
	case k.iops.most == 0:
		return refuse("iops cannot be chosen: choose gp3, io1 or io2")
	case !k.iops.contains(n):
		return refuse("iops=%d must be from %d to %d", n, k.iops.least, k.iops.most)
	case n > max(k.iopsPerGiB*gib, k.baseIOPS()):
		return refuse("iops=%d: %d GiB can have at most %d, %d for each GiB", n, gib, max(k.iopsPerGiB*gib, k.baseIOPS()), k.iopsPerGiB)
	}
	switch n := int64(throughput); {
	case n == 0:
	case k.throughput.most == 0:
		return refuse("throughput cannot be chosen: choose gp3")
	case !k.throughput.contains(n):
		return refuse("throughput=%d must be from %d to %d MiB/s", n, k.throughput.least, k.throughput.most)
	case n*k.iopsPerMiBps > max(int64(iops), k.baseIOPS()):
		return refuse("throughput=%d MiB/s needs iops=%d, %d for each MiB/s", n, n*k.iopsPerMiBps, k.iopsPerMiBps)
	}
	return nil
}

func (k kind) baseIOPS() int64 {
	if k.name == types.VolumeTypeGp3 {
		return gp3Base
	}
	return 0
}
