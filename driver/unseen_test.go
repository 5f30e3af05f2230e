package driver

import (
	"context"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// namesake is the cloud as seen by a machine that runs with another machine's id, such as a copy of its image.
type namesake struct {
	*fakeProvider
	id string
}

func (p namesake) Node(ctx context.Context) (providers.Node, error) {
	return providers.Node{ID: p.id, Zone: p.machine.zone}, ctx.Err()
}

func (p namesake) Attach(ctx context.Context, id, node string) error {
	other := &fakeProvider{&life{machine: p.machine.world.machines[p.id]}}
	return other.Attach(ctx, id, node)
}

func as(id string) func(*Config) {
	return func(c *Config) { c.Provider = namesake{c.Provider.(*fakeProvider), id} }
}

// reports counts the warnings and errors in the log whose error says so.
func reports(log *logtest.Hook, what, name string) (n int) {
	for _, e := range log.AllEntries() {
		if err, is := e.Data[logrus.ErrorKey].(error); is && e.Level <= logrus.WarnLevel && strings.Contains(err.Error(), what) && (name == "" || e.Data["volume"] == name) {
			n++
		}
	}
	return n
}

const notSeen = "this boot of it has not seen the disk's device"

func TestADiskOfAnotherMachineWithTheSameIDIsReportedAndNeverDetached(t *testing.T) {
	for name, before := range map[string]func(a, b *machine){
		"a node made from an image":          func(_, _ *machine) {},
		"the image held the other's journal": func(a, b *machine) { b.journal = maps.Clone(a.journal) },
		"its release was not finished": func(a, b *machine) {
			e := releasing(a.journal["data"])
			b.journal["data"] = e
		},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la := mounted(t, a.start(t), "data", "1")
				mounted(t, la, "attached-only", "2")
				mustUnmount(t, la, "attached-only", "2")
				synctest.Wait()
				w.alter(func(d *disk) {
					if !d.Held() {
						d.Attachment, d.present = providers.Attachment{Node: "a", State: providers.Attached}, time.Now().Add(1000*time.Hour)
					}
				})
				before(a, b)
				log, logged := logtest.NewNullLogger()
				lb := b.start(t, as("a"), func(c *Config) { c.Log = log })
				time.Sleep(24 * time.Hour)
				assert.Equal(t, "a", w.holder("data"))
				assert.Equal(t, "a", w.holder("attached-only"))
				assert.Equal(t, 1, reports(logged, notSeen, "data"), "reported once")
				assert.Equal(t, 1, reports(logged, notSeen, "attached-only"), "reported once")
				info, err := lb.Get(within(t), "data")
				require.NoError(t, err)
				assert.Contains(t, info.Status["problem"], notSeen)
				info, err = la.Get(within(t), "data")
				require.NoError(t, err)
				assert.NotContains(t, info.Status, "problem")

				for name := range w.disks {
					err = lb.Remove(within(t), w.disks[name].Name)
					require.ErrorContains(t, err, notSeen)
					ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
					_, err = lb.Mount(ctx, w.disks[name].Name, "3")
					cancel()
					require.ErrorContains(t, err, "whether another machine runs with this node's id")
				}
				time.Sleep(24 * time.Hour)
				assert.Equal(t, "a", w.holder("data"))
				assert.Equal(t, "a", w.holder("attached-only"))
				synctest.Wait()
				assert.Empty(t, b.journal)
				mustUnmount(t, la, "data", "1")
				assert.Empty(t, w.holder("data"))
				time.Sleep(time.Hour)
				info, err = lb.Get(within(t), "data")
				require.NoError(t, err)
				assert.NotContains(t, info.Status, "problem", "it is settled")
			})
		})
	}
}

// What the cloud calls a failed attach may be the other machine's.
func TestAnAttachOfAnotherMachineWithTheSameIDIsNotCalledOff(t *testing.T) {
	for _, state := range []providers.AttachState{providers.Attaching, providers.AttachFailed} {
		t.Run(string(state), func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				made(t, a.start(t), "data")
				synctest.Wait()
				w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: "a", State: state} })
				lb := b.start(t, as("a"))
				_, err := lb.Mount(limited(t, 2*time.Minute), "data", "1")
				require.ErrorContains(t, err, notSeen+`: it is not detached (volume "data"`)
				require.ErrorContains(t, err, "node a); see whether another machine runs with this node's id")
				require.ErrorIs(t, err, volume.WrongDisk)
				time.Sleep(time.Hour)
				assert.Equal(t, "a", w.holder("data"))
				synctest.Wait()
				w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
			})
		})
	}
}

