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

// output is written and read at once.
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

func TestWhatItPrintsIsEnoughToUseIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := &output{}, make(chan error, 1)
	const instance = "i-0aaaaaaaaaaaaaaa1"
	go func() {
		ended <- run(ctx, []string{"--listen", "127.0.0.1:0", "--region", "eu-test-9", "--instance", instance + "=127.0.0.1:0", "--throttle", "--seed", "1"}, out)
	}()
	setting := func(name string) (value string) {
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
	metadata := imds.New(imds.Options{Endpoint: setting("AWS_EC2_METADATA_SERVICE_ENDPOINT")})
	document, err := metadata.GetInstanceIdentityDocument(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, instance, document.InstanceID)
	assert.Equal(t, "eu-test-9a", document.AvailabilityZone)

	api := sdk.New(sdk.Options{
		Region: setting("AWS_REGION"), BaseEndpoint: aws.String(setting("AWS_ENDPOINT_URL_EC2")),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: setting("AWS_ACCESS_KEY_ID"), SecretAccessKey: setting("AWS_SECRET_ACCESS_KEY")}, nil
		}),
	})
	volumes, err := api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
	require.NoError(t, err)
	assert.Len(t, volumes.Volumes, 1, "the instance's root")
	_, err = api.DeleteVolume(t.Context(), &sdk.DeleteVolumeInput{VolumeId: volumes.Volumes[0].VolumeId})
	require.Error(t, err)

	cancel()
	require.NoError(t, <-ended)
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

func TestWrongSettingsAreExplained(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.json")
	require.NoError(t, os.WriteFile(policy, []byte(`{}`), 0o600))
	for want, args := range map[string][]string{
		"is not on loopback":                   {"--listen", "0.0.0.0:0"},
		"must be an id and an address":         {"--instance", "i-1"},
		"policy.json: the policy's version is": {"--policy", policy},
		"no such file":                         {"--policy", policy + ".not"},
		"was built without them":               {"--disks", "/tmp"},
		`"volumes" is not a flag`:              {"volumes"},
	} {
		err := run(t.Context(), args, &output{})
		require.ErrorContains(t, err, want)
	}
}
