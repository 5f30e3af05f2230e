// Package bench measures the speed of blockvol: the real program with real loop devices and file systems.
//
// `make bench` prints the figures as a table with their limits.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/local"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
)

// row is a row of the table.
type row struct{ figure, measured, limit string }

var (
	tableMu sync.Mutex
	table   = map[string]row{} // by figure; the last run of a benchmark is the longest
	order   []string
)

func report(figure, limit, format string, args ...any) {
	tableMu.Lock()
	defer tableMu.Unlock()
	if _, known := table[figure]; !known {
		order = append(order, figure)
	}
	table[figure] = row{figure, fmt.Sprintf(format, args...), limit}
}

func TestMain(m *testing.M) {
	cloudtest.Unsetenv("AWS_")
	code := m.Run()
	if built != "" {
		_ = os.RemoveAll(built)
	}
	if len(order) > 0 && flag.Lookup("test.bench").Value.String() != "" {
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintf(w, "\n| figure\t| measured\t| to stay under\t|\n|---\t|---\t|---\t|\n")
		for _, figure := range order {
			r := table[figure]
			fmt.Fprintf(w, "| %s\t| %s\t| %s\t|\n", r.figure, r.measured, r.limit)
		}
		_ = w.Flush()
	}
	os.Exit(code)
}

var built string // directory of the binary

var binary = sync.OnceValues(func() (string, error) {
	var err error
	if built, err = os.MkdirTemp("", "blockvol-bench-"); err != nil {
		return "", err
	}
	path := filepath.Join(built, "blockvol")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/blockvol/blockvol/cmd/blockvol")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})

// daemon is a running blockvol.
type daemon struct {
	cmd    *exec.Cmd
	client *http.Client
	dir    string
	start  time.Duration // from the start of the process until it listens
	stop   func()
}

// serve starts blockvol. It uses an existing volume directory if one is given.
func serve(b *testing.B, volumes string) *daemon {
	b.Helper()
	if volumes == "" {
		volumes = filepath.Join(b.TempDir(), "volumes")
	}
	return serveLocal(b, volumes, "LOCAL_OVERCOMMIT=true")
}

func serveLocal(b *testing.B, volumes string, settings ...string) *daemon {
	b.Helper()
	return serveWith(b, nil, append(settings, "LOCAL_DIR="+volumes, "DEFAULT_SIZE=64MiB")...)
}

// serveWith is serve with flags and settings.
func serveWith(b *testing.B, flags []string, settings ...string) *daemon {
	b.Helper()
	path, err := binary()
	require.NoError(b, err)
	d := &daemon{dir: b.TempDir()}
	socket := filepath.Join(d.dir, "blockvol.sock")
	d.cmd = exec.Command(path, append([]string{"serve", "--socket=" + socket, "--published=" + filepath.Join(d.dir, "published"), "--state=" + filepath.Join(d.dir, "state"), "--copy-up-probe=0"}, flags...)...)
	d.cmd.Env = append(append(os.Environ(), "LOG_LEVEL=error"), settings...)
	d.cmd.Stderr = os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	dial := func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", socket) }
	begin := time.Now()
	require.NoError(b, d.cmd.Start())
	for {
		conn, err := dial(b.Context())
		if err == nil {
			d.start = time.Since(begin)
			require.NoError(b, conn.Close())
			break
		}
		require.Less(b, time.Since(begin), 10*time.Second, "blockvol does not listen")
		time.Sleep(100 * time.Microsecond)
	}
	d.client = &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 64,
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	d.stop = sync.OnceFunc(func() {
		require.NoError(b, d.cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(b, d.cmd.Wait())
	})
	b.Cleanup(d.stop)
	return d
}

// call makes a call as Docker does and returns its duration.
func (d *daemon) call(b *testing.B, name string, request map[string]any) time.Duration {
	body, err := json.Marshal(request)
	require.NoError(b, err)
	begin := time.Now()
	resp, err := d.client.Post("http://blockvol/VolumeDriver."+name, "application/json", bytes.NewReader(body))
	require.NoError(b, err)
	answer, err := io.ReadAll(resp.Body)
	took := time.Since(begin)
	require.NoError(b, err)
	require.NoError(b, resp.Body.Close())
	require.Equal(b, http.StatusOK, resp.StatusCode, "%s: %s", name, answer)
	return took
}

// resident returns the memory of the process in bytes.
func (d *daemon) resident(b *testing.B) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	require.NoError(b, err)
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			require.NoError(b, err)
			return kib << 10
		}
	}
	b.Fatal("no VmRSS in /proc/PID/status")
	return 0
}

