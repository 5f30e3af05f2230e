package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
)

// fixedNode is a Node in a fixed state.
type fixedNode struct {
	here       []driver.Here
	identified bool
	ready      func(context.Context) error
}

func (n fixedNode) Here() []driver.Here { return n.here }
func (n fixedNode) Identified() bool    { return n.identified }
func (n fixedNode) Ready(ctx context.Context) error {
	if n.ready == nil {
		return nil
	}
	return n.ready(ctx)
}

func mountedVolume(name string) driver.Here {
	h := driver.Here{
		Name: name, ID: "vol-1", State: "mounted", Device: "/dev/sdb", Size: 10 << 30, Uses: []node.Use{{ID: "1"}, {ID: "2"}},
		MeasuredAt: time.Now(), LastSnapshot: time.Unix(1780000000, 0), SnapshotDue: time.Now().Add(-time.Hour),
	}
	h.Space.Total, h.Space.Used, h.Space.Available = 9<<30, 3<<30, 5<<30
	h.Space.Inodes, h.Space.InodesUsed = 1000, 40
	return h
}

// full has every metric.
func full(t testing.TB) *Metrics {
	m := New("1.2.3")
	ago := time.Now().Add(-time.Minute)
	m.Serve(fixedNode{identified: true, here: []driver.Here{
		mountedVolume("data"),
		{Name: "leaving", State: "attached", Size: 1 << 30, Releasing: ago},
		{Name: "coming", Phase: volume.WaitingForHolder, Since: ago},
		{Name: "unmeasured", State: "mounted", Size: 1 << 30},
	}})
	m.Request(driver.Request{Method: "GET", Path: "/v1/volumes/4711", Status: 200, Took: 300 * time.Millisecond, Retries: 2, Throttled: 1})
	m.Request(driver.Request{Method: "POST", Path: "DescribeVolumes", Problem: "connection refused"})
	m.Event(volume.PhaseEnded{Volume: "data", Phase: volume.Attaching, Took: 2 * time.Second})
	m.Event(volume.CallEnded{Volume: "data", Op: volume.Mount, Took: 3 * time.Second})
	m.Event(volume.CallEnded{Volume: "data", Op: volume.Remove, Err: volume.Fail(volume.InUse, "in use", "")})
	m.Event(volume.TakenOver{Volume: "data", Holder: "b"})
	m.Event(volume.Found{Volume: "data", Finding: volume.Stray})
	return m
}

