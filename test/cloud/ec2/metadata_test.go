package ec2_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// ask sends a request to a metadata service.
func ask(t *testing.T, transport http.RoundTripper, method, path string, headers ...string) (status int, body string) {
	t.Helper()
	status, _, body, err := httpsim.Send(t.Context(), transport, method, "http://"+httpsim.MetadataHost+path, "", headers...)
	require.NoError(t, err)
	return status, body
}

const (
	ttl   = "X-aws-ec2-metadata-token-ttl-seconds"
	token = "X-aws-ec2-metadata-token"
)

func TestMetadataNeedsAValidToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{}, ec2.Config{})
		service := w.front.Transport(w.instance.ID)
		for _, bad := range []string{"", "0", "-1", "21601", "long"} {
			status, _ := ask(t, service, http.MethodPut, "/latest/api/token", ttl, bad)
			assert.Equal(t, http.StatusBadRequest, status, "a token for %q seconds", bad)
		}
		status, _ := ask(t, service, http.MethodGet, "/latest/meta-data/instance-id")
		assert.Equal(t, http.StatusUnauthorized, status, "without a token")
		status, _ = ask(t, service, http.MethodGet, "/latest/meta-data/instance-id", token, "guess")
		assert.Equal(t, http.StatusUnauthorized, status)
		status, _ = ask(t, service, http.MethodPut, "/latest/api/token", ttl, "60", "X-Forwarded-For", "10.0.0.9")
		assert.Equal(t, http.StatusForbidden, status, "through a proxy")

		status, good := ask(t, service, http.MethodPut, "/latest/api/token", ttl, "60")
		require.Equal(t, http.StatusOK, status)
		for path, want := range map[string]string{
			"/latest/meta-data/instance-id":                 w.instance.ID,
			"/latest/meta-data/instance-type":               "m5.large",
			"/latest/meta-data/placement/availability-zone": zone,
			"/latest/meta-data/placement/region":            region,
			"/latest/meta-data/iam/security-credentials/":   "blockvol-node",
			"/latest/meta-data/network/interfaces/macs/":    "02:b1:0c:00:00:00/",
			"/latest/meta-data/local-ipv4":                  w.instance.Address,
		} {
			status, got := ask(t, service, http.MethodGet, path, token, good)
			assert.Equal(t, http.StatusOK, status, path)
			assert.Equal(t, want, got, path)
		}
		for _, path := range []string{"/", "/latest/meta-data/colour", "/latest/meta-data/iam/security-credentials/other", "/2009-04-04/meta-data/instance-id"} {
			status, _ := ask(t, service, http.MethodGet, path, token, good)
			assert.Equal(t, http.StatusNotFound, status, path)
		}
		time.Sleep(time.Minute)
		status, _ = ask(t, service, http.MethodGet, "/latest/meta-data/instance-id", token, good)
		assert.Equal(t, http.StatusUnauthorized, status, "after it has expired")
		other := w.cloud.AddInstance(cloud.Instance{})
		status, _ = ask(t, w.front.Transport(other.ID), http.MethodGet, "/latest/meta-data/instance-id", token, good)
		assert.Equal(t, http.StatusUnauthorized, status, "with another's token")
	})
}

func TestMetadataOptions(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	v1 := w.front.TransportWith(w.instance.ID, ec2.MetadataOptions{V1: true})
	status, body := ask(t, v1, http.MethodGet, "/latest/meta-data/instance-id")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, w.instance.ID, body)
	status, _ = ask(t, v1, http.MethodGet, "/latest/meta-data/instance-id", token, "guess")
	assert.Equal(t, http.StatusUnauthorized, status, "a wrong token is refused even if none is needed")

	off := w.front.TransportWith(w.instance.ID, ec2.MetadataOptions{Off: true, V1: true})
	status, _ = ask(t, off, http.MethodGet, "/latest/meta-data/instance-id")
	assert.Equal(t, http.StatusForbidden, status)
	status, _ = ask(t, off, http.MethodPut, "/latest/api/token", ttl, "60")
	assert.Equal(t, http.StatusForbidden, status)

	roleless := w.front.TransportWith(w.instance.ID, ec2.MetadataOptions{NoRole: true, V1: true})
	status, _ = ask(t, roleless, http.MethodGet, "/latest/meta-data/iam/security-credentials/")
	assert.Equal(t, http.StatusNotFound, status)
}

func TestCredentialsFromMetadataSignRequests(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	server := httptest.NewServer(w.front.Metadata(w.instance.ID, ec2.MetadataOptions{}))
	t.Cleanup(server.Close)
	for name, client := range map[string]*imds.Client{
		"without sockets": w.metadata,
		"behind a socket": imds.New(imds.Options{Endpoint: server.URL}),
	} {
		provider := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = client })
		keys, err := provider.Retrieve(t.Context())
		require.NoError(t, err, name)
		assert.True(t, keys.Expires.After(time.Now()), name)
		api := w.clientOf("", func(o *sdk.Options) { o.Credentials = aws.NewCredentialsCache(provider) })
		_, err = api.DescribeInstances(t.Context(), &sdk.DescribeInstancesInput{})
		require.NoError(t, err, name)
	}
}

func TestFaultsOfMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Latency: time.Hour}, ec2.Config{})
		remove := w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "503"})
		_, err := w.metadata.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: "instance-id"})
		require.Error(t, err)
		remove()
		remove = w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Hang})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = w.metadata.GetMetadata(ctx, &imds.GetMetadataInput{Path: "instance-id"})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		remove()
		start := time.Now()
		status, _ := ask(t, w.front.Transport(w.instance.ID), http.MethodPut, "/latest/api/token", ttl, "60")
		assert.Equal(t, http.StatusOK, status)
		assert.Zero(t, time.Since(start), "the API's latency does not apply")
		assert.Empty(t, w.cloud.Calls())
	})
}
