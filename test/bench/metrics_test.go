package bench

import (
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// BenchmarkMountWithMetrics compares mounts of four processes, of which two serve metrics that are read once a second, thirty times as often
// as Prometheus does. They take turns, so that whatever else the machine does slows all down. How far the two without differ is how far
// the figure can be trusted.
func BenchmarkMountWithMetrics(b *testing.B) {
	volume := map[string]any{"Name": "data", "ID": "bench"}
	one := func(d *daemon) time.Duration {
		took := d.call(b, "Mount", volume)
		d.call(b, "Unmount", volume)
		return took
	}
	var daemons []*daemon
	for _, with := range []bool{false, true, true, false} {
		var settings []string
		address := freeAddress(b)
		if with {
			settings = append(settings, "METRICS_ADDRESS="+address)
		}
		d := serveLocal(b, ramDisk(b), settings...)
		daemons = append(daemons, d)
		d.call(b, "Create", map[string]any{"Name": "data"})
		one(d) // formats
		if with {
			defer scrape(b, "http://"+address+"/metrics")()
		}
	}
	took := make([][]time.Duration, len(daemons))
	for turn := 0; b.Loop(); turn++ {
		for i := range daemons {
			i = (i + turn) % len(daemons) // none is always the first
			took[i] = append(took[i], one(daemons[i]))
		}
	}
	for _, d := range daemons {
		d.call(b, "Remove", map[string]any{"Name": "data"})
	}
	// Of the fastest tenth, to which other programs do least.
	ratio := func(some, others []time.Duration) float64 {
		return float64(percentile(some, 0.1)) / float64(percentile(others, 0.1))
	}
	with, without := slices.Concat(took[1], took[2]), slices.Concat(took[0], took[3])
	b.ReportMetric(ratio(with, without), "ratio")
	report("mount with metrics that are read each second, as a multiple of one without", "1.05", "%.3f", ratio(with, without))
	report("  the same of two without", "", "%.3f", ratio(took[3], took[0]))
}

// freeAddress is one on which nobody listens.
func freeAddress(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer func() { require.NoError(b, l.Close()) }()
	return l.Addr().String()
}

// scrape reads a page once a second until it is stopped.
func scrape(b *testing.B, url string) (stop func()) {
	b.Helper()
	end, scrapes := make(chan struct{}), 0
	var scraping sync.WaitGroup
	scraping.Go(func() {
		every := time.NewTicker(time.Second)
		defer every.Stop()
		for {
			if n := read(b, url); !assert.NotZero(b, n) {
				return
			}
			scrapes++
			select {
			case <-end:
				return
			case <-every.C:
			}
		}
	})
	return func() {
		close(end)
		scraping.Wait()
		require.NotZero(b, scrapes)
	}
}

// read returns the size of a page, 0 if it cannot be read.
func read(b *testing.B, url string) (bytes int64) {
	b.Helper()
	resp, err := http.Get(url)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	bytes, _ = io.Copy(io.Discard, resp.Body)
	return bytes
}