func TestADiskWhoseDeviceComesSoonAfterABootIsReleased(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1")
		a.powerOff()
		w.alter(func(d *disk) { d.present = time.Now().Add(w.boot + idleTTL/2) })
		a.powerOn()
		a.start(t)
		time.Sleep(idleTTL + time.Second)
		assert.Empty(t, w.holder("data"))
	})
}

func TestADiskWhoseDeviceComesLateIsReleasedThen(t *testing.T) {
	for name, lose := range map[string]func(a *machine){
		"the journal knows it":      func(*machine) {},
		"the journal has lost it":   func(a *machine) { clear(a.journal) },
		"its release was cut short": func(a *machine) { a.journal["data"] = releasing(a.journal["data"]) },
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				mounted(t, a.start(t), "data", "1")
				a.powerOff()
				synctest.Wait()
				w.alter(func(d *disk) { d.present = time.Now().Add(3*time.Hour + suspectedEvery/2) })
				lose(a)
				a.powerOn()
				l := a.start(t)
				time.Sleep(2 * time.Hour)
				assert.Equal(t, "a", w.holder("data"), "its device has not been seen")
				time.Sleep(time.Hour + suspectedEvery/2 + 2*reconcileEvery)
				assert.Empty(t, w.holder("data"))
				mustMount(t, l, "data", "2")
				mustUnmount(t, l, "data", "2")
			})
		})
	}
}

// The attach was this boot's own: nobody else has the disk.
func TestAnAttachWithoutADeviceIsCalledOffAfterARestartToo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		w.arrival = time.Hour
		diesMounting(t, l, "cloud.Attach", crashAfter)
		a.start(t)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"))
	})
}

func TestAPulledDiskOfThisBootIsDetachedAfterARestartToo(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		a.containerEnds("1")
		a.engineTakesMounts()
		w.alter(func(d *disk) { d.present = time.Now().Add(time.Hour) })
		a.journal["data"].Ours = false // as in the journal of an earlier version
		a.start(t)
		time.Sleep(5 * time.Minute)
		assert.Empty(t, w.holder("data"))
	})
}

func TestADiskOnItsWayOutIsNotReported(t *testing.T) {
	detaching := func(t *testing.T, w *world, a *machine) {
		w.setFault(at("host.WaitGone", crashBefore))
		w.departure = 5 * time.Minute
		a.containerEnds("1")
		require.Error(t, a.current.Unmount(within(t), "data", "1"))
		w.setFault(calm)
		a.powerOff()
		w.boot = time.Second
		a.powerOn()
	}
	for name, leave := range map[string]func(t *testing.T, w *world, a *machine){
		"the answers are older than the detach": func(t *testing.T, w *world, a *machine) {
			w.setLag(5 * time.Second)
			mustUnmount(t, a.current, "data", "1")
			a.current.kill()
		},
		"it is being detached": detaching,
		"it is being detached, and the journal has lost it": func(t *testing.T, w *world, a *machine) {
			detaching(t, w, a)
			clear(a.journal)
		},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				w.setLag(0)
				l := made(t, a.start(t), "data")
				time.Sleep(time.Minute)
				mustMount(t, l, "data", "1")
				time.Sleep(time.Minute)
				leave(t, w, a)
				log, logged := logtest.NewNullLogger()
				a.start(t, func(c *Config) { c.Log = log })
				time.Sleep(time.Hour)
				assert.Zero(t, reports(logged, notSeen, ""))
				assert.Empty(t, w.holder("data"))
			})
		})
	}
}

// Another engine of the machine, with a journal of its own, formats and checks a disk before it mounts it.
func TestADiskThatSomethingOnThisMachineReadsIsNotDetachedAsAStray(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		made(t, a.start(t), "data").kill()
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: "a", State: providers.Attached} })
		disk := &busyDisk{}
		disk.busy.Store(true)
		for range 2 { // and after a restart
			l := a.start(t, func(c *Config) { disk.Host = c.Host; c.Host = disk })
			time.Sleep(5 * time.Minute)
			assert.Equal(t, "a", w.holder("data"))
			l.kill()
		}
		l := a.start(t, func(c *Config) { disk.Host = c.Host; c.Host = disk })
		disk.busy.Store(false)
		time.Sleep(time.Minute)
		assert.Empty(t, w.holder("data"))
		_ = l
	})
}

type busyDisk struct {
	node.Host
	busy  atomic.Bool
	count atomic.Uint64
}

