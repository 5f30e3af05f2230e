package ec2_test

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

// where builds filters from pairs of name and value.
func where(pairs ...string) (filters []types.Filter) {
	for i := 0; i < len(pairs); i += 2 {
		filters = append(filters, types.Filter{Name: aws.String(pairs[i]), Values: []string{pairs[i+1]}})
	}
	return filters
}

func TestFiltersSelectVolumes(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	named := map[string]string{}
	for _, name := range []string{"db", "DB", "db*", "db?", `db\`, "", "dbs", "d.b"} {
		named[w.create(func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", "Name", name) })] = name
	}
	for pattern, want := range map[string][]string{
		"db":     {"db"},
		"DB":     {"DB"},
		"db*":    {"db", "db*", "db?", `db\`, "dbs"},
		"db?":    {"db*", "db?", `db\`, "dbs"},
		`db\*`:   {"db*"},
		`db\?`:   {"db?"},
		`db\\`:   {`db\`},
		"*b":     {"db", "d.b"},
		"*":      {"db", "DB", "db*", "db?", `db\`, "", "dbs", "d.b"},
		"":       {""},
		"?*":     {"db", "DB", "db*", "db?", `db\`, "dbs", "d.b"},
		"d.b":    {"d.b"},
		"nobody": nil,
	} {
		out, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{Filters: where("tag:Name", pattern)})
		require.NoError(t, err)
		var got []string
		for _, v := range out.Volumes {
			got = append(got, named[*v.VolumeId])
		}
		assert.ElementsMatch(t, want, got, "pattern %q", pattern)
	}
}

func TestFiltersMatchIfEachHasAMatchingValue(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	held, free := w.create(func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", "a", "1") }), w.create()
	require.NoError(t, w.attach(held, "/dev/xvdba"))
	for name, test := range map[string]struct {
		filters []types.Filter
		want    int
	}{
		"held by the instance":           {where("attachment.instance-id", w.instance.ID), 2},
		"held, but not the root":         {where("attachment.instance-id", w.instance.ID, "attachment.delete-on-termination", "false"), 1},
		"by state":                       {where("status", "available"), 1},
		"by either state":                {[]types.Filter{{Name: aws.String("status"), Values: []string{"available", "in-use"}}}, 3},
		"by zone":                        {where("availability-zone", zone), 3},
		"by id":                          {where("volume-id", free), 1},
		"by a tag's key":                 {where("tag-key", "a"), 1},
		"by a tag's key, wild":           {where("tag-key", "?"), 1},
		"by another's value":             {where("tag:a", "2"), 0},
		"by two that exclude each other": {where("status", "available", "tag-key", "a"), 0},
		"by size":                        {where("size", "8"), 1},
		"by device":                      {where("attachment.device", "/dev/xvdb*"), 1},
		"by the attachment's status":     {where("attachment.status", "attached"), 2},
		"by type":                        {where("volume-type", "gp?"), 3},
		"by encryption":                  {where("encrypted", "false"), 3},
	} {
		out, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{Filters: test.filters})
		require.NoError(t, err)
		assert.Len(t, out.Volumes, test.want, name)
	}
}

func TestInvalidReadsAreRefused(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	v := w.create()
	values := make([]string, 201)
	for i := range values {
		values[i] = strconv.Itoa(i)
	}
	for name, test := range map[string]struct {
		in      sdk.DescribeVolumesInput
		code    string
		message string
	}{
		"an unknown filter":   {sdk.DescribeVolumesInput{Filters: where("colour", "red")}, "InvalidParameterValue", "The filter 'colour' is invalid"},
		"a filter's case":     {sdk.DescribeVolumesInput{Filters: where("Status", "available")}, "InvalidParameterValue", "The filter 'Status' is invalid"},
		"201 values":          {sdk.DescribeVolumesInput{Filters: []types.Filter{{Name: aws.String("tag:a"), Values: values}}}, "FilterLimitExceeded", "200"},
		"200 values":          {sdk.DescribeVolumesInput{Filters: []types.Filter{{Name: aws.String("tag:a"), Values: values[:200]}}}, "", ""},
		"pages of 4":          {sdk.DescribeVolumesInput{MaxResults: aws.Int32(4)}, "InvalidParameterValue", "Value ( 4 ) for parameter maxResults is invalid. Expecting a value between 5 and 500."},
		"ids in pages":        {sdk.DescribeVolumesInput{MaxResults: aws.Int32(5), VolumeIds: []string{v}}, "InvalidParameterCombination", ""},
		"a made-up token":     {sdk.DescribeVolumesInput{MaxResults: aws.Int32(5), NextToken: aws.String("2")}, "InvalidPaginationToken", ""},
		"one id of two":       {sdk.DescribeVolumesInput{VolumeIds: []string{v, "vol-0123456789abcdef0"}}, "InvalidVolume.NotFound", "The volume 'vol-0123456789abcdef0' does not exist."},
		"an invalid id":       {sdk.DescribeVolumesInput{VolumeIds: []string{"db"}}, "InvalidParameterValue", "Value (db) for parameter volumes is invalid."},
		"a dry run":           {sdk.DescribeVolumesInput{DryRun: aws.Bool(true)}, "DryRunOperation", ""},
		"an old id format":    {sdk.DescribeVolumesInput{VolumeIds: []string{"vol-01234567"}}, "InvalidVolume.NotFound", ""},
		"an id in upper case": {sdk.DescribeVolumesInput{VolumeIds: []string{"vol-0123456789ABCDEF0"}}, "InvalidParameterValue", ""},
	} {
		_, err := w.api.DescribeVolumes(t.Context(), &test.in)
		assert.Equal(t, test.code, code(t, err), name)
		if test.code != "" {
			assert.ErrorContains(t, err, test.message, name)
		}
	}
}

func TestPagesAreCompleteAndCanBeEmpty(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	want := map[string]bool{}
	for i := range 23 {
		id := w.create(func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", "n", strconv.Itoa(i)) })
		want[id] = true
	}
	in := &sdk.DescribeVolumesInput{MaxResults: aws.Int32(5), Filters: where("tag-key", "n")}
	pages, got := sdk.NewDescribeVolumesPaginator(w.api, in), map[string]bool{}
	count := 0
	for ; pages.HasMorePages(); count++ {
		page, err := pages.NextPage(t.Context())
		require.NoError(t, err)
		for _, v := range page.Volumes {
			assert.False(t, got[*v.VolumeId], "shown twice")
			got[*v.VolumeId] = true
		}
		if count == 1 { // a deletion between pages does not shift the rest
			for id := range got {
				_, err := w.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: &id})
				require.NoError(t, err)
			}
		}
	}
	assert.Equal(t, want, got)
	assert.Equal(t, 5, count)

	first, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{MaxResults: aws.Int32(5), Filters: where("tag:n", "22")})
	require.NoError(t, err)
	assert.Empty(t, first.Volumes)
	require.NotNil(t, first.NextToken, "an empty page that is not the last")
	_, err = w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{MaxResults: aws.Int32(5), NextToken: first.NextToken, Filters: where("tag:n", "21")})
	assert.Equal(t, "InvalidPaginationToken", code(t, err), "a token is valid for its request only")
}

func TestReadsLagAndWritesDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Lag: 10 * time.Second}, ec2.Config{})
		time.Sleep(time.Minute)
		v := w.create()
		require.NoError(t, w.attach(v, "/dev/xvdba"), "a write uses the current state")
		shown := func() string {
			out, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{VolumeIds: []string{v}})
			if err != nil {
				return code(t, err)
			}
			return string(out.Volumes[0].State)
		}
		seen := map[string]int{}
		for range 100 {
			time.Sleep(50 * time.Millisecond)
			seen[shown()]++
		}
		assert.NotZero(t, seen["InvalidVolume.NotFound"])
		assert.NotZero(t, seen["in-use"])
		time.Sleep(5*time.Second + 1)
		for range 50 {
			require.Equal(t, "in-use", shown())
		}
	})
}

func TestCallsAreLimitedAsAWSDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Limits: ec2.Limits}, ec2.Config{})
		burst := func(call func() error) (passed int) {
			for range 300 {
				err := call()
				if err == nil {
					passed++
					continue
				}
				require.Equal(t, "RequestLimitExceeded", code(t, err))
			}
			return passed
		}
		everything := func() error {
			_, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
			return err
		}
		some := func() error {
			_, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{Filters: where("status", "in-use")})
			return err
		}
		write := func() error {
			_, err := w.api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1)})
			return err
		}
		assert.Equal(t, 50, burst(everything))
		assert.Equal(t, 100, burst(some))
		assert.Equal(t, 50, burst(write))
		time.Sleep(2 * time.Second)
		assert.Equal(t, 20, burst(everything))
		assert.Equal(t, 40, burst(some))
		assert.Equal(t, 10, burst(write))
		assert.Equal(t, map[string]int{"DescribeVolumes": 1200, "CreateVolume": 600}, w.cloud.Calls())
		assert.Equal(t, map[string]int{"DescribeVolumes": 990, "CreateVolume": 540}, w.cloud.Throttled())
	})
}