func percentile(all []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(float64(len(sorted))*p), len(sorted)-1)]
}

func median(all []time.Duration) time.Duration { return percentile(all, 0.5) }

// ramDisk returns a directory where fsync is free, and any number of volumes fits.
func ramDisk(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=100t,nr_inodes=0"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

var known = flag.Int("known", 10_000, "how many volumes there are in BenchmarkCreate and BenchmarkManyVolumes; the limits are for the default")

// stocked returns a directory on a ramDisk with that many formatted volumes of provider local.
func stocked(b *testing.B, volumes int) string {
	b.Helper()
	dir := ramDisk(b)
	p, err := local.New(local.Config{Dir: dir, Node: "bench", Cluster: "default"})
	require.NoError(b, err)
	record := providers.Record{"fstype": "ext4", "layout": mount.LayoutData, "formatted": "ext4"}
	for i := range volumes {
		_, err := p.Create(b.Context(), providers.Spec{Name: fmt.Sprintf("volume-%06d", i), Size: 64 << 20, Record: record})
		require.NoError(b, err)
	}
	return dir
}

// BenchmarkCreate measures what a create on local costs with few and with many volumes. Nothing else differs between the two.
func BenchmarkCreate(b *testing.B) {
	few, many := serveLocal(b, stocked(b, 10)), serveLocal(b, stocked(b, *known))
	one := func(d *daemon) time.Duration {
		took := d.call(b, "Create", map[string]any{"Name": "new"})
		d.call(b, "Remove", map[string]any{"Name": "new"})
		return took
	}
	one(few)
	one(many) // the first call after a boot looks at all volumes
	var withFew, withMany []time.Duration
	for b.Loop() {
		for range 10 {
			withFew, withMany = append(withFew, one(few)), append(withMany, one(many))
		}
	}
	ratio := float64(median(withMany)) / float64(median(withFew))
	b.ReportMetric(float64(median(withMany).Microseconds()), "median-µs")
	b.ReportMetric(ratio, "ratio")
	report(fmt.Sprintf("create on local, median, %d volumes known", *known), "", "%.2f ms", median(withMany).Seconds()*1e3)
	report("  the same as a multiple of that with 10 volumes", "1.5", "%.2f", ratio)
}

// BenchmarkManyVolumes measures reads and memory with many volumes.
func BenchmarkManyVolumes(b *testing.B) {
	d := serve(b, stocked(b, *known))
	d.call(b, "List", map[string]any{}) // fills the cache

	for _, call := range []string{"Get", "Path"} {
		b.Run(call, func(b *testing.B) {
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				took = append(took, d.call(b, call, map[string]any{"Name": fmt.Sprintf("volume-%06d", i*7919%*known)}))
			}
			p99 := percentile(took, 0.99)
			b.ReportMetric(float64(p99.Microseconds()), "p99-µs")
			report(fmt.Sprintf("%s, p99, %d volumes known", call, *known), "1 ms", "%.2f ms", p99.Seconds()*1e3)
		})
	}
	b.Run("List", func(b *testing.B) {
		d.call(b, "List", map[string]any{})
		var took []time.Duration
		for b.Loop() {
			took = append(took, d.call(b, "List", map[string]any{}))
		}
		b.ReportMetric(float64(median(took).Microseconds()), "median-µs")
		report(fmt.Sprintf("List, warm, median, %d volumes", *known), "50 ms", "%.1f ms", median(took).Seconds()*1e3)
	})
	b.Run("Memory", func(b *testing.B) {
		for b.Loop() {
			d.call(b, "List", map[string]any{})
		}
		resident := d.resident(b)
		b.ReportMetric(float64(resident)/(1<<20), "MiB")
		report("resident memory after that", "60 MB", "%.0f MB", float64(resident)/1e6)
	})
}