func get(t testing.TB, h http.Handler, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestAScrapeTellsWhatTheNodeHasAndDid(t *testing.T) {
	status, text := get(t, full(t), "/metrics")
	require.Equal(t, http.StatusOK, status)
	for _, line := range []string{
		`blockvol_serving 1`,
		`blockvol_node_identified 1`,
		`blockvol_volumes{state="mounted"} 2`,
		`blockvol_volumes{state="attached"} 0`,
		`blockvol_volumes{state="releasing"} 1`,
		`blockvol_volumes{state="pending"} 1`,
		`blockvol_volume_uses{volume="data"} 2`,
		`blockvol_volume_size_bytes{volume="data"} 1.073741824e+10`,
		`blockvol_volume_stats_capacity_bytes{volume="data"} 9.663676416e+09`,
		`blockvol_volume_stats_used_bytes{volume="data"} 3.221225472e+09`,
		`blockvol_volume_stats_available_bytes{volume="data"} 5.36870912e+09`,
		`blockvol_volume_stats_inodes{volume="data"} 1000`,
		`blockvol_volume_stats_inodes_used{volume="data"} 40`,
		`blockvol_volume_stats_inodes_free{volume="data"} 960`,
		`blockvol_api_requests_total{code="200",request="GET /v1/volumes/{id}"} 1`,
		`blockvol_api_requests_total{code="none",request="DescribeVolumes"} 1`,
		`blockvol_api_request_duration_seconds_bucket{request="GET /v1/volumes/{id}",le="0.5"} 1`,
		`blockvol_api_request_throttles_total{request="GET /v1/volumes/{id}"} 1`,
		`blockvol_api_request_retries_total{request="GET /v1/volumes/{id}"} 2`,
		`blockvol_phase_duration_seconds_sum{phase="attaching"} 2`,
		`blockvol_operation_duration_seconds_sum{operation="mount"} 3`,
		`blockvol_operation_errors_total{code="in-use",operation="remove"} 1`,
		`blockvol_operation_errors_total{code="held",operation="mount"} 0`,
		`blockvol_takeovers_total 1`,
		`blockvol_reconcile_findings_total{finding="stray"} 1`,
		`blockvol_reconcile_findings_total{finding="abandoned"} 0`,
	} {
		assert.Contains(t, text, "\n"+line+"\n")
	}
	assert.Regexp(t, `(?m)^blockvol_volume_detach_pending_seconds\{volume="leaving"\} 60\.`, text)
	assert.Regexp(t, `(?m)^blockvol_volume_phase_seconds\{volume="coming"\} 60\.`, text)
	assert.Contains(t, text, `blockvol_build_info{goversion="go`)
	assert.NotContains(t, text, `blockvol_volume_stats_used_bytes{volume="unmeasured"}`, "a zero would look like an empty volume")
	assert.NotContains(t, text, "4711")
}

func TestReadiness(t *testing.T) {
	m := New("1.2.3")
	status, why := get(t, m, "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "blockvol has just started\n", why)
	_, text := get(t, m, "/metrics")
	assert.Contains(t, text, "\nblockvol_serving 0\n")
	m.Broken(errors.New("PROVIDER is wrong"))
	_, why = get(t, m, "/readyz")
	assert.Equal(t, "PROVIDER is wrong\n", why)
	m.Serve(fixedNode{ready: func(context.Context) error { return errors.New("the journal cannot be written") }})
	status, why = get(t, m, "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "the journal cannot be written\n", why)
	m.Serve(fixedNode{})
	status, _ = get(t, m, "/readyz")
	assert.Equal(t, http.StatusOK, status)
	status, _ = get(t, m, "/healthz")
	assert.Equal(t, http.StatusOK, status)
	status, _ = get(t, m, "/other")
	assert.Equal(t, http.StatusNotFound, status)
}

func TestReadinessOfANodeThatHangsIsAnsweredAndAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := make(chan struct{})
		var asked atomic.Int32
		m := New("1.2.3")
		m.Serve(fixedNode{ready: func(context.Context) error { asked.Add(1); <-hangs; return nil }})
		for range 3 {
			status, why := get(t, m, "/readyz")
			assert.Equal(t, http.StatusServiceUnavailable, status)
			assert.Equal(t, errNoAnswer.Error()+"\n", why)
		}
		assert.Equal(t, int32(1), asked.Load())
		close(hangs)
		synctest.Wait()
		status, _ := get(t, m, "/readyz")
		assert.Equal(t, http.StatusOK, status)
	})
}

func TestListenServesUntilTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	require.Error(t, New("").Listen(ctx, "192.0.2.1:1"))
	m := New("1.2.3")
	addr, err := m.listen(ctx, "127.0.0.1:0")
	require.NoError(t, err)
	answer, err := http.Get("http://" + addr.String() + "/healthz")
	require.NoError(t, err)
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	assert.Equal(t, "ok\n", string(body))
	cancel()
	require.Eventually(t, func() bool {
		answer, err := http.Get("http://" + addr.String() + "/healthz")
		if err == nil {
			_ = answer.Body.Close()
		}
		return err != nil
	}, 10*time.Second, time.Millisecond)
}

// families are those of a Metrics that has every metric, by name.
func families(t testing.TB) map[string]*dto.MetricFamily {
	all, err := full(t).gather()
	require.NoError(t, err)
	byName := map[string]*dto.MetricFamily{}
	for _, f := range all {
		byName[f.GetName()] = f
	}
	return byName
}

func thousand() *Metrics {
	n := fixedNode{identified: true}
	for i := range 1000 {
		n.here = append(n.here, mountedVolume(fmt.Sprintf("volume-%04d", i)))
	}
	m := New("1.2.3")
	m.Serve(n)
	for _, path := range []string{"AttachVolume", "DescribeVolumes", "DetachVolume", "CreateVolume", "CreateTags", "DescribeInstances"} {
		for _, status := range []int{200, 400, 503} {
			m.Request(driver.Request{Method: "POST", Path: path, Status: status})
		}
	}
	return m
}

func BenchmarkScrape(b *testing.B) {
	m := thousand()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Header.Set("Accept-Encoding", "gzip")
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3")
	for b.Loop() {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.Header().Get("Content-Encoding") != "gzip" {
			b.Fatal(w.Code, w.Header())
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/scrape")
}
