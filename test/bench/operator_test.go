package bench

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkOperatorsList measures `blockvol ls` from the start of the command until its end, when the plugin has listed before.
func BenchmarkOperatorsList(b *testing.B) {
	const volumes = 1000
	d := serve(b, stocked(b, volumes))
	path, err := binary()
	require.NoError(b, err)
	ls := func() time.Duration {
		begin := time.Now()
		out, err := exec.Command(path, "ls", "--socket="+filepath.Join(d.dir, "blockvol.sock")).Output()
		took := time.Since(begin)
		require.NoError(b, err)
		require.Equal(b, volumes+1, bytes.Count(out, []byte("\n")), "a line for each, and the header")
		return took
	}
	ls()
	var took []time.Duration
	for b.Loop() {
		took = append(took, ls())
	}
	b.ReportMetric(float64(median(took).Microseconds()), "median-µs")
	report("blockvol ls, warm, median, 1,000 volumes", "200 ms", "%.0f ms", median(took).Seconds()*1e3)
}
