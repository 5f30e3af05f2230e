package driver

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

const (
	downNow = "A disk was taken from this node while it was mounted: its file system is shut down, and what uses it gets I/O errors"
	inDoubt = "The cloud says that this node does not hold a disk which is mounted here: it is asked again"
)

// freeze lets nothing run on the machine for so long.
func (m *machine) freeze(long time.Duration) {
	m.world.set(func() { m.frozen = time.Now().Add(long) })
}

// downs counts the file systems that were shut down.
func (w *world) downs() (n int) {
	w.set(func() { n = w.figures["shut down"] })
	return n
}

// takenFrom has a freeze, and b take the volume "data" from it meanwhile. If the device is to stay, a's kernel keeps it for an hour.
func takenFrom(t *testing.T, w *world, a, b *machine, stays bool) *life {
	t.Helper()
	lb := b.start(t, takesAlways)
	a.freeze(5 * time.Minute)
	mountAsSwarmDoes(t, lb, "data", "b")
	w.set(func() {
		if stays {
			for id, g := range a.ghosts {
				a.ghosts[id] = ghost{g.plugged, time.Now().Add(time.Hour)}
			}
		} else {
			clear(a.ghosts)
		}
	})
	return lb
}

func TestANodeThatGoesOnGivesUpWhatWasTakenFromIt(t *testing.T) {
	for name, stays := range map[string]bool{"the device is gone": false, "the device stays": true} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				log, logged := logtest.NewNullLogger()
				var told events
				la := mounted(t, a.start(t, told.observe, func(c *Config) { c.Log = log }), "data", "a")
				time.Sleep(time.Hour)
				lb := takenFrom(t, w, a, b, stays)
				a.awaitGoingOn()
				time.Sleep(reconcileEvery + providers.MaxStale + 2*time.Second)
				synctest.Wait()
				assert.Equal(t, 1, w.downs())
				assert.Equal(t, 1, messages(logged, downNow))
				assert.Contains(t, take[volume.Found](&told), volume.Found{Volume: "data", Finding: volume.Taken})
				w.set(func() {
					require.NotNil(t, a.journal["data"])
					assert.True(t, a.journal["data"].Taken)
					assert.True(t, a.journal["data"].Has(used("a")), "its container has not ended")
				})
				assert.Empty(t, la.Attached()[0].Mountpoint, "no other container may get it")
				assert.Contains(t, status(t, la, "data")["problem"], "was taken from this node")
				time.Sleep(time.Hour)
				synctest.Wait()
				assert.Equal(t, 1, messages(logged, downNow), "it was said")
				assert.Empty(t, take[volume.Found](&told))

				a.containerEnds("a") // and its Unmount is lost
				time.Sleep(2 * reconcileEvery)
				synctest.Wait()
				w.set(func() {
					assert.Empty(t, a.journal)
					assert.Empty(t, a.mounts)
				})
				assert.Equal(t, "b", w.holder("data"))
				mustUnmount(t, lb, "data", "b")
				mountAsSwarmDoes(t, la, "data", "again") // with what b has written, or the world complains
				mustUnmount(t, la, "data", "again")
			})
		})
	}
}

// Whatever the cloud says, or if it says nothing.
func TestAFileSystemWhoseDeviceIsGoneIsShutDownWithoutTheCloud(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		la := mounted(t, a.start(t), "data", "a")
		time.Sleep(time.Hour)
		w.setFault(func(_, call string) fault {
			if strings.HasPrefix(call, "cloud.") {
				return failBefore
			}
			return noFault
		})
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} }) // pulled
		time.Sleep(reconcileEvery + time.Second)
		synctest.Wait()
		assert.Equal(t, 1, w.downs())
		w.setFault(calm)
		a.containerEnds("a")
		require.NoError(t, la.Unmount(within(t), "data", "a"))
		mustMount(t, la, "data", "again")
		mustUnmount(t, la, "data", "again")
	})
}

