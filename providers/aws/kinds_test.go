package aws

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestVolumeTypeLimits(t *testing.T) {
	for _, ok := range []struct {
		kind             types.VolumeType
		gib              int64
		iops, throughput int
	}{
		{"gp3", 1, 0, 0},
		{"gp3", 1, 3000, 750},
		{"gp3", 65536, 80000, 2000},
		{"gp3", 160, 80000, 125},
		{"gp2", 16384, 0, 0},
		{"io1", 4, 200, 0},
		{"io2", 256, 256000, 0},
		{"st1", 125, 0, 0},
		{"sc1", 16384, 0, 0},
		{"standard", 1024, 0, 0},
	} {
		require.NoError(t, checkKind(ok.kind, ok.gib, ok.iops, ok.throughput), "%+v", ok)
	}
	for _, bad := range []struct {
		kind             types.VolumeType
		gib              int64
		iops, throughput int
		says             string
	}{
		{"gp9", 1, 0, 0, "gp3, gp2, io2, io1, st1, sc1, standard"},
		{"GP3", 1, 0, 0, "EBS has gp3"},
		{"gp3", 0, 0, 0, "from 1 to 65536 GiB"},
		{"gp3", 65537, 0, 0, "from 1 to 65536 GiB"},
		{"gp3", 100, 2999, 0, "from 3000 to 80000"},
		{"gp3", 1, 80001, 0, "from 3000 to 80000"},
		{"gp3", 10, 5001, 0, "at most 5000, 500 for each GiB"},
		{"gp3", 1, 3001, 0, "at most 3000"},
		{"gp3", 10, 0, 124, "from 125 to 2000"},
		{"gp3", 10, 0, 751, "needs iops=3004"},
		{"gp2", 10, 3000, 0, "cannot be chosen"},
		{"gp2", 10, 0, 125, "cannot be chosen"},
		{"io1", 3, 100, 0, "from 4 to 16384"},
		{"io1", 4, 0, 0, "iops must be given, from 100 to 64000"},
		{"io1", 4, 201, 0, "at most 200, 50 for each GiB"},
		{"io2", 4, 4001, 0, "at most 4000"},
		{"st1", 124, 0, 0, "from 125 to 16384"},
		{"standard", 1025, 0, 0, "from 1 to 1024"},
	} {
		err := checkKind(bad.kind, bad.gib, bad.iops, bad.throughput)
		require.ErrorIs(t, err, providers.ErrInvalid, "%+v", bad)
		assert.ErrorContains(t, err, bad.says, "%+v", bad)
	}
}
