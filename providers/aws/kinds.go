package aws

import (
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
)

// span is an inclusive range; a zero one means that the option cannot be chosen.
type span struct{ least, most int64 }

func (s span) holds(n int64) bool { return s.least <= n && n <= s.most }

// kind is a type of volume.
type kind struct {
	name         types.VolumeType
	gib          span // size
	iops         span // per second
	iopsPerGiB   int64
	iopsNeeded   bool
	throughput   span  // MiB/s
	iopsPerMiBps int64 // IOPS that each MiB/s of throughput needs
}

// kinds are the types of EBS, with the ranges of the EC2 API reference (CreateVolume) and the ratios of the Amazon EBS User
// Guide ("Amazon EBS volume types").
var kinds = []kind{
	{name: types.VolumeTypeGp3, gib: span{1, 65536}, iops: span{3000, 80000}, iopsPerGiB: 500, throughput: span{125, 2000}, iopsPerMiBps: 4},
	{name: types.VolumeTypeGp2, gib: span{1, 16384}},
	{name: types.VolumeTypeIo2, gib: span{4, 65536}, iops: span{100, 256000}, iopsPerGiB: 1000, iopsNeeded: true},
	{name: types.VolumeTypeIo1, gib: span{4, 16384}, iops: span{100, 64000}, iopsPerGiB: 50, iopsNeeded: true},
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

// gp3Base is what a gp3 volume of any size has, in IOPS.
const gp3Base = 3000

// checkKind refuses what EBS does not sell; iops and throughput are 0 where nothing was asked for.
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
	case !k.gib.holds(gib):
		return refuse("a size of %d GiB: from %d to %d GiB are sold", gib, k.gib.least, k.gib.most)
	case n == 0 && k.iopsNeeded:
		return refuse("iops must be given, from %d to %d", k.iops.least, k.iops.most)
	case n == 0:
	case k.iops.most == 0:
		return refuse("iops cannot be chosen, only with gp3, io1 and io2")
	case !k.iops.holds(n):
		return refuse("iops=%d: from %d to %d are sold", n, k.iops.least, k.iops.most)
	case n > max(k.iopsPerGiB*gib, k.baseIOPS()):
		return refuse("iops=%d: %d GiB can have at most %d, %d for each GiB", n, gib, max(k.iopsPerGiB*gib, k.baseIOPS()), k.iopsPerGiB)
	}
	switch n := int64(throughput); {
	case n == 0:
	case k.throughput.most == 0:
		return refuse("throughput cannot be chosen, only with gp3")
	case !k.throughput.holds(n):
		return refuse("throughput=%d: from %d to %d MiB/s are sold", n, k.throughput.least, k.throughput.most)
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
