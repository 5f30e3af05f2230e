package driver

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// after is a context that ends so much later.
func status(t *testing.T, l *life, name string) map[string]any {
	t.Helper()
	synctest.Wait() // what has been answered may not have left yet
	info, err := l.Get(within(t), name)
	require.NoError(t, err)
	return info.Status
}

func TestAVolumeThatDoesNotExistIsNotMounted(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		_, err := a.start(t).Mount(within(t), "data", "1")
		require.ErrorIs(t, err, providers.ErrNotFound)
		require.ErrorContains(t, err, "see the cloud's own records for who deleted its disk")
	})
}

// sharing is a kernel that says so of whether the engine sees what is mounted.
type sharing struct {
	node.Host
	err error
}

func (s sharing) Shared(context.Context) (bool, error) { return false, s.err }

func TestWhetherTheEngineSeesTheMountDecidesTheAnswer(t *testing.T) {
	for name, c := range map[string]struct{ err, is error }{
		"it does not, and nobody can restart the plugin": {nil, node.ErrNotVisible},
		"it cannot be told": {errInjected, errInjected},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, _ *world, a, _ *machine) {
				l := made(t, a.start(t, func(cfg *Config) {
					cfg.Host = sharing{cfg.Host, c.err}
					if c.err != nil {
						cfg.Restart = func() { t.Error("it was restarted for nothing") }
					}
				}), "data")
				_, err := l.Mount(within(t), "data", "1")
				require.ErrorIs(t, err, c.is)
			})
		})
	}
}

func TestWhatAMountFoundOutIsShownAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		is := status(t, l, "data")
		assert.Equal(t, "a", is["node"])
		assert.Equal(t, "mounted", is["state"])
		assert.Equal(t, true, is["formatted"])
		mustUnmount(t, l, "data", "1")
		assert.NotEqual(t, "attached", status(t, l, "data")["state"])
		time.Sleep(time.Minute)
		mustMount(t, l, "data", "2") // it is formatted now, so the cloud is asked only once
		assert.Equal(t, "a", status(t, l, "data")["node"])
		mustUnmount(t, l, "data", "2")
	})
}

func TestAPathThatShowsNothingAnyMoreIsNotShown(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t), "data", "1")
		a.engineTakesMounts()
		w.setFault(at("host.Stage", failBefore))
		_, err := l.Mount(within(t), "data", "2")
		require.ErrorIs(t, err, errInjected)
		path, err := l.Path(within(t), "data")
		require.NoError(t, err)
		assert.Empty(t, path)
		a.containerEnds("1")
	})
}

func TestAVolumeIsNotKeptForALastUserThatWasBrief(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := mounted(t, a.start(t, probing), "data", "1")
		time.Sleep(time.Hour)
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "1")
		mustUnmount(t, l, "data", "2")
		assert.Empty(t, w.holder("data"))
	})
}

// slow is a kernel in which one of these takes so long, and which hears of a context that ends.
type slow struct {
	node.Host
	format, publish time.Duration
	cut             error
}

func (s *slow) wait(ctx context.Context, d time.Duration) {
	if err := pause.For(ctx, d); err != nil {
		s.cut = errors.Join(s.cut, err)
	}
}

func (s *slow) Format(ctx context.Context, dev mount.Device, spec mount.FormatSpec) error {
	s.wait(ctx, s.format)
	return s.Host.Format(ctx, dev, spec)
}

func (s *slow) Stage(ctx context.Context, dev mount.Device, dir string, spec mount.StageSpec) (string, error) {
	s.wait(ctx, s.publish)
	return s.Host.Stage(ctx, dev, dir, spec)
}

// Half a mkfs or fsck is worse than a late one. Whoever waits is told what takes so long.
func TestNeitherAFormatNorACheckIsCutShort(t *testing.T) {
	for doing, host := range map[string]*slow{
		"being formatted": {format: 3 * time.Minute},
		"being checked":   {publish: 3 * time.Minute},
	} {
		t.Run(doing, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := made(t, a.start(t, func(c *Config) { host.Host = c.Host; c.Host = host }), "data")
				_, err := l.Mount(within(t), "data", "1")
				require.ErrorIs(t, err, volume.Unfinished)
				require.ErrorContains(t, err, doing+" (waited 25s)")
				time.Sleep(10 * time.Minute) // nobody comes back for it
				require.NoError(t, host.cut)
				assert.Equal(t, 1, w.disk("data").formats)
				assert.Empty(t, w.holder("data"))
			})
		})
	}
}

