package ec2_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

const region, zone = "eu-test-1", "eu-test-1a"

// world is a cloud with one instance and its clients.
type world struct {
	t        *testing.T
	cloud    *cloud.Cloud
	front    *ec2.Front
	instance cloud.Instance
	api      *sdk.Client
	metadata *imds.Client
}

func newWorld(t *testing.T, cfg cloud.Config, front ec2.Config) *world {
	t.Helper()
	if cfg.Zones == nil {
		cfg.Zones = []string{zone, "eu-test-1b"}
	}
	w := &world{t: t, cloud: cloud.New(cfg)}
	t.Cleanup(w.cloud.Close)
	front.Cloud, front.Region = w.cloud, region
	w.front = ec2.New(front)
	w.instance = w.cloud.AddInstance(cloud.Instance{Type: "m5.large", RootDevice: "/dev/xvda"})
	w.api = w.clientOf(w.instance.ID, nil)
	w.metadata = imds.New(imds.Options{
		Endpoint:   "http://169.254.169.254",
		HTTPClient: &http.Client{Transport: w.front.Transport(w.instance.ID)},
		Retryer:    aws.NopRetryer{},
	})
	return w
}

// clientOf returns an instance's client, which does not retry.
func (w *world) clientOf(instance string, change func(*sdk.Options)) *sdk.Client {
	return sdk.New(sdk.Options{
		Region: region,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			key, secret, token := w.front.Credentials(instance)
			return aws.Credentials{AccessKeyID: key, SecretAccessKey: secret, SessionToken: token}, nil
		}),
		HTTPClient: &http.Client{Transport: w.front.Transport(instance)},
		Retryer:    aws.NopRetryer{},
	}, func(o *sdk.Options) {
		if change != nil {
			change(o)
		}
	})
}

// create creates a volume and waits until it is available.
func (w *world) create(change ...func(*sdk.CreateVolumeInput)) string {
	w.t.Helper()
	in := &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1), VolumeType: types.VolumeTypeGp3}
	for _, c := range change {
		c(in)
	}
	out, err := w.api.CreateVolume(w.t.Context(), in)
	require.NoError(w.t, err)
	return *out.VolumeId
}

func (w *world) attach(volume, device string) error {
	_, err := w.api.AttachVolume(w.t.Context(), &sdk.AttachVolumeInput{
		VolumeId: &volume, InstanceId: &w.instance.ID, Device: &device,
	})
	return err
}

func (w *world) truth(volume string) cloud.Volume {
	w.t.Helper()
	v, ok := w.cloud.Volume(volume)
	require.True(w.t, ok, "%s is gone", volume)
	return v
}

// code returns the error code of an EC2 error.
func code(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var api smithy.APIError
	require.ErrorAs(t, err, &api)
	return api.ErrorCode()
}

func TestVolumeLifecycle(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	created, err := w.api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{
		AvailabilityZone: aws.String(zone), Size: aws.Int32(10), VolumeType: types.VolumeTypeGp3, ClientToken: aws.String("a"),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: []types.Tag{{Key: aws.String("Name"), Value: aws.String("db <&>")}}}},
	})
	require.NoError(t, err)
	assert.Equal(t, types.VolumeStateCreating, created.State, "the answer shows it as pending")
	assert.Regexp(t, "^vol-0[0-9a-f]{16}$", *created.VolumeId)
	assert.EqualValues(t, 3000, *created.Iops)
	assert.EqualValues(t, 125, *created.Throughput)
	assert.WithinDuration(t, time.Now(), *created.CreateTime, time.Minute)
	id := *created.VolumeId

	require.NoError(t, w.attach(id, "/dev/xvdba"))
	out, err := w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{VolumeIds: []string{id}})
	require.NoError(t, err)
	require.Len(t, out.Volumes, 1)
	v := out.Volumes[0]
	assert.Equal(t, types.VolumeStateInUse, v.State)
	require.Len(t, v.Attachments, 1)
	assert.Equal(t, types.VolumeAttachmentStateAttached, v.Attachments[0].State)
	assert.Equal(t, "/dev/xvdba", *v.Attachments[0].Device)
	assert.Equal(t, "db <&>", *v.Tags[0].Value)

	_, err = w.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: &id})
	assert.Equal(t, "VolumeInUse", code(t, err))
	detached, err := w.api.DetachVolume(t.Context(), &sdk.DetachVolumeInput{VolumeId: &id})
	require.NoError(t, err)
	assert.Equal(t, types.VolumeAttachmentStateDetaching, detached.State)
	_, err = w.api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: &id})
	require.NoError(t, err)
	_, err = w.api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{VolumeIds: []string{id}})
	assert.Equal(t, "InvalidVolume.NotFound", code(t, err))
}

func TestInstanceIdentityAndCredentials(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	document, err := w.metadata.GetInstanceIdentityDocument(t.Context(), &imds.GetInstanceIdentityDocumentInput{})
	require.NoError(t, err)
	assert.Equal(t, w.instance.ID, document.InstanceID)
	assert.Equal(t, region, document.Region)
	assert.Equal(t, zone, document.AvailabilityZone)
	assert.Equal(t, "m5.large", document.InstanceType)
}
