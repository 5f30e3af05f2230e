package mount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkStage measures blockvol's own share of the time to stage a volume: without the programs and mount(2), which are measured
// separately.
func BenchmarkStage(b *testing.B) {
	for _, fstype := range FSTypes() {
		b.Run(fstype, func(b *testing.B) {
			h := newHost(b)
			d := formatted(b, h, fstype)
			spec := StageSpec{FSType: fstype, Layout: LayoutData}
			stage(b, h, d, "vol", spec)
			unstage(b, h, d, "vol")
			bare := b.TempDir()
			var programs, kernel time.Duration
			for b.Loop() {
				stage(b, h, d, "vol", spec)
				b.StopTimer()
				unstage(b, h, d, "vol")
				began := time.Now()
				require.NoError(b, verifyFS(context.Background(), d.Device, fstype))
				require.NoError(b, check(context.Background(), d.Device, fstype))
				programs += time.Since(began)
				began = time.Now()
				require.NoError(b, unix.Mount(d.Path, bare, fstype, 0, ""))
				kernel += time.Since(began)
				require.NoError(b, unix.Unmount(bare, 0))
				d.isFree(h)
				b.StartTimer()
			}
			n := float64(b.N) * float64(time.Millisecond)
			b.ReportMetric(float64(b.Elapsed())/n, "ms/stage")
			b.ReportMetric(float64(programs)/n, "ms/programs")
			b.ReportMetric(float64(kernel)/n, "ms/mount(2)")
			b.ReportMetric(float64(b.Elapsed()-programs-kernel)/n, "ms/own-share")
		})
	}
}

// BenchmarkVerifyFS compares what each mount asks blkid for with a probe for all formats.
func BenchmarkVerifyFS(b *testing.B) {
	d := formatted(b, newHost(b), "ext4")
	b.Run("of a mount", func(b *testing.B) {
		for b.Loop() {
			require.NoError(b, verifyFS(b.Context(), d.Device, "ext4"))
		}
	})
	b.Run("all formats", func(b *testing.B) {
		for b.Loop() {
			_, err := blkid(b.Context(), d.Device)
			require.NoError(b, err)
		}
	})
}

// BenchmarkStageMany compares the time for 50 volumes at once with that for one.
func BenchmarkStageMany(b *testing.B) {
	h := newHost(b)
	var disks []*disk
	for range 50 {
		disks = append(disks, formatted(b, h, "ext4"))
	}
	all := func(some []*disk) time.Duration {
		began := time.Now()
		var calls sync.WaitGroup
		for _, d := range some {
			calls.Go(func() { stage(b, h, d, d.Name, StageSpec{FSType: "ext4", Layout: LayoutData}) })
		}
		calls.Wait()
		took := time.Since(began)
		for _, d := range some {
			unstage(b, h, d, d.Name)
		}
		return took
	}
	all(disks)
	var one, fifty time.Duration
	for b.Loop() {
		one += all(disks[:1])
		fifty += all(disks)
	}
	b.ReportMetric(float64(fifty)/float64(one), "times-one")
	b.ReportMetric(float64(one)/float64(b.N)/1e6, "ms/one")
	b.ReportMetric(float64(fifty)/float64(b.N)/1e6, "ms/fifty")
}

// BenchmarkInUse measures what one pass of reconciliation costs a node with 1,000 volumes in 1,000 containers and 2,000 processes,
// of which 980 share the host's mount namespace and 20 are services that have copies of it. One pass for each volume took 51 s of
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
						used, err := h.inUse(context.Background(), dev)
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

// BenchmarkFreeze measures how long a program that writes and syncs all the time waits for a snapshot: the file system is frozen until
// the cloud has answered, and for the driver's limit at most.
func BenchmarkFreeze(b *testing.B) {
	const limit = 700 * time.Millisecond
	for _, fstype := range FSTypes() {
		for _, answer := range []time.Duration{100 * time.Millisecond, 1500 * time.Millisecond} {
			b.Run(fstype+"/"+answer.String(), func(b *testing.B) {
				h := newHost(b)
				d := formatted(b, h, fstype)
				path := stage(b, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData})
				file, err := os.Create(filepath.Join(path, "log"))
				require.NoError(b, err)
				var waited []time.Duration
				for b.Loop() {
					frozen := make(chan struct{})
					longest := make(chan time.Duration)
					go func() {
						var most time.Duration
						for ended := false; !ended; {
							select {
							case <-frozen:
								ended = true // this write is the last
							default:
							}
							began := time.Now()
							_, err := file.Write([]byte("record"))
							if err == nil {
								err = file.Sync()
							}
							assert.NoError(b, err)
							most = max(most, time.Since(began))
						}
						longest <- most
					}()
					thaw, err := h.Freeze(b.Context(), d.Device, "vol", limit)
					require.NoError(b, err)
					time.Sleep(answer) // the cloud's
					if err := thaw(); answer < limit {
						require.NoError(b, err)
					} else {
						require.ErrorIs(b, err, ErrThawed)
					}
					close(frozen)
					waited = append(waited, <-longest)
				}
				require.NoError(b, file.Close())
				unstage(b, h, d, "vol")
				slices.Sort(waited)
				b.ReportMetric(float64(waited[len(waited)/2].Milliseconds()), "ms/median")
				b.ReportMetric(float64(waited[(len(waited)*99-1)/100].Milliseconds()), "ms/p99")
				b.ReportMetric(float64(waited[len(waited)-1].Milliseconds()), "ms/longest")
			})
		}
	}
}
