package ec2_test

import (
	"fmt"
	"strings"
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

func tags(pairs ...string) (list []types.Tag) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, types.Tag{Key: aws.String(pairs[i]), Value: aws.String(pairs[i+1])})
	}
	return list
}

func tagged(resource types.ResourceType, pairs ...string) []types.TagSpecification {
	return []types.TagSpecification{{ResourceType: resource, Tags: tags(pairs...)}}
}

func TestVolumeTypesHaveLimits(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	for name, test := range map[string]struct {
		change func(*sdk.CreateVolumeInput)
		code   string // "" for accepted
	}{
		"gp3 of 1 GiB":          {func(in *sdk.CreateVolumeInput) {}, ""},
		"gp3 of 64 TiB":         {func(in *sdk.CreateVolumeInput) { in.Size = aws.Int32(65536) }, ""},
		"gp3 of more":           {func(in *sdk.CreateVolumeInput) { in.Size = aws.Int32(65537) }, "InvalidParameterValue"},
		"of 0 GiB":              {func(in *sdk.CreateVolumeInput) { in.Size = aws.Int32(0) }, "InvalidParameterValue"},
		"without a size":        {func(in *sdk.CreateVolumeInput) { in.Size = nil }, "MissingParameter"},
		"without a zone":        {func(in *sdk.CreateVolumeInput) { in.AvailabilityZone = nil }, "MissingParameter"},
		"in another zone":       {func(in *sdk.CreateVolumeInput) { in.AvailabilityZone = aws.String("us-east-1a") }, "InvalidZone.NotFound"},
		"of the default type":   {func(in *sdk.CreateVolumeInput) { in.VolumeType = "" }, ""},
		"of an unknown type":    {func(in *sdk.CreateVolumeInput) { in.VolumeType = "gp9" }, "InvalidParameterValue"},
		"gp2 of 17 TiB":         {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size = "gp2", aws.Int32(17408) }, "InvalidParameterValue"},
		"gp2 with iops":         {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Iops = "gp2", aws.Int32(3000) }, "InvalidParameterCombination"},
		"gp2 with throughput":   {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Throughput = "gp2", aws.Int32(125) }, "InvalidParameterCombination"},
		"gp3 with few iops":     {func(in *sdk.CreateVolumeInput) { in.Iops = aws.Int32(2999) }, "InvalidParameterValue"},
		"gp3 with its iops":     {func(in *sdk.CreateVolumeInput) { in.Iops = aws.Int32(3000) }, ""},
		"gp3 with many iops":    {func(in *sdk.CreateVolumeInput) { in.Size, in.Iops = aws.Int32(160), aws.Int32(80000) }, ""},
		"gp3 with too many":     {func(in *sdk.CreateVolumeInput) { in.Size, in.Iops = aws.Int32(1000), aws.Int32(80001) }, "InvalidParameterValue"},
		"gp3 with many per GiB": {func(in *sdk.CreateVolumeInput) { in.Size, in.Iops = aws.Int32(10), aws.Int32(5001) }, "InvalidParameterValue"},
		"gp3 with throughput":   {func(in *sdk.CreateVolumeInput) { in.Throughput = aws.Int32(750) }, ""},
		"gp3 with too much":     {func(in *sdk.CreateVolumeInput) { in.Throughput = aws.Int32(751) }, "InvalidParameterValue"},
		"gp3 with little":       {func(in *sdk.CreateVolumeInput) { in.Throughput = aws.Int32(124) }, "InvalidParameterValue"},
		"io1 without iops":      {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size = "io1", aws.Int32(4) }, "MissingParameter"},
		"io1 with iops":         {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size, in.Iops = "io1", aws.Int32(4), aws.Int32(200) }, ""},
		"io1 with many per GiB": {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size, in.Iops = "io1", aws.Int32(4), aws.Int32(201) }, "InvalidParameterValue"},
		"io1 of 3 GiB":          {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size, in.Iops = "io1", aws.Int32(3), aws.Int32(100) }, "InvalidParameterValue"},
		"io2 with many": {func(in *sdk.CreateVolumeInput) {
			in.VolumeType, in.Size, in.Iops = "io2", aws.Int32(256), aws.Int32(256000)
		}, ""},
		"st1 of 124 GiB":          {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size = "st1", aws.Int32(124) }, "InvalidParameterValue"},
		"st1 of 125 GiB":          {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size = "st1", aws.Int32(125) }, ""},
		"standard of 1 TiB":       {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size = "standard", aws.Int32(1024) }, ""},
		"standard of more":        {func(in *sdk.CreateVolumeInput) { in.VolumeType, in.Size = "standard", aws.Int32(1025) }, "InvalidParameterValue"},
		"with a key, unencrypted": {func(in *sdk.CreateVolumeInput) { in.KmsKeyId = aws.String("k") }, "InvalidParameterDependency"},
		"with a key, encrypted":   {func(in *sdk.CreateVolumeInput) { in.KmsKeyId, in.Encrypted = aws.String("k"), aws.Bool(true) }, ""},
		"from no snapshot":        {func(in *sdk.CreateVolumeInput) { in.SnapshotId = aws.String("snap-0123456789abcdef0") }, "InvalidSnapshot.NotFound"},
		"from nonsense":           {func(in *sdk.CreateVolumeInput) { in.SnapshotId = aws.String("latest") }, "InvalidParameterValue"},
		"with a long token":       {func(in *sdk.CreateVolumeInput) { in.ClientToken = aws.String(strings.Repeat("t", 65)) }, "InvalidParameterValue"},
		"with a token of 64":      {func(in *sdk.CreateVolumeInput) { in.ClientToken = aws.String(strings.Repeat("t", 64)) }, ""},
		"with a foreign token":    {func(in *sdk.CreateVolumeInput) { in.ClientToken = aws.String("tøken") }, "InvalidParameterValue"},
		"tagged as a snapshot":    {func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("snapshot", "a", "b") }, "InvalidParameterValue"},
		"tagged":                  {func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", "a", "b", "c", "") }, ""},
		"with a tag twice":        {func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", "a", "b", "a", "c") }, "InvalidParameterValue"},
		"with a tag of AWS":       {func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", "aws:a", "b") }, "InvalidParameterValue"},
		"with a key of 128": {func(in *sdk.CreateVolumeInput) {
			in.TagSpecifications = tagged("volume", strings.Repeat("é", 128), "")
		}, ""},
		"with a key of 129": {func(in *sdk.CreateVolumeInput) {
			in.TagSpecifications = tagged("volume", strings.Repeat("é", 129), "")
		}, "InvalidParameterValue"},
		"with a value of 256": {func(in *sdk.CreateVolumeInput) {
			in.TagSpecifications = tagged("volume", "a", strings.Repeat("é", 256))
		}, ""},
		"with a value of 257": {func(in *sdk.CreateVolumeInput) {
			in.TagSpecifications = tagged("volume", "a", strings.Repeat("é", 257))
		}, "InvalidParameterValue"},
		"with 50 tags":      {func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", many(50)...) }, ""},
		"with 51 tags":      {func(in *sdk.CreateVolumeInput) { in.TagSpecifications = tagged("volume", many(51)...) }, "TagLimitExceeded"},
		"as a dry run":      {func(in *sdk.CreateVolumeInput) { in.DryRun = aws.Bool(true) }, "DryRunOperation"},
		"on an outpost":     {func(in *sdk.CreateVolumeInput) { in.OutpostArn = aws.String("arn") }, "UnknownParameter"},
		"with Multi-Attach": {func(in *sdk.CreateVolumeInput) { in.MultiAttachEnabled = aws.Bool(true) }, "InvalidParameterCombination"},
	} {
		in := &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1), VolumeType: types.VolumeTypeGp3}
		test.change(in)
		before := len(w.cloud.Volumes())
		_, err := w.api.CreateVolume(t.Context(), in)
		assert.Equal(t, test.code, code(t, err), "%s: %v", name, err)
		if test.code != "" {
			assert.Len(t, w.cloud.Volumes(), before, "%s: refused, but created", name)
		}
	}
}