// stunted is a kernel that cannot grow a file system to its device at the mount.
type stunted struct{ node.Host }

func (s stunted) Stage(ctx context.Context, dev mount.Device, dir string, spec mount.StageSpec) (string, error) {
	path, err := s.Host.Stage(ctx, dev, dir, spec)
	spec.Warn(errInjected)
	return path, err
}

func TestAFileSystemThatCannotGrowAtItsMountIsToldOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		log, logged := logtest.NewNullLogger()
		l := mounted(t, a.start(t, func(c *Config) { c.Host, c.Log = stunted{c.Host}, log }), "data", "1")
		w.setFault(at("host.Grow", failBefore))
		time.Sleep(time.Hour)
		assert.Equal(t, 1, reports(logged, errInjected.Error(), "data"))
		mustUnmount(t, l, "data", "1")
	})
}

func TestAVolumeOrANodeWithoutAZoneIsAttached(t *testing.T) {
	for _, c := range []struct{ volume, node string }{{"", "z1"}, {"z1", ""}} {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := made(t, a.start(t), "data")
			time.Sleep(time.Minute)
			w.alter(func(d *disk) { d.Zone = c.volume })
			w.set(func() { a.zone = c.node })
			mustMount(t, l, "data", "1")
			mustUnmount(t, l, "data", "1")
		})
	}
}

// What the cloud answers after a detach whose end was not seen may be of a time before it.
func TestADetachWhoseEndWasNotSeenIsWaitedOutHereOnly(t *testing.T) {
	unmountUnseen := func(t *testing.T, w *world, l *life) {
		time.Sleep(3 * reconcileEvery / 2) // the next look at it is far
		w.setFault(at("host.WaitGone", failBefore))
		l.machine.containerEnds("1")
		require.Error(t, l.Unmount(within(t), "data", "1"))
		w.setFault(calm)
		w.count()
	}
	t.Run("a free volume", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := mounted(t, a.start(t), "data", "1")
			unmountUnseen(t, w, l)
			_, err := l.Mount(limited(t, providers.MaxStale/2), "data", "2")
			require.ErrorContains(t, err, "being detached from this node")
			assert.Zero(t, w.count()["Attach"])
			mustMount(t, l, "data", "2")
			mustUnmount(t, l, "data", "2")
		})
	})
	t.Run("a volume that another node holds", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, b *machine) {
			la, lb := mounted(t, a.start(t), "data", "1"), b.start(t)
			unmountUnseen(t, w, la)
			mustMount(t, lb, "data", "2")
			b.powerOff()
			_, err := la.Mount(limited(t, providers.MaxStale/2), "data", "3")
			require.Error(t, err)
			assert.Empty(t, w.holder("data"), "it was not taken over at once")
		})
	})
	t.Run("it was seen", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := mounted(t, a.start(t), "data", "1")
			mustUnmount(t, l, "data", "1")
			_, err := l.Mount(limited(t, providers.MaxStale/2), "data", "2")
			require.NoError(t, err)
		})
	})
}

func TestAMountWaitsForThisNodesOwnDetach(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.departure = time.Minute
		l := mounted(t, a.start(t), "data", "1")
		mustUnmount(t, l, "data", "1")
		time.Sleep(providers.MaxStale)
		w.count()
		_, err := l.Mount(within(t), "data", "2")
		require.ErrorContains(t, err, "being detached from this node (waited 25s)")
		assert.Zero(t, w.count()["Attach"])
		_, err = l.Mount(limited(t, time.Minute), "data", "2")
		require.NoError(t, err)
		require.NoError(t, l.Unmount(within(t), "data", "2"))
	})
}

// failedAttach makes the volume one whose attach to the machine has failed, as its next life finds it.
func failedAttach(t *testing.T, w *world, m *machine) *life {
	t.Helper()
	l := made(t, m.start(t), "data")
	diesMounting(t, l, "cloud.Attach", crashAfter)
	synctest.Wait()
	w.alter(func(d *disk) { d.Attachment.State, d.Attachment.Problem = providers.AttachFailed, "no slot" })
	return m.start(t)
}