// BenchmarkStart measures the time from the start of the process until it accepts a connection.
func BenchmarkStart(b *testing.B) {
	var took []time.Duration
	for b.Loop() {
		d := serve(b, "")
		took = append(took, d.start)
		d.stop()
	}
	b.ReportMetric(float64(median(took).Microseconds()), "median-µs")
	report("start to listening, median", "100 ms", "%.1f ms", median(took).Seconds()*1e3)
}

// BenchmarkMount measures mounts of formatted volumes, one and many at once.
func BenchmarkMount(b *testing.B) {
	const many = 50
	images := b.TempDir()
	d := serve(b, images)
	name := func(i int) string { return fmt.Sprintf("v%d", i) }
	mountOne := func(b *testing.B, i int) time.Duration {
		return d.call(b, "Mount", map[string]any{"Name": name(i), "ID": "bench"})
	}
	unmountOne := func(b *testing.B, i int) { d.call(b, "Unmount", map[string]any{"Name": name(i), "ID": "bench"}) }
	for i := range many {
		d.call(b, "Create", map[string]any{"Name": name(i)})
		mountOne(b, i) // formats
		unmountOne(b, i)
	}
	b.Cleanup(func() {
		for i := range many {
			d.call(b, "Remove", map[string]any{"Name": name(i)})
		}
	})
	one := func(b *testing.B) time.Duration { took := mountOne(b, 0); unmountOne(b, 0); return took }

	b.Run("OwnShare", func(b *testing.B) {
		programs := programsOfAMount(b, images)
		var took []time.Duration
		for b.Loop() {
			took = append(took, one(b))
		}
		own := median(took) - programs
		b.ReportMetric(float64(own.Microseconds()), "own-µs")
		report("mount of a formatted volume, median", "", "%.1f ms", median(took).Seconds()*1e3)
		report("  of it mount and fsck themselves", "", "%.1f ms", programs.Seconds()*1e3)
		report("  of it blockvol", "20 ms", "%.1f ms", own.Seconds()*1e3)
	})
	b.Run("FiftyAtOnce", func(b *testing.B) {
		var ratios []float64
		for b.Loop() {
			single := median([]time.Duration{one(b), one(b), one(b), one(b), one(b)})
			var all sync.WaitGroup
			begin := time.Now()
			for i := range many {
				all.Go(func() { mountOne(b, i) })
			}
			all.Wait()
			ratios = append(ratios, float64(time.Since(begin))/float64(single))
			for i := range many {
				unmountOne(b, i)
			}
		}
		slices.Sort(ratios)
		ratio := ratios[len(ratios)/2]
		b.ReportMetric(ratio, "ratio")
		report("50 volumes mounted at once, in times of one", "5", "%.1f", ratio)
	})
}

// programsOfAMount measures e2fsck and mount for one of the volumes, without blockvol.
func programsOfAMount(b *testing.B, volumes string) time.Duration {
	images, err := filepath.Glob(filepath.Join(volumes, "disks", "*.img"))
	require.NoError(b, err)
	require.NotEmpty(b, images)
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", images[0]).CombinedOutput()
	require.NoError(b, err, "%s", out)
	device := strings.TrimSpace(string(out))
	defer func() { require.NoError(b, exec.Command("losetup", "--detach", device).Run()) }()
	dir := b.TempDir()
	var took []time.Duration
	for range 21 {
		begin := time.Now()
		require.NoError(b, exec.Command("e2fsck", "-p", device).Run())
		require.NoError(b, unix.Mount(device, dir, "ext4", 0, ""))
		took = append(took, time.Since(begin))
		require.NoError(b, unix.Unmount(dir, 0))
	}
	return median(took)
}
