package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// output is a buffer for concurrent use.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

const instance = "i-0aaaaaaaaaaaaaaa1"

// start runs ec2sim with one instance. Function setting reads a setting from its output.
func start(t *testing.T, args ...string) (out *output, setting func(name string) string, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out = &output{}
	ended := make(chan error, 1)
	args = append([]string{"--listen", "127.0.0.1:0", "--region", "eu-test-9", "--instance", instance + "=127.0.0.1:0", "--seed", "1"}, args...)
	go func() { ended <- run(ctx, args, out) }()
	setting = func(name string) (value string) {
		t.Helper()
		find := regexp.MustCompile(name + `=(\S+)`)
		require.Eventually(t, func() bool {
			match := find.FindStringSubmatch(out.String())
			if match != nil {
				value = match[1]
			}
			return match != nil
		}, 10*time.Second, 5*time.Millisecond, name)
		return value
	}
	return out, setting, func() { cancel(); require.NoError(t, <-ended) }
}

func client(setting func(string) string) *sdk.Client {
	return sdk.New(sdk.Options{
		Region: setting("AWS_REGION"), BaseEndpoint: aws.String(setting("AWS_ENDPOINT_URL_EC2")),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: setting("AWS_ACCESS_KEY_ID"), SecretAccessKey: setting("AWS_SECRET_ACCESS_KEY")}, nil
		}),
	})
}

func TestPrintedSettingsAreEnoughToUseIt(t *testing.T) {
	out, setting, end := start(t, "--throttle")
	metadata := imds.New(imds.Options{Endpoint: setting("AWS_EC2_METADATA_SERVICE_ENDPOINT")})
	document, err := metadata.GetInstanceIdentityDocument(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, instance, document.InstanceID)
	assert.Equal(t, "eu-test-9a", document.AvailabilityZone)

	api := client(setting)
	volumes, err := api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
	require.NoError(t, err)
	assert.Len(t, volumes.Volumes, 1, "the instance's root")
	_, err = api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: volumes.Volumes[0].VolumeId})
	require.Error(t, err)

	end()
	printed := out.String()
	assert.Regexp(t, `\d account +DescribeVolumes: OK in `, printed)
	assert.Contains(t, printed, "DeleteVolume VolumeId="+*volumes.Volumes[0].VolumeId+": VolumeInUse in ")
	assert.Contains(t, printed, instance+" PUT /latest/api/token: OK in ")
	for line := range strings.Lines(printed) {
		if !strings.Contains(line, "export") {
			assert.NotContains(t, line, setting("AWS_SECRET_ACCESS_KEY"))
		}
	}
}

func TestVolumesAreBlockDevices(t *testing.T) {
	dir := t.TempDir()
	_, setting, end := start(t, "--disks", dir)
	api := client(setting)
	made, err := api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{AvailabilityZone: aws.String("eu-test-9a"), Size: aws.Int32(1)})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := api.AttachVolume(t.Context(), &sdk.AttachVolumeInput{VolumeId: made.VolumeId, InstanceId: aws.String(instance), Device: aws.String("/dev/sdf")})
		return err == nil
	}, 10*time.Second, 50*time.Millisecond)

	device := filepath.Join(setting("--sysfs"), "block", "*")
	read := func(file string) (content string) {
		require.Eventually(t, func() bool {
			found, err := filepath.Glob(filepath.Join(device, file))
			if err == nil && len(found) == 1 {
				b, _ := os.ReadFile(found[0])
				content = strings.TrimSpace(string(b))
			}
			return content != ""
		}, 10*time.Second, 5*time.Millisecond, file)
		return content
	}
	assert.Equal(t, strings.Replace(*made.VolumeId, "-", "", 1), read("device/serial"))
	assert.Equal(t, "2097152", read("size"), "sectors")
	end()
	left, err := filepath.Glob(device)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestInvalidFlagsAreExplained(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.json")
	require.NoError(t, os.WriteFile(policy, []byte(`{}`), 0o600))
	for want, args := range map[string][]string{
		"is not a loopback address":            {"--listen", "0.0.0.0:0"},
		"use ID=ADDRESS":                       {"--instance", "i-1"},
		"policy.json: the policy's version is": {"--policy", policy},
		"no such file":                         {"--policy", policy + ".not"},
		"--disks: ":                            {"--disks", policy},
		`unexpected argument "volumes"`:        {"volumes"},
	} {
		err := run(t.Context(), args, &output{})
		require.ErrorContains(t, err, want)
	}
}