func TestAMountBeginsAnewAfterAnAttachThatFailed(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := failedAttach(t, w, a)
		mustMount(t, l, "data", "2")
		mustUnmount(t, l, "data", "2")
	})
}

func TestAnAttachThatCannotBeCalledOffIsLeft(t *testing.T) {
	for call, says := range map[string]string{
		"journal.put":   `the attach, which has failed, is not cancelled (volume "data", vol-1, node a)`,
		"cloud.Detach":  `the attach, which has failed, could not be cancelled (volume "data", vol-1, node a)`,
		"host.WaitFree": "has failed, and the disk is left as it is",
	} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				mounted(t, a.start(t), "data", "1").kill()
				a.engineTakesMounts()
				a.containerEnds("1")
				synctest.Wait()
				a.journal["data"].Uses = nil
				l := a.start(t)
				w.alter(func(d *disk) { d.Attachment.State, d.Attachment.Problem = providers.AttachFailed, "no slot" })
				synctest.Wait()
				w.count()
				w.setFault(at(call, failBefore))
				_, err := l.Mount(within(t), "data", "2")
				require.ErrorIs(t, err, errInjected)
				require.ErrorContains(t, err, says)
				if call != "cloud.Detach" {
					assert.Zero(t, w.count()["Detach"])
				}
				w.setFault(calm)
			})
		})
	}
}

func TestAnAttachToAnotherNodeThatFailedIsNotCalledOff(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := made(t, a.start(t), "data")
		time.Sleep(time.Minute)
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: b.name, State: providers.AttachFailed} })
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, "still attached to node b")
	})
}

// What the cloud calls attached may be in use by whatever has this node's id.
func TestAVolumeThatIsAttachedButWhoseDeviceDoesNotComeIsNotDetachedByItsMount(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1").kill()
		a.engineTakesMounts() // container 1 goes on
		l := a.start(t, func(c *Config) { c.Host = &blindHost{Host: c.Host, find: true, wait: true} })
		w.count()
		_, err := l.Mount(limited(t, 2*time.Minute), "data", "2")
		require.ErrorContains(t, err, "though the cloud says that the disk is attached")
		assert.Zero(t, w.count()["Detach"])
		a.containerEnds("1")
	})
}

func TestADiskThatIsDeletedFailsItsMountSoon(t *testing.T) {
	t.Run("before the attach", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			l := made(t, a.start(t, func(c *Config) { c.Provider = refusing{c.Provider, providers.ErrNotFound} }), "data")
			_, err := l.Mount(within(t), "data", "1")
			require.ErrorContains(t, err, `no such volume (volume "data", vol-1, node a); if nobody has removed it, see`)
		})
	})
	t.Run("before its device comes", func(t *testing.T) {
		scene(t, func(t *testing.T, w *world, a, _ *machine) {
			w.arrival = time.Hour
			l := made(t, a.start(t), "data")
			time.AfterFunc(time.Second, func() { w.set(func() { clear(w.disks) }) })
			_, err := l.Mount(limited(t, controller.AttachTimeout/2), "data", "1")
			require.ErrorContains(t, err, "it has been deleted")
		})
	})
}

func TestAnAttachThatNeverEndsIsExplainedByWhatTheCloudSaysThen(t *testing.T) {
	for says, change := range map[string]func(w *world){
		"no device has arrived within 1m30s, and the cloud says that the disk does not exist":          func(w *world) { w.disks = map[string]*disk{} },
		"no device has arrived within 1m30s, and the cloud says that this node does not hold the disk": func(w *world) { w.disks["vol-1"].Attachment = providers.Attachment{} },
		`no device has arrived within 1m30s, and the cloud calls the attachment "attaching" (volume`:   func(w *world) { w.disks["vol-1"].Attachment.State = providers.Attaching },
		`no device has arrived within 1m30s, and the cloud calls the attachment "attaching": stuck (vol`: func(w *world) {
			w.disks["vol-1"].Attachment = providers.Attachment{Node: "a", State: providers.Attaching, Problem: "stuck"}
		},
		"no device has arrived within 1m30s (volume": func(w *world) { w.fault = at("cloud.Find", failBefore) },
	} {
		t.Run(says, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				w.arrival = time.Hour
				l := made(t, a.start(t), "data")
				time.AfterFunc(controller.AttachTimeout-time.Second, func() { w.set(func() { change(w) }) })
				_, err := l.Mount(limited(t, 2*controller.AttachTimeout), "data", "1")
				require.ErrorContains(t, err, says)
				w.setFault(calm)
			})
		})
	}
}