func TestWhatWasTakenIsGivenUpAfterARestartOfThePlugin(t *testing.T) {
	for name, call := range map[string]string{"": "", "while the file system is shut down": "host.Shutdown", "before the journal knows": "journal.put"} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la := mounted(t, a.start(t), "data", "a")
				time.Sleep(time.Minute)
				if call == "" {
					la.kill()
				}
				lb := takenFrom(t, w, a, b, true)
				if call != "" {
					w.setFault(func(on, is string) fault {
						if on == "a" && is == call {
							return crashBefore
						}
						return noFault
					})
				}
				a.awaitGoingOn()
				time.Sleep(time.Minute)
				synctest.Wait()
				assert.Zero(t, w.downs())
				la.kill()
				w.setFault(calm)
				la = a.start(t)
				time.Sleep(providers.MaxStale + 2*time.Second)
				synctest.Wait()
				assert.Equal(t, 1, w.downs())
				a.containerEnds("a")
				require.NoError(t, la.Unmount(within(t), "data", "a"))
				assert.Equal(t, "b", w.holder("data"))
				mustUnmount(t, lb, "data", "b")
			})
		})
	}
}

// The disk comes back as the device that the dead file system is on. Mounting it then is to mount that file system once more.
func TestADiskThatComesBackIsNotMountedBeforeItsOldFileSystemIsGone(t *testing.T) {
	for name, stopped := range map[string]bool{"the old container runs": false, "the old container has ended": true} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				w.inPlace = true
				la := mounted(t, a.start(t), "data", "a")
				time.Sleep(time.Minute)
				lb := takenFrom(t, w, a, b, true)
				mustUnmount(t, lb, "data", "b")
				a.awaitGoingOn()
				a.engineTakesMounts()
				_, err := la.Mount(within(t), "data", "early")
				require.ErrorContains(t, err, "the cloud says that this node does not hold the disk")
				require.ErrorIs(t, err, volume.Busy)
				time.Sleep(providers.MaxStale + 2*time.Second)
				synctest.Wait()
				require.Equal(t, 1, w.downs())
				if stopped {
					a.containerEnds("a")
				} else {
					_, err = la.Mount(within(t), "data", "2")
					require.ErrorContains(t, err, "was taken from this node meanwhile")
					require.ErrorIs(t, err, volume.InUse)
					a.containerEnds("a")
				}
				mountAsSwarmDoes(t, la, "data", "3")
				w.set(func() { assert.Equal(t, 1, w.figures["back in place"]) })
				w.set(func() { assert.False(t, a.journal["data"].Taken) })
				mustUnmount(t, la, "data", "3")
				require.NoError(t, la.Unmount(within(t), "data", "a"))
				assert.Empty(t, w.holder("data"))
			})
		})
	}
}

// The disk comes back as another device. The kernel lets a btrfs that is still mounted go on with it.
func TestABtrfsThatComesBackIsNotMountedBeforeItsOldFileSystemIsGone(t *testing.T) {
	for _, fstype := range mount.FSTypes() {
		t.Run(fstype, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				la := mounted(t, a.start(t, func(c *Config) { c.DefaultFSType = fstype }), "data", "a")
				time.Sleep(time.Minute)
				lb := takenFrom(t, w, a, b, false)
				mustUnmount(t, lb, "data", "b")
				a.awaitGoingOn()
				a.engineTakesMounts()
				time.Sleep(time.Minute)
				synctest.Wait()
				if fstype == "btrfs" {
					_, err := la.Mount(within(t), "data", "2")
					require.ErrorContains(t, err, "its old btrfs would go on with it")
					require.ErrorContains(t, err, "which still has the file system from before the disk was taken")
					require.ErrorIs(t, err, volume.InUse)
					a.containerEnds("a")
				}
				mountAsSwarmDoes(t, la, "data", "3")
				w.set(func() { assert.Zero(t, w.figures["back in place"]) })
			})
		})
	}
}