func many(n int) (pairs []string) {
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("key-%d", i), "")
	}
	return pairs
}

func TestGp2HasIOPSBySize(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	for size, iops := range map[int32]int32{1: 100, 33: 100, 100: 300, 16384: 16000} {
		out, err := w.api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: &size})
		require.NoError(t, err)
		assert.Equal(t, iops, *out.Iops, "%d GiB", size)
		assert.Equal(t, types.VolumeTypeGp2, out.VolumeType)
	}
}

func TestClientTokenMakesOneVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Latency: time.Second}, ec2.Config{})
		in := func(token string, size int32, zone string) *sdk.CreateVolumeInput {
			return &sdk.CreateVolumeInput{AvailabilityZone: &zone, Size: &size, ClientToken: &token}
		}
		first, err := w.api.CreateVolume(t.Context(), in("t", 1, zone))
		require.NoError(t, err)
		again, err := w.api.CreateVolume(t.Context(), in("t", 1, zone))
		require.NoError(t, err)
		assert.Equal(t, *first.VolumeId, *again.VolumeId)
		assert.Equal(t, types.VolumeStateCreating, again.State, "the original answer")
		_, err = w.api.CreateVolume(t.Context(), in("t", 2, zone))
		assert.Equal(t, "IdempotentParameterMismatch", code(t, err))
		_, err = w.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: first.VolumeId})
		require.NoError(t, err)
		again, err = w.api.CreateVolume(t.Context(), in("t", 1, zone))
		require.NoError(t, err)
		assert.Equal(t, *first.VolumeId, *again.VolumeId, "of a deleted volume")
		assert.Len(t, w.cloud.Volumes(), 1, "only the root volume")

		// At the same time, from two instances.
		ids := make(chan string)
		for range 2 {
			go func() {
				client := w.clientOf(w.cloud.AddInstance(cloud.Instance{}).ID, nil)
				out, err := client.CreateVolume(t.Context(), in("both", 1, zone))
				if assert.NoError(t, err) {
					ids <- *out.VolumeId
				}
			}()
		}
		one := <-ids
		assert.Equal(t, one, <-ids)

		_, err = w.api.CreateVolume(t.Context(), in("refused", 99999, zone))
		assert.Equal(t, "InvalidParameterValue", code(t, err))
		_, err = w.api.CreateVolume(t.Context(), in("refused", 1, zone))
		require.NoError(t, err, "an invalid request does not use up the token")

		time.Sleep(24 * time.Hour)
		again, err = w.api.CreateVolume(t.Context(), in("t", 1, zone))
		require.NoError(t, err)
		assert.NotEqual(t, *first.VolumeId, *again.VolumeId, "forgotten")
	})
}