func TestWaitingForALiveHolderCostsTheCloudLittleAndIsLoggedOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		log, logged := logtest.NewNullLogger()
		la, lb := a.start(t), b.start(t, func(c *Config) { c.Log = log })
		synctest.Wait()
		mounted(t, la, "data", "1")
		time.Sleep(time.Minute)
		w.count()
		_, err := lb.Mount(limited(t, 2*time.Minute), "data", "2")
		require.ErrorIs(t, err, volume.Unfinished)
		assert.LessOrEqual(t, w.count()["Find"], 45)
		assert.Equal(t, 1, messages(logged, "The volume cannot be attached yet"))
	})
}

func TestAnHourOfWaitingForALiveHolderCostsTheCloudLittle(t *testing.T) {
	for name, change := range map[string]func(*Config){"that answers": withPeers, "that does not answer": func(*Config) {}} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la, lb := a.start(t, change), b.start(t, change)
				mounted(t, la, "data", "1")
				w.count()
				_, err := lb.Mount(limited(t, time.Hour-time.Second), "data", "2")
				require.ErrorIs(t, err, volume.Unfinished)
				calls := w.count()
				assert.LessOrEqual(t, calls["Find"]+calls["NodeState"], 240)
			})
		})
	}
}

func TestAVolumeThatCannotBeTakenOverSaysSoAtOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, b.start(t), "data", "1")
		b.powerOff()
		l := a.start(t)
		w.setFault(at("cloud.Detach", failBefore))
		_, err := l.Mount(within(t), "data", "2")
		require.ErrorIs(t, err, errInjected)
		require.ErrorContains(t, err, "could not be taken from node b (machine b is stopped)")
		w.setFault(calm)
	})
}

func TestADiskFromElsewhereWithoutAFileSystemIsRefusedAsItIs(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.set(func() { w.newDisk("theirs", 1<<30, nil).owned = false })
		w.alter(func(d *disk) { d.foreign = "gpt" })
		l := a.start(t)
		require.NoError(t, l.Create(within(t), "data", map[string]string{"volume-id": "vol-1"}))
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorContains(t, err, `the disk holds gpt, which is not the volume's file system`)
	})
}

func TestAFormattedVolumeIsNotProbedAtItsMount(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := a.start(t)
		formatted(t, l, "data")
		w.count()
		mustMount(t, l, "data", "1")
		w.set(func() { assert.Zero(t, w.calls["host.Probe"]) })
		mustUnmount(t, l, "data", "1")
	})
}

// Another volume that is on its way has no entry in the journal yet.
func TestAMountDoesNotHoldUpAnother(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, made(t, a.start(t), "slow"), "data")
		time.Sleep(time.Minute)
		w.setFault(at("cloud.Find", hang))
		var other sync.WaitGroup
		other.Go(func() { _, _ = l.Mount(within(t), "slow", "1") })
		synctest.Wait()
		w.setFault(calm)
		mustMount(t, l, "data", "2")
		other.Wait()
		mustUnmount(t, l, "data", "2")
	})
}

// The journal of an earlier version does not tell whose the attach was.
func TestAnAttachOfThisBootIsCalledOffWhateverTheEntryBeforeTold(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1").kill()
		a.engineTakesMounts()
		a.containerEnds("1")
		a.journal["data"].Uses, a.journal["data"].Ours, a.journal["data"].Device = nil, false, mount.Device{}
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
		w.set(func() { w.arrival = time.Hour })
		_, err := a.start(t).Mount(limited(t, 2*time.Minute), "data", "2")
		require.ErrorContains(t, err, "the attach was cancelled")
		assert.Empty(t, w.holder("data"))
	})
}