// What is mounted already needs no cloud, unless that has denied it.
func TestWhatTheCloudDeniesIsNotShownToAnotherContainer(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la := mounted(t, a.start(t), "data", "a")
		time.Sleep(time.Minute)
		takenFrom(t, w, a, b, true)
		a.awaitGoingOn()
		time.Sleep(time.Second)
		synctest.Wait()
		_, err := la.Mount(within(t), "data", "2")
		require.ErrorContains(t, err, "the cloud says that this node does not hold the disk")
		time.Sleep(providers.MaxStale + time.Second)
		assert.Equal(t, 1, w.downs())
		a.containerEnds("a")
		b.containerEnds("b")
	})
}

// mistaken is a cloud whose answers about who holds a volume are wrong.
type mistaken struct {
	*fakeProvider
	times  int // how often, from now on
	answer func(*providers.Volume) (*providers.Volume, error)
}

func (m *mistaken) wrong() (is bool) {
	m.machine.world.set(func() {
		is = m.times > 0
		m.times--
	})
	return is
}

func (m *mistaken) Find(ctx context.Context, name string) (*providers.Volume, error) {
	vol, err := m.fakeProvider.Find(ctx, name)
	if err != nil || !m.wrong() {
		return vol, err
	}
	return m.answer(vol)
}

func (m *mistaken) ListHeld(context.Context, string) ([]*providers.Volume, error) { return nil, nil }

func heldBy(node string, state providers.AttachState) func(*providers.Volume) (*providers.Volume, error) {
	return func(v *providers.Volume) (*providers.Volume, error) {
		v.Attachment = providers.Attachment{Node: node, State: state}
		return v, nil
	}
}

// Promise 2 from its other side: who rightly has a volume keeps it.
func TestWhatThisNodeRightlyHoldsIsNotShutDownForAnAnswerThatIsWrong(t *testing.T) {
	const forEver = 1 << 30
	for name, c := range map[string]struct {
		times  int
		answer func(*providers.Volume) (*providers.Volume, error)
	}{
		"one answer names another node":      {1, heldBy("b", providers.Attached)},
		"no node holds it":                   {forEver, heldBy("", providers.Detached)},
		"which node holds it is not said":    {forEver, heldBy("", providers.Attached)},
		"an attach to another node failed":   {forEver, heldBy("b", providers.AttachFailed)},
		"it is being detached from the node": {forEver, heldBy("a", providers.Detaching)},
		"it does not exist":                  {forEver, func(*providers.Volume) (*providers.Volume, error) { return nil, providers.ErrNotFound }},
		"two have its name":                  {forEver, func(*providers.Volume) (*providers.Volume, error) { return nil, providers.ErrAmbiguous }},
		"the cloud is away":                  {forEver, func(*providers.Volume) (*providers.Volume, error) { return nil, errInjected }},
		"its name is another disk's": {forEver, func(v *providers.Volume) (*providers.Volume, error) {
			v.ID = "vol-other"
			return heldBy("b", providers.Attached)(v)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				cloud := &mistaken{answer: c.answer}
				log, logged := logtest.NewNullLogger()
				la := mounted(t, a.start(t, func(cfg *Config) {
					cloud.fakeProvider = cfg.Provider.(*fakeProvider) //nolint:forcetypeassert // of the simulated world
					cfg.Provider, cfg.Log = cloud, log
				}), "data", "a")
				time.Sleep(time.Hour)
				w.set(func() { cloud.times = c.times })
				a.freeze(5 * time.Minute)
				a.awaitGoingOn()
				w.count()
				time.Sleep(time.Hour)
				synctest.Wait()
				assert.Zero(t, w.downs())
				assert.LessOrEqual(t, w.count()["Find"], 13, "it is asked more and more seldom")
				assert.LessOrEqual(t, messages(logged, inDoubt), 1)
				w.set(func() { cloud.times = 0 })
				time.Sleep(2 * suspectedEvery)
				mustMount(t, la, "data", "2")
				mustUnmount(t, la, "data", "a")
				mustUnmount(t, la, "data", "2")
			})
		})
	}
}