func TestMissingKMSKeyFailsLaterAndUsesUpTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Times: cloud.Times{Create: 10 * time.Second}}, ec2.Config{})
		in := &sdk.CreateVolumeInput{
			AvailabilityZone: aws.String(zone), Size: aws.Int32(1), Encrypted: aws.Bool(true),
			KmsKeyId: aws.String("invalid-key"), ClientToken: aws.String("t"),
		}
		out, err := w.api.CreateVolume(t.Context(), in)
		require.NoError(t, err)
		assert.Equal(t, "arn:aws:kms:eu-test-1:123456789012:key/invalid-key", *out.KmsKeyId)
		assert.Equal(t, cloud.Creating, w.truth(*out.VolumeId).State)
		time.Sleep(10*time.Second + 1)
		assert.Equal(t, cloud.Broken, w.truth(*out.VolumeId).State)
		time.Sleep(10 * time.Second)
		_, ok := w.cloud.Volume(*out.VolumeId)
		assert.False(t, ok)
		_, err = w.api.CreateVolume(t.Context(), in)
		assert.Equal(t, "IdempotentParameterMismatch", code(t, err))
	})
}

func TestDeviceNameIsUniquePerInstance(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	first := w.create()
	require.NoError(t, w.attach(first, "/dev/xvdf"))
	second := w.create()
	for device, refusal := range map[string]string{
		"/dev/xvdf":   "Invalid value '/dev/xvdf' for unixDevice. Attachment point /dev/xvdf is already in use",
		"/dev/sdf":    "Invalid value '/dev/sdf' for unixDevice. Attachment point /dev/sdf is already in use",
		"xvdf":        "Invalid value 'xvdf' for unixDevice. Attachment point xvdf is already in use",
		"/dev/xvda":   "Invalid value '/dev/xvda' for unixDevice. Attachment point /dev/xvda is already in use",
		"/dev/nvme1":  "Value (/dev/nvme1) for parameter device is invalid. /dev/nvme1 is not a valid EBS device name.",
		"/dev/xvdzz":  "Value (/dev/xvdzz) for parameter device is invalid. /dev/xvdzz is not a valid EBS device name.",
		"/dev/mapper": "Value (/dev/mapper) for parameter device is invalid. /dev/mapper is not a valid EBS device name.",
	} {
		err := w.attach(second, device)
		assert.Equal(t, "InvalidParameterValue", code(t, err))
		require.ErrorContains(t, err, refusal)
	}
	for _, device := range []string{"/dev/xvdaa", "/dev/xvdba", "/dev/xvddx", "/dev/sdp", "/dev/xvdg"} {
		require.NoError(t, w.attach(w.create(), device))
	}
	_, err := w.api.DetachVolume(t.Context(), &sdk.DetachVolumeInput{VolumeId: &first, InstanceId: &w.instance.ID, Device: aws.String("/dev/xvdf")})
	require.NoError(t, err)
	require.NoError(t, w.attach(second, "/dev/sdf"))
}

