package providers

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSizesAreRoundedUpToWhatIsSold(t *testing.T) {
	s := Sizes{Cloud: "X", Least: 10, Most: 1<<31 - 1}
	for bytes, sold := range map[int64]int64{0: 0, 1: 10, 10 * GiB: 10, 10*GiB + 1: 11, s.Most * GiB: s.Most} {
		got, err := s.Of(bytes)
		require.NoError(t, err)
		assert.Equal(t, sold, got)
	}
	for _, bytes := range []int64{-1, math.MinInt64, s.Most*GiB + 1, math.MaxInt64} {
		_, err := s.Of(bytes)
		require.ErrorIs(t, err, ErrInvalid)
		assert.ErrorContains(t, err, "volumes of X have 10 to 2147483647 GiB")
	}
}

func TestOptionsThatACloudDoesNotHaveAreRefused(t *testing.T) {
	supports := []string{"encrypted", "iops", "kms-key", "snapshot", "throughput", "type"}
	for option, spec := range map[string]Spec{
		"encrypted": {Encrypted: true}, "iops": {IOPS: 1}, "kms-key": {KMSKey: "k"}, "snapshot": {Snapshot: "s"},
		"throughput": {Throughput: 1}, "type": {Type: "t"},
	} {
		require.NoError(t, CheckOptions("X", spec, supports))
		err := CheckOptions("X", spec, []string{"tags", "zone"})
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "volumes of X have no "+option)
	}
	require.NoError(t, CheckOptions("X", Spec{Name: "db", Size: GiB}, nil))

	require.NoError(t, CheckOnlyGrows("X", Change{Size: GiB}))
	for _, change := range []Change{{Type: "t"}, {IOPS: 1}, {Throughput: 1}} {
		require.ErrorIs(t, CheckOnlyGrows("X", change), ErrInvalid)
	}
}