// A node that was renamed finds its disks held by the name that it had.
func TestANodeThatHasAnotherIDShutsNothingDown(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "a").kill()
		l := a.start(t, func(c *Config) { c.Provider = namesake{c.Provider.(*fakeProvider), "renamed"} })
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		assert.Zero(t, w.downs())
		l.kill()
		l = a.start(t)
		mustUnmount(t, l, "data", "a")
	})
}

// An answer may be of a time before the disk came to this node.
func TestAnAnswerOlderThanTheAttachShutsNothingDown(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		w.setLag(0)
		lb := mounted(t, b.start(t), "data", "b")
		la := a.start(t)
		time.Sleep(time.Minute)
		mustUnmount(t, lb, "data", "b")
		mountAsSwarmDoes(t, la, "data", "a")
		w.setLag(providers.MaxStale - time.Second) // so they still name b
		for range 3 {
			la.doubt(la.known("data"), "a test asks", 0)
			time.Sleep(3 * time.Second)
		}
		time.Sleep(time.Hour)
		assert.Zero(t, w.downs())
		mustUnmount(t, la, "data", "a")
	})
}

func TestErrorsOfADiskAndQuestionsOfPeersAreAskedAboutOnce(t *testing.T) {
	handOver(t, func(t *testing.T, w *world, la, lb *life) {
		mounted(t, la, "data", "a")
		time.Sleep(time.Hour)
		w.count()
		time.Sleep(4 * time.Hour)
		assert.Empty(t, w.count(), "what is in use costs the cloud nothing")
		for range 5 {
			w.set(func() { la.machine.errors++ })
			time.Sleep(time.Minute)
		}
		assert.Equal(t, map[string]int{"Find": 1}, w.count())
		time.Sleep(suspectedEvery)
		w.count()

		var asked []string
		w.setFault(func(node, call string) fault {
			if node == "a" && call == "cloud.Find" {
				asked = append(asked, call)
			}
			return noFault
		})
		for range 10 {
			_, err := lb.Mount(within(t), "data", "b")
			require.Error(t, err)
		}
		assert.Len(t, asked, 1)
		w.setFault(calm)
		assert.Zero(t, w.downs())
		mustUnmount(t, la, "data", "a")
	})
}

// cannot is a kernel that shuts no file system down.
type cannot struct{ node.Host }

func (cannot) Shutdown(context.Context, mount.Device, string) error { return mount.ErrNoShutdown }

func TestAFileSystemThatCannotBeShutDownIsShownToNobodyAndReportedOnce(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		log, logged := logtest.NewNullLogger()
		la := mounted(t, a.start(t, func(c *Config) { c.Log, c.Host = log, cannot{c.Host} }), "data", "a")
		time.Sleep(time.Minute)
		lb := takenFrom(t, w, a, b, true)
		a.awaitGoingOn()
		time.Sleep(time.Hour - time.Minute)
		synctest.Wait()
		w.set(func() { assert.Empty(t, a.mounts["serial-1"].dir) })
		assert.Equal(t, 1, messages(logged, "A disk was taken from this node while it was mounted, and its file system cannot be shut down: stop what uses it, or restart the machine"))
		a.containerEnds("a")
		require.NoError(t, la.Unmount(within(t), "data", "a"))
		mustUnmount(t, lb, "data", "b")
	})
}

func TestANodeThatStoodStillIsToldByItsClocks(t *testing.T) {
	for _, c := range []struct {
		slept, wall time.Duration
		is          bool
	}{
		{reconcileEvery, reconcileEvery, false},
		{reconcileEvery + 5*time.Second, reconcileEvery + 5*time.Second, false}, // busy
		{reconcileEvery, reconcileEvery - time.Hour, false},                     // the clock was set back
		{reconcileEvery + time.Minute, reconcileEvery + time.Minute, true},      // the process was stopped, or the machine
		{reconcileEvery, reconcileEvery + time.Minute, true},                    // the machine slept, or was stopped and told the time
	} {
		assert.Equal(t, c.is, wasStopped(reconcileEvery, c.slept, c.wall), "%v", c)
	}
}