func TestInstanceTypeLimitsVolumes(t *testing.T) {
	for _, test := range []struct {
		kind       string
		interfaces int
		root       string
		limit      int // for volumes beside the root volume
	}{
		{"m5.large", 1, "/dev/xvda", 26},
		{"m5.large", 3, "/dev/xvda", 24},
		{"m5.large", 1, "", 27},
		{"t3.micro", 2, "/dev/xvda", 25},
		{"m7i.large", 3, "/dev/xvda", 31},
		{"m7i.48xlarge", 1, "/dev/xvda", 127},
		{"t2.micro", 2, "/dev/xvda", 38},
		{"x99.huge", 1, "/dev/xvda", 26},
	} {
		w := newWorld(t, cloud.Config{}, ec2.Config{})
		w.instance = w.cloud.AddInstance(cloud.Instance{Type: test.kind, Interfaces: test.interfaces, RootDevice: test.root})
		attached := 0
		var err error
		for _, c := range "bcd" {
			for second := 'a'; second <= 'z' && err == nil; second++ {
				if err = w.attach(w.create(), fmt.Sprintf("/dev/xvd%c%c", c, second)); err == nil {
					attached++
				}
			}
		}
		for second := 'b'; second <= 'z' && err == nil && test.limit > 78; second++ {
			if err = w.attach(w.create(), fmt.Sprintf("/dev/xvd%c", second)); err == nil {
				attached++
			}
		}
		if test.limit > 103 { // all device names are used
			continue
		}
		assert.Equal(t, "AttachmentLimitExceeded", code(t, err), test.kind)
		assert.Equal(t, test.limit, attached, "%s with %d interfaces", test.kind, test.interfaces)
	}
}

func TestErrorsOfAttachAndDetachAreAWSs(t *testing.T) {
	w := newWorld(t, cloud.Config{Times: cloud.Times{Detach: time.Hour, Terminate: time.Hour}}, ec2.Config{})
	pending := w.cloud.AddInstance(cloud.Instance{State: cloud.Pending})
	ending := w.cloud.AddInstance(cloud.Instance{})
	w.cloud.Terminate(ending.ID)
	elsewhere := w.cloud.AddInstance(cloud.Instance{Zone: "eu-test-1b"})
	stopped := w.cloud.AddInstance(cloud.Instance{State: cloud.Stopped})
	root := w.cloud.Volumes()[0].ID
	free, held, leaving := w.create(), w.create(), w.create()
	require.NoError(t, w.attach(held, "/dev/xvdba"))
	require.NoError(t, w.attach(leaving, "/dev/xvdbb"))
	_, err := w.api.DetachVolume(t.Context(), &sdk.DetachVolumeInput{VolumeId: &leaving})
	require.NoError(t, err)
	const nobody, nothing = "i-0123456789abcdef0", "vol-0123456789abcdef0"

	for _, test := range []struct{ volume, instance, code, message string }{
		{nothing, w.instance.ID, "InvalidVolume.NotFound", "The volume '" + nothing + "' does not exist."},
		{"vol-1", w.instance.ID, "InvalidParameterValue", "Value (vol-1) for parameter volumeId is invalid. Expected: 'vol-...'."},
		{free, nobody, "InvalidInstanceID.NotFound", "The instance ID '" + nobody + "' does not exist"},
		{free, "i-1", "InvalidInstanceID.Malformed", "Invalid id: \"i-1\""},
		{free, "", "MissingParameter", "The request must contain the parameter instanceId"},
		{held, w.instance.ID, "VolumeInUse", held + " is already attached to an instance"},
		{leaving, stopped.ID, "VolumeInUse", leaving + " is already attached to an instance"},
		{free, elsewhere.ID, "InvalidVolume.ZoneMismatch", "The volume '" + free + "' is not in the same availability zone as instance '" + elsewhere.ID + "'"},
		{free, pending.ID, "IncorrectState", "Instance '" + pending.ID + "' is not 'running'."},
		{free, ending.ID, "IncorrectInstanceState", "The instance '" + ending.ID + "' is in the 'shutting-down' state."},
		{free, stopped.ID, "", ""},
	} {
		_, err := w.api.AttachVolume(t.Context(), &sdk.AttachVolumeInput{VolumeId: &test.volume, InstanceId: &test.instance, Device: aws.String("/dev/xvdbc")})
		assert.Equal(t, test.code, code(t, err))
		if test.code != "" {
			require.ErrorContains(t, err, test.code+": "+test.message)
		}
	}
	unattached := w.create()
	for _, test := range []struct{ volume, instance, code, message string }{
		{unattached, w.instance.ID, "IncorrectState", "Volume '" + unattached + "' is in the 'available' state."},
		{held, stopped.ID, "InvalidAttachment.NotFound", "The volume '" + held + "' is not attached to instance '" + stopped.ID + "'"},
		{held, nobody, "InvalidInstanceID.NotFound", "The instance ID '" + nobody + "' does not exist"},
		{nothing, w.instance.ID, "InvalidVolume.NotFound", "The volume '" + nothing + "' does not exist."},
		{root, w.instance.ID, "OperationNotPermitted", "Unable to detach root volume '" + root + "'"},
		{leaving, w.instance.ID, "", ""}, // repeated
		{free, stopped.ID, "", ""},
	} {
		_, err := w.api.DetachVolume(t.Context(), &sdk.DetachVolumeInput{VolumeId: &test.volume, InstanceId: &test.instance})
		assert.Equal(t, test.code, code(t, err))
		if test.code != "" {
			require.ErrorContains(t, err, test.code+": "+test.message)
		}
	}
}

