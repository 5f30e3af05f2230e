package bench

import (
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cloud/loop"
	"github.com/blockvol/blockvol/test/space"
)

// ebs is a simulated EC2 with one instance, this machine, whose disks are loop devices, and blockvol on it.
type ebs struct {
	*daemon
	cloud *cloud.Cloud
}

// apiLatency is what each call to EC2 takes.
const apiLatency = 100 * time.Millisecond

func serveEBS(b *testing.B, attach time.Duration) *ebs {
	b.Helper()
	disks, err := loop.New(space.Dir(b))
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, disks.Close()) })
	c := cloud.New(cloud.Config{
		Zones: []string{"eu-bench-1a"}, Latency: apiLatency, Times: cloud.Times{Attach: attach, Detach: time.Second}, Backend: disks,
	})
	b.Cleanup(c.Close)
	instance := c.AddInstance(cloud.Instance{Type: "m7i.48xlarge", RootDevice: "/dev/xvda"}).ID
	front := ec2.New(ec2.Config{Cloud: c, Region: "eu-bench-1", Account: "123456789012"})
	api, metadata := httptest.NewServer(front), httptest.NewServer(front.Metadata(instance, ec2.MetadataOptions{}))
	b.Cleanup(api.Close)
	b.Cleanup(metadata.Close)
	tree := filepath.Join(b.TempDir(), "sysfs")
	require.NoError(b, disks.Sysfs(instance, tree))
	return &ebs{cloud: c, daemon: serveWith(b, []string{"--sysfs=" + tree}, "PROVIDER=aws", "DEFAULT_SIZE=1GiB", "CALL_TIMEOUT=55s",
		"AWS_ENDPOINT_URL_EC2="+api.URL, "AWS_EC2_METADATA_SERVICE_ENDPOINT="+metadata.URL)}
}

func ebsName(i int) string { return fmt.Sprintf("v%d", i) }

// make creates volumes and formats them.
func (e *ebs) make(b *testing.B, volumes int) {
	var all sync.WaitGroup
	for i := range volumes {
		all.Go(func() { e.call(b, "Create", map[string]any{"Name": ebsName(i)}) })
	}
	all.Wait()
	e.atOnce(b, "Mount", volumes)
	e.atOnce(b, "Unmount", volumes)
}

// atOnce mounts or unmounts the first volumes, all at once.
func (e *ebs) atOnce(b *testing.B, call string, volumes int) {
	var all sync.WaitGroup
	for i := range volumes {
		all.Go(func() { e.call(b, call, map[string]any{"Name": ebsName(i), "ID": "bench"}) })
	}
	all.Wait()
}

// counted returns the calls to EC2 that do makes.
func (e *ebs) counted(do func()) (calls int) {
	e.cloud.ResetCalls()
	do()
	for _, n := range e.cloud.Calls() {
		calls += n
	}
	return calls
}

// BenchmarkCallsToEC2 counts what mounts and unmounts of formatted volumes cost.
func BenchmarkCallsToEC2(b *testing.B) {
	for range b.N {
		e := serveEBS(b, 2*time.Second)
		e.make(b, 100)
		for _, n := range []int{1, 10, 100} {
			mount := e.counted(func() { e.atOnce(b, "Mount", n) })
			unmount := e.counted(func() { e.atOnce(b, "Unmount", n) })
			report(fmt.Sprintf("EC2: calls per mount, %d at once", n), "3", "%.2f", float64(mount)/float64(n))
			report(fmt.Sprintf("EC2: calls per unmount, %d at once", n), "2", "%.2f", float64(unmount)/float64(n))
		}
		e.stop()
	}
}

// BenchmarkOverEC2 measures what blockvol and the file system add to what EC2 itself takes: a call that describes the volume,
// and an attach, which begins when the simulated EC2 has carried out AttachVolume, half of the call's time after it was sent.
func BenchmarkOverEC2(b *testing.B) {
	for range b.N {
		for _, attach := range []time.Duration{time.Second, 5 * time.Second, 26 * time.Second} {
			e := serveEBS(b, attach)
			e.make(b, 1)
			var took []time.Duration
			for range 3 {
				took = append(took, e.call(b, "Mount", map[string]any{"Name": ebsName(0), "ID": "bench"}))
				e.atOnce(b, "Unmount", 1)
			}
			e.stop()
			own := median(took) - attach - apiLatency - apiLatency/2
			limit := max(200*time.Millisecond, attach/50)
			report(fmt.Sprintf("EC2: mount, over the cloud's own time, attach of %s", attach), fmt.Sprintf("%d ms", limit.Milliseconds()), "%d ms", own.Milliseconds())
		}
	}
}
