package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestCallersShareALookThatBeginsAfterAllOfThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = time.Minute
		var looks []map[string]bool
		s := shared[string, time.Time]{look: func(asked map[string]bool) (time.Time, error) {
			began := time.Now()
			looks = append(looks, asked)
			time.Sleep(takes)
			if asked["bad"] {
				return time.Time{}, errors.ErrUnsupported
			}
			return began, nil
		}}
		var callers sync.WaitGroup
		for i := range 20 { // during the first look, and the second
			callers.Go(func() {
				time.Sleep(time.Duration(i) * (takes/10 - time.Millisecond))
				asked := time.Now()
				began, err := s.get(t.Context(), strconv.Itoa(i))
				assert.False(t, began.Before(asked), "what was seen before the call is no answer")
				assert.NoError(t, err)
			})
		}
		callers.Wait()
		require.Len(t, looks, 3)
		assert.Len(t, looks[0], 1)
		assert.Len(t, looks[1], 10)
		assert.Len(t, looks[2], 9)

		_, err := s.get(t.Context(), "bad")
		require.ErrorIs(t, err, errors.ErrUnsupported)
		gaveUp := errors.New("the caller gave up")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, gaveUp)
		defer cancel()
		_, err = s.get(ctx, "late")
		require.ErrorIs(t, err, gaveUp)
		synctest.Wait()
		_, err = s.get(t.Context(), "later")
		require.NoError(t, err, "a look that nobody waited for stands in nobody's way")
	})
}

// BenchmarkInUse tells what one pass of reconciliation costs a node with 1,000 volumes in 1,000 containers and 2,000 processes,
// of which 980 share the host's mount namespace and 20 are services that have copies of it. A look for each volume took 51 s of
// processor time and 18.6 GB.
func BenchmarkInUse(b *testing.B) {
	const volumes, services, processes = 1000, 20, 2000
	for name, privileged := range map[string]bool{"all namespaces told": true, "no namespace told": false} {
		b.Run(name, func(b *testing.B) {
			h := newHost(b)
			h.proc = b.TempDir()
			line := func(id, parent int, dev, at string) string {
				return fmt.Sprintf("%d %d %s / %s rw,relatime shared:%d - ext4 /dev/disk%d rw\n", id, parent, dev, at, id, id)
			}
			devno := func(v int) string { return fmt.Sprintf("4000:%d", v) }
			host := func(first int) string {
				var all strings.Builder
				all.WriteString(line(first, 1, "8:1", "/"))
				for m := range 40 {
					all.WriteString(line(first+1+m, first, fmt.Sprintf("0:%d", m), fmt.Sprintf("/sys/%d", m)))
				}
				for v := range volumes {
					all.WriteString(line(first+100+v, first, devno(v), filepath.Join(h.published, fmt.Sprint("volume-", v))))
				}
				return all.String()
			}
			pid := 0
			process := func(ns, table string) {
				pid++
				dir := filepath.Join(h.proc, strconv.Itoa(pid))
				require.NoError(b, os.MkdirAll(filepath.Join(dir, "ns"), 0o700))
				if privileged {
					require.NoError(b, os.Symlink("mnt:["+ns+"]", filepath.Join(dir, "ns", "mnt")))
				}
				require.NoError(b, os.Link(table, filepath.Join(dir, "mountinfo")))
			}
			file := func(name, content string) string {
				path := filepath.Join(h.proc, name)
				require.NoError(b, os.WriteFile(path, []byte(content), 0o600))
				return path
			}
			of := file("host", host(10))
			for range processes - volumes - services {
				process("host", of)
			}
			for s := range services {
				process(fmt.Sprint("service", s), file(fmt.Sprint("service", s), host(2000*(s+1))))
			}
			var devices []Device
			for v := range volumes {
				var table strings.Builder
				table.WriteString(line(100000+100*v, 1, "0:99", "/"))
				for m := range 30 {
					table.WriteString(line(100001+100*v+m, 100000+100*v, fmt.Sprintf("0:%d", m), fmt.Sprintf("/proc/%d", m)))
				}
				table.WriteString(line(100099+100*v, 100000+100*v, devno(v), "/data"))
				process(fmt.Sprint("container", v), file(fmt.Sprint("container", v), table.String()))
				devices = append(devices, Device{Name: fmt.Sprint("disk", v), Path: fmt.Sprint("/dev/disk", v), Major: 4000, Minor: uint32(v)})
			}
			cpu := func() time.Duration {
				var u unix.Rusage
				require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
				return time.Duration(u.Utime.Nano() + u.Stime.Nano())
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := cpu()
			for b.Loop() {
				var all sync.WaitGroup
				for _, dev := range devices {
					all.Go(func() {
						used, err := h.InUse(context.Background(), dev)
						assert.True(b, used)
						assert.NoError(b, err)
					})
				}
				all.Wait()
			}
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64((cpu()-began).Milliseconds())/float64(b.N), "cpu-ms/pass")
			b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(b.N)/1e6, "MB/pass")
		})
	}
}