func (b *busyDisk) Activity(mount.Device) (mount.Activity, error) {
	if b.busy.Load() {
		b.count.Add(1)
	}
	return mount.Activity{Reads: b.count.Load()}, nil
}

func TestADeadMountThatTheJournalLostIsTakenAway(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, a.start(t), "data", "1")
		l.kill()
		clear(a.journal)
		mustMount(t, b.start(t, takesAlways), "data", "2") // a is cut off
		l = a.start(t, takesAlways)
		synctest.Wait()
		assert.Empty(t, a.mounts["serial-1"].dir, "it shows a disk that is another node's")
		path, err := l.Path(within(t), "data")
		require.NoError(t, err)
		assert.Empty(t, path)
		a.containerEnds("1")
		b.containerEnds("2")
	})
}

func TestAnAttachThatTakesEffectLateIsNoticedSoon(t *testing.T) {
	for _, late := range []time.Duration{90 * time.Second, suspectedEvery + time.Minute} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := made(t, a.start(t), "data")
			time.Sleep(time.Hour) // the last look for strays is long ago
			w.setFault(at("cloud.Attach", failBefore))
			_, err := l.Mount(within(t), "data", "1")
			require.Error(t, err)
			w.setFault(calm)
			time.Sleep(late)
			w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: "a", State: providers.Attached} })
			if late < suspectedEvery {
				time.Sleep(2*reconcileEvery + idleTTL)
			} else {
				time.Sleep(suspectedEvery)
			}
			assert.Empty(t, w.holder("data"))
		})
	}
}

// Its advice is to detach the disk, which is in use there.
func TestADiskThatAnotherNodeHoldsIsNotReportedAsThisNodes(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, w *world, a *machine){
		"an attach to this node was given up": func(t *testing.T, w *world, a *machine) {
			w.setFault(at("cloud.Attach", failBefore))
			_, err := a.current.Mount(within(t), "data", "1")
			require.Error(t, err)
			w.setFault(calm)
			time.Sleep(suspectedEvery + 2*reconcileEvery)
		},
		"this node was said to hold it": func(t *testing.T, w *world, a *machine) {
			synctest.Wait()
			w.alter(func(d *disk) {
				d.Attachment, d.present = providers.Attachment{Node: "a", State: providers.Attached}, time.Now().Add(1000*time.Hour)
			})
			a.current.kill()
			l := a.start(t)
			time.Sleep(time.Minute)
			info, err := l.Get(within(t), "data")
			require.NoError(t, err)
			require.Contains(t, info.Status["problem"], notSeen)
			w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				made(t, a.start(t), "data")
				before(t, w, a)
				lb := b.start(t)
				mustMount(t, lb, "data", "2")
				time.Sleep(time.Minute)
				info, err := a.current.Get(within(t), "data")
				require.NoError(t, err)
				assert.Equal(t, "b", info.Status["node"])
				assert.NotContains(t, info.Status, "problem")
				mustUnmount(t, lb, "data", "2")
			})
		})
	}
}

func TestADeadMountThatCannotBeTakenAwayHoldsUpNoOtherVolume(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		cutOff := takesAlways
		l := mounted(t, a.start(t), "bad", "1")
		mounted(t, l, "good", "2")
		l.kill()
		synctest.Wait()
		delete(a.journal, "bad")
		lb := b.start(t, cutOff)
		mustMount(t, lb, "bad", "3")
		a.containerEnds("1")
		hung := make(chan struct{})
		a.start(t, cutOff, func(c *Config) { c.Host = &blindHost{Host: c.Host, hangDir: "bad", hung: hung} })
		a.containerEnds("2") // its Unmount is lost
		time.Sleep(5 * time.Minute)
		assert.Empty(t, w.holder("good"))
		close(hung)
		mustUnmount(t, lb, "bad", "3")
	})
}

// The journal of an earlier version does not tell whose the attach was.
func TestAVolumeInUseIsAttachedAgainWhateverItsEntryTells(t *testing.T) {
	for _, ours := range []bool{true, false} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			mounted(t, a.start(t), "data", "1").kill()
			a.engineTakesMounts() // as an upgrade of the plugin does
			a.journal["data"].Ours = ours
			l := a.start(t)
			synctest.Wait()
			w.alter(func(d *disk) { d.Attachment = providers.Attachment{} }) // pulled, while its container runs
			mustMount(t, l, "data", "2")
			a.containerEnds("1")
			mustUnmount(t, l, "data", "1")
			mustUnmount(t, l, "data", "2")
			assert.Empty(t, w.holder("data"))
		})
	}
}