func TestCreatingVolumeCannotBeAttached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Times: cloud.Times{Create: time.Minute, Delete: time.Minute}}, ec2.Config{})
		v := w.create()
		err := w.attach(v, "/dev/xvdba")
		require.ErrorContains(t, err, "IncorrectState: "+v+" is not 'available'.")
		time.Sleep(time.Minute + 1)
		_, err = w.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: &v})
		require.NoError(t, err)
		for _, shown := range []types.VolumeState{types.VolumeStateDeleting, types.VolumeStateDeleted} {
			out, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{VolumeIds: []string{v}})
			require.NoError(t, err)
			assert.Equal(t, shown, out.Volumes[0].State)
			time.Sleep(30*time.Second + 1)
		}
		_, err = w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{VolumeIds: []string{v}})
		assert.Equal(t, "InvalidVolume.NotFound", code(t, err))
	})
}

func TestModificationsAreLimitedToFourADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Times: cloud.Times{Modify: time.Hour}}, ec2.Config{})
		v := w.create()
		grow := func(size int32) error {
			_, err := w.api.ModifyVolume(t.Context(), &sdk.ModifyVolumeInput{VolumeId: &v, Size: &size})
			return err
		}
		_, err := w.api.DescribeVolumesModifications(t.Context(), &sdk.DescribeVolumesModificationsInput{VolumeIds: []string{v}})
		assert.Equal(t, "InvalidVolumeModification.NotFound", code(t, err))
		assert.Equal(t, "InvalidParameterCombination", code(t, func() error {
			_, err := w.api.ModifyVolume(t.Context(), &sdk.ModifyVolumeInput{VolumeId: &v})
			return err
		}()))
		assert.Equal(t, "InvalidParameterValue", code(t, grow(0)), "it cannot shrink")
		for i := range int32(4) {
			require.NoError(t, grow(2+i))
			assert.EqualValues(t, 1+i, w.truth(v).Size>>30, "too soon")
			assert.Equal(t, "IncorrectModificationState", code(t, grow(100)))
			time.Sleep(30*time.Minute + 1)
			assert.EqualValues(t, 2+i, w.truth(v).Size>>30, "optimizing")
			assert.Equal(t, "IncorrectModificationState", code(t, grow(100)))
			out, err := w.api.DescribeVolumesModifications(t.Context(), &sdk.DescribeVolumesModificationsInput{VolumeIds: []string{v}})
			require.NoError(t, err)
			m := out.VolumesModifications[0]
			assert.Equal(t, types.VolumeModificationStateOptimizing, m.ModificationState)
			assert.Equal(t, 2+i, *m.TargetSize)
			assert.EqualValues(t, 50, *m.Progress)
			time.Sleep(30*time.Minute + 1)
		}
		assert.Equal(t, "VolumeModificationRateExceeded", code(t, grow(100)))
		time.Sleep(20 * time.Hour)
		require.NoError(t, grow(100))

		other := w.create()
		out, err := w.api.ModifyVolume(t.Context(), &sdk.ModifyVolumeInput{VolumeId: &other, VolumeType: types.VolumeTypeIo2, Size: aws.Int32(10)})
		require.NoError(t, err)
		assert.EqualValues(t, 3000, *out.VolumeModification.TargetIops)
		all, err := w.api.DescribeVolumesModifications(t.Context(), &sdk.DescribeVolumesModificationsInput{})
		require.NoError(t, err)
		assert.Len(t, all.VolumesModifications, 2)
	})
}

func TestSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Times: cloud.Times{Snapshot: time.Minute}}, ec2.Config{})
		v := w.create(func(in *sdk.CreateVolumeInput) { in.Size, in.Encrypted = aws.Int32(7), aws.Bool(true) })
		s, err := w.api.CreateSnapshot(t.Context(), &sdk.CreateSnapshotInput{
			VolumeId: &v, Description: aws.String("before the upgrade"), TagSpecifications: tagged("snapshot", "Name", "db"),
		})
		require.NoError(t, err)
		assert.Equal(t, types.SnapshotStatePending, s.State)
		assert.EqualValues(t, 7, *s.VolumeSize)
		from := func(token string, size *int32) (*sdk.CreateVolumeOutput, error) {
			return w.api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), SnapshotId: s.SnapshotId, Size: size, ClientToken: &token})
		}
		_, err = from("a", nil)
		assert.Equal(t, "IncorrectState", code(t, err))
		time.Sleep(time.Minute + 1)
		_, err = from("a", nil)
		assert.Equal(t, "IdempotentParameterMismatch", code(t, err), "the token is used up")
		_, err = from("b", aws.Int32(6))
		assert.Equal(t, "InvalidParameterValue", code(t, err))
		made, err := from("c", nil)
		require.NoError(t, err)
		assert.EqualValues(t, 7, *made.Size)
		assert.True(t, *made.Encrypted, "like its snapshot")

		found, err := w.api.DescribeSnapshots(t.Context(), &sdk.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: []types.Filter{
			{Name: aws.String("volume-id"), Values: []string{v}},
			{Name: aws.String("status"), Values: []string{"completed"}},
			{Name: aws.String("description"), Values: []string{"before*"}},
			{Name: aws.String("tag:Name"), Values: []string{"db"}},
		}})
		require.NoError(t, err)
		require.Len(t, found.Snapshots, 1)
		assert.Equal(t, "100%", *found.Snapshots[0].Progress)
		amazon, err := w.api.DescribeSnapshots(t.Context(), &sdk.DescribeSnapshotsInput{OwnerIds: []string{"amazon"}})
		require.NoError(t, err)
		assert.Empty(t, amazon.Snapshots)

		_, err = w.api.DeleteSnapshot(t.Context(), &sdk.DeleteSnapshotInput{SnapshotId: s.SnapshotId})
		require.NoError(t, err)
		_, err = w.api.DeleteSnapshot(t.Context(), &sdk.DeleteSnapshotInput{SnapshotId: s.SnapshotId})
		assert.Equal(t, "InvalidSnapshot.NotFound", code(t, err))
	})
}

