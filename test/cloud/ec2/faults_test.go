package ec2_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

// The table says whether a create with this fault leaves a volume behind.
var faults = []struct {
	rule   cloud.Rule
	effect bool
	check  func(*testing.T, error)
}{
	{cloud.Rule{Fault: cloud.Fail}, false, refused(http.StatusInternalServerError, "InternalError")},
	{cloud.Rule{Fault: cloud.Fail, Code: "ConcurrentTagAccess"}, false, refused(http.StatusBadRequest, "ConcurrentTagAccess")},
	{cloud.Rule{Fault: cloud.Fail, Code: "Unavailable"}, false, refused(http.StatusServiceUnavailable, "Unavailable")},
	{cloud.Rule{Fault: cloud.Fail, Code: "VolumeLimitExceeded"}, false, refused(http.StatusBadRequest, "VolumeLimitExceeded")},
	{cloud.Rule{Fault: cloud.Throttle}, false, refused(http.StatusServiceUnavailable, "RequestLimitExceeded")},
	{cloud.Rule{Fault: cloud.LoseAnswer}, true, broken},
	{cloud.Rule{Fault: cloud.Truncate}, true, broken},
	{cloud.Rule{Fault: cloud.Garbage}, true, broken},
	{cloud.Rule{Fault: cloud.Hang}, false, func(t *testing.T, err error) {
		t.Helper()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}},
}

func refused(status int, code string) func(*testing.T, error) {
	return func(t *testing.T, err error) {
		t.Helper()
		var api smithy.APIError
		require.ErrorAs(t, err, &api)
		assert.Equal(t, code, api.ErrorCode())
		var response interface{ HTTPStatusCode() int }
		require.ErrorAs(t, err, &response)
		assert.Equal(t, status, response.HTTPStatusCode())
	}
}

// broken checks that an error does not tell whether the call took effect.
func broken(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	var api smithy.APIError
	assert.NotErrorAs(t, err, &api, "not an error of the cloud")
}

func testFaults(t *testing.T, w *world, api *sdk.Client, patience time.Duration) {
	t.Helper()
	for _, fault := range faults {
		before := len(w.cloud.Volumes())
		fault.rule.Action, fault.rule.Times, fault.rule.Caller = "CreateVolume", 1, w.instance.ID
		w.cloud.Inject(fault.rule)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err := api.CreateVolume(ctx, &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1)})
		cancel()
		fault.check(t, err)
		assert.Equal(t, fault.effect, len(w.cloud.Volumes()) > before, "%s %s", fault.rule.Fault, fault.rule.Code)
		_, err = api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1)})
		require.NoError(t, err, "the next after %s", fault.rule.Fault)
	}
}

func TestFaultsWithoutSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Latency: time.Second}, ec2.Config{})
		testFaults(t, w, w.api, time.Hour)
	})
}

func TestFaultsBehindASocket(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	server := httptest.NewServer(w.front)
	t.Cleanup(server.Close)
	api := w.clientOf(w.instance.ID, func(o *sdk.Options) {
		o.BaseEndpoint, o.HTTPClient = &server.URL, server.Client()
	})
	testFaults(t, w, api, 500*time.Millisecond)
}

func TestTruncatedAnswerHasItsFullContentLength(t *testing.T) {
	w := newWorld(t, cloud.Config{}, ec2.Config{})
	w.cloud.Inject(cloud.Rule{Fault: cloud.Truncate})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://ec2."+region+".amazonaws.com/", nil)
	require.NoError(t, err)
	response, err := w.front.Transport(w.instance.ID).RoundTrip(r)
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Len(t, body, int(response.ContentLength)/2)
}

func TestRetryAfterLostAnswerMakesOneVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{}, ec2.Config{})
		w.cloud.Inject(cloud.Rule{Action: "CreateVolume", Times: 1, Fault: cloud.LoseAnswer})
		api := w.clientOf(w.instance.ID, func(o *sdk.Options) { o.Retryer = retry.NewStandard() })
		out, err := api.CreateVolume(t.Context(), &sdk.CreateVolumeInput{AvailabilityZone: aws.String(zone), Size: aws.Int32(1)})
		require.NoError(t, err)
		assert.Len(t, w.cloud.Volumes(), 2, "and the root")
		assert.Equal(t, 2, w.cloud.Calls()["CreateVolume"])
		w.truth(*out.VolumeId)
	})
}

func TestSDKRetriesThrottledCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{}, ec2.Config{})
		w.cloud.Inject(cloud.Rule{Times: 2, Fault: cloud.Throttle})
		api := w.clientOf(w.instance.ID, func(o *sdk.Options) { o.Retryer = retry.NewStandard() })
		_, err := api.DescribeVolumes(t.Context(), &sdk.DescribeVolumesInput{})
		require.NoError(t, err)
		assert.Equal(t, 2, w.cloud.Throttled()["DescribeVolumes"])
	})
}

func TestAttachThatNeverFinishesIsUndoneByDetach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, cloud.Config{Times: cloud.Times{Attach: time.Second, Detach: time.Second}}, ec2.Config{})
		v := w.create()
		w.cloud.Inject(cloud.Rule{Action: "AttachVolume", Times: 1, Fault: cloud.NeverFinish})
		require.NoError(t, w.attach(v, "/dev/xvdba"))
		time.Sleep(time.Hour)
		assert.Equal(t, cloud.Attaching, w.truth(v).Attachments[0].State)
		_, err := w.api.DetachVolume(t.Context(), &sdk.DetachVolumeInput{VolumeId: &v})
		require.NoError(t, err)
		time.Sleep(time.Second + 1)
		assert.Equal(t, cloud.Available, w.truth(v).State)
	})
}