func TestTags(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	v := w.create(func(in *sdk.CreateVolumeInput) {
		in.TagSpecifications = tagged("volume", "kept", "1", "old", "2", "empty", "")
	})
	set := func(ids []string, pairs ...string) error {
		_, err := w.api.CreateTags(t.Context(), &sdk.CreateTagsInput{Resources: ids, Tags: tags(pairs...)})
		return err
	}
	require.NoError(t, set([]string{v, w.instance.ID}, "old", "3", "new", "4"))
	assert.Equal(t, map[string]string{"kept": "1", "old": "3", "empty": "", "new": "4"}, w.truth(v).Tags)
	for _, test := range []struct {
		ids  []string
		tags []string
		code string
	}{
		{[]string{v, "vol-0123456789abcdef0"}, []string{"a", "b"}, "InvalidVolume.NotFound"},
		{[]string{"i-0123456789abcdef0"}, []string{"a", "b"}, "InvalidInstanceID.NotFound"},
		{[]string{"snap-0123456789abcdef0"}, []string{"a", "b"}, "InvalidSnapshot.NotFound"},
		{[]string{"ami-1"}, []string{"a", "b"}, "InvalidID"},
		{[]string{v}, []string{"aws:a", "b"}, "InvalidParameterValue"},
		{[]string{v}, []string{"a", "b", "a", "b"}, "InvalidParameterValue"},
		{[]string{v}, many(47), "TagLimitExceeded"},
	} {
		assert.Equal(t, test.code, code(t, set(test.ids, test.tags...)))
	}
	assert.Len(t, w.truth(v).Tags, 4, "a refused request changes nothing")
	require.NoError(t, set([]string{v}, many(46)...))

	unset := func(list ...types.Tag) {
		t.Helper()
		_, err := w.api.DeleteTags(t.Context(), &sdk.DeleteTagsInput{Resources: []string{v}, Tags: list})
		require.NoError(t, err)
	}
	unset(types.Tag{Key: aws.String("old"), Value: aws.String("2")}, types.Tag{Key: aws.String("new")}, types.Tag{Key: aws.String("never")},
		types.Tag{Key: aws.String("kept"), Value: aws.String("")}, types.Tag{Key: aws.String("empty"), Value: aws.String("")})
	assert.Len(t, w.truth(v).Tags, 48)
	assert.Equal(t, "3", w.truth(v).Tags["old"], "the value differs")
	assert.Equal(t, "1", w.truth(v).Tags["kept"], "the value is not empty")
	assert.NotContains(t, w.truth(v).Tags, "new")
	assert.NotContains(t, w.truth(v).Tags, "empty")
	unset()
	assert.Empty(t, w.truth(v).Tags)
}

func TestDescribeInstancesShowsAttachedVolumes(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	v := w.create()
	require.NoError(t, w.attach(v, "/dev/xvdba"))
	w.cloud.AddInstance(cloud.Instance{State: cloud.Stopped})
	out, err := w.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{InstanceIds: []string{w.instance.ID}})
	require.NoError(t, err)
	require.Len(t, out.Reservations, 1)
	i := out.Reservations[0].Instances[0]
	assert.Equal(t, types.InstanceStateNameRunning, i.State.Name)
	assert.EqualValues(t, 16, *i.State.Code)
	assert.Equal(t, zone, *i.Placement.AvailabilityZone)
	assert.Equal(t, "/dev/xvda", *i.RootDeviceName)
	require.Len(t, i.BlockDeviceMappings, 2)
	assert.Equal(t, "/dev/xvdba", *i.BlockDeviceMappings[1].DeviceName)
	assert.Equal(t, v, *i.BlockDeviceMappings[1].Ebs.VolumeId)
	assert.Len(t, i.NetworkInterfaces, 1)

	out, err = w.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{Filters: []types.Filter{{Name: aws.String("instance-state-name"), Values: []string{"stopped"}}}})
	require.NoError(t, err)
	assert.Len(t, out.Reservations, 1)
	_, err = w.api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{InstanceIds: []string{w.instance.ID, "i-0123456789abcdef0"}})
	assert.Equal(t, "InvalidInstanceID.NotFound", code(t, err))
}

func TestInstanceTypes(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	out, err := w.api.DescribeInstanceTypes(t.Context(), &sdk.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"m5.large", "m7i.48xlarge", "t2.micro"}})
	require.NoError(t, err)
	require.Len(t, out.InstanceTypes, 3)
	shared, dedicated, xen := out.InstanceTypes[0], out.InstanceTypes[1], out.InstanceTypes[2]
	assert.EqualValues(t, 27, *shared.EbsInfo.MaximumEbsAttachments)
	assert.Equal(t, types.AttachmentLimitTypeShared, shared.EbsInfo.AttachmentLimitType)
	assert.EqualValues(t, 128, *dedicated.EbsInfo.MaximumEbsAttachments)
	assert.Equal(t, types.AttachmentLimitTypeDedicated, dedicated.EbsInfo.AttachmentLimitType)
	assert.Equal(t, types.InstanceTypeHypervisorXen, xen.Hypervisor)
	assert.Equal(t, types.EbsNvmeSupportUnsupported, xen.EbsInfo.NvmeSupport)
	_, err = w.api.DescribeInstanceTypes(t.Context(), &sdk.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"m5.huge"}})
	assert.Equal(t, "InvalidInstanceType", code(t, err))
}
