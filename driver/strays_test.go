package driver

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// lost is a plugin that starts with an empty journal, on a node where a container has the volume mounted.
func lost(t *testing.T, w *world, a *machine, trouble func(node, call string) fault) *life {
	t.Helper()
	mounted(t, a.start(t), "data", "1").kill()
	synctest.Wait()
	clear(a.journal)
	w.setFault(trouble)
	l := a.startAsked(t)
	synctest.Wait() // it has looked for strays
	return l
}

// Whatever fails when strays are looked for, the container goes on, and soon all is as it was.
func TestAVolumeInUseThatTheJournalLostIsTakenUpWhateverFails(t *testing.T) {
	for _, call := range []string{"", "cloud.Node", "cloud.List", "host.Find", "host.IsStaged", "journal.put"} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, _ *machine) {
				l := lost(t, w, a, at(call, failBefore))
				time.Sleep(time.Minute)
				w.set(func() { assert.Equal(t, "data", a.mounts["serial-1"].dir, "it was unmounted") })
				w.setFault(calm)
				if call != "" {
					time.Sleep(2 * reconcileEvery)
				}
				synctest.Wait()
				if call != "journal.put" { // then the cloud tells the next life
					assert.NotNil(t, a.journal["data"])
				}
				if call != "host.IsStaged" { // then the next Mount finds it
					path, err := l.Path(within(t), "data")
					require.NoError(t, err)
					assert.Equal(t, "/published/data", path)
				}
				a.containerEnds("1")
				time.Sleep(2 * reconcileEvery)
				assert.Empty(t, w.holder("data"))
			})
		})
	}
}

func TestADiskWhoseDeviceStaysAwayIsLookedForSeldom(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		made(t, a.start(t), "data").kill()
		w.alter(func(d *disk) {
			d.Attachment, d.present = providers.Attachment{Node: "a", State: providers.Attached}, time.Now().Add(1000*time.Hour)
		})
		a.start(t)
		time.Sleep(time.Hour)
		w.count()
		time.Sleep(time.Hour)
		assert.LessOrEqual(t, w.count()["List"], int(time.Hour/suspectedEvery))
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
	})
}

func TestAnAttachThatWasGivenUpIsWatchedForSeldomAndThenByItsDevice(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		l := made(t, a.start(t), "data")
		time.Sleep(time.Hour)
		w.setFault(at("cloud.Attach", failBefore))
		_, err := l.Mount(within(t), "data", "1")
		require.ErrorIs(t, err, errInjected)
		w.setFault(calm)
		w.count()
		time.Sleep(suspectedEvery / 2)
		assert.Zero(t, w.count()["List"], "the kernel is asked, not the cloud")
		time.Sleep(suspectedEvery)
		assert.Equal(t, 1, w.count()["List"])
		time.Sleep(straysEvery / 2)
		assert.Zero(t, w.count()["List"])
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{Node: "a", State: providers.Attached} })
		time.Sleep(2*reconcileEvery + idleTTL)
		assert.Empty(t, w.holder("data"))
	})
}

// The disk that was reported is another one.
func TestAVolumeThatIsMadeAnewHasNoProblemOfTheOneBefore(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		made(t, a.start(t), "data").kill()
		away := func(d *disk) {
			d.Attachment, d.present = providers.Attachment{Node: "a", State: providers.Attached}, time.Now().Add(1000*time.Hour)
		}
		w.alter(away)
		l := a.start(t)
		time.Sleep(time.Minute)
		assert.Contains(t, status(t, l, "data")["problem"], notSeen)
		w.set(func() {
			clear(w.disks)
			away(w.newDisk("data", 1<<30, nil))
		})
		time.Sleep(providers.MaxStale)
		assert.NotContains(t, status(t, l, "data"), "problem", "whether its device comes is not known yet")
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
	})
}

// Promise 2: whoever asks later why a volume changed hands finds the evidence in the log.
func TestATakeoverIsLoggedWithItsEvidence(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		mounted(t, b.start(t), "data", "1")
		b.powerOff()
		log, logged := logtest.NewNullLogger()
		l := a.start(t, func(c *Config) { c.Log = log })
		mustMount(t, l, "data", "2")
		lines := 0
		for _, e := range logged.AllEntries() {
			if e.Data["evidence"] != nil {
				lines++
				assert.Equal(t, "data", e.Data["volume"])
				assert.Equal(t, "b", e.Data["holder"])
				assert.Equal(t, "machine b is stopped", e.Data["evidence"])
			}
		}
		assert.Equal(t, 1, lines)
		mustUnmount(t, l, "data", "2")
	})
}

func TestARemoveThatCannotReleaseOrTakeTheDiskSaysWhy(t *testing.T) {
	for call, before := range map[string]func(t *testing.T, w *world, a, b *machine) *life{
		"journal.put": func(t *testing.T, w *world, a, _ *machine) *life {
			l := lost(t, w, a, at("cloud.List", failBefore))
			a.containerEnds("1")
			return l
		},
		"cloud.Detach": func(t *testing.T, _ *world, a, b *machine) *life {
			mounted(t, b.start(t), "data", "1")
			b.powerOff()
			return a.start(t)
		},
	} {
		t.Run(call, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				l := before(t, w, a, b)
				w.setFault(at(call, failBefore))
				require.ErrorIs(t, l.Remove(within(t), "data"), errInjected)
				assert.NotNil(t, w.disk("data"))
				w.setFault(calm)
			})
		})
	}
}

// Whether the cloud says that this node holds it decides whether it is reported; until the cloud answers, the entry stays.
func TestADiskThatThisBootHasNotSeenIsForgottenOnlyByTheWordOfTheCloud(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		mounted(t, a.start(t), "data", "1")
		a.powerOff()
		w.alter(func(d *disk) { d.present = time.Now().Add(1000 * time.Hour) })
		a.powerOn()
		w.setFault(func(_, call string) fault {
			if call == "cloud.Find" || call == "cloud.List" {
				return failBefore
			}
			return noFault
		})
		log, logged := logtest.NewNullLogger()
		a.start(t, func(c *Config) { c.Log = log })
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.NotNil(t, a.journal["data"])
		assert.Zero(t, reports(logged, notSeen, ""))
		w.setFault(calm)
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Nil(t, a.journal["data"])
		assert.Equal(t, 1, reports(logged, notSeen, ""))
		w.alter(func(d *disk) { d.Attachment = providers.Attachment{} })
	})
}

// Its containers may be unknown to this version, and have the disk whether the kernel shows them or not.
func TestAVolumeWhoseEntryALaterVersionWroteIsLeftAsItIs(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		l := mounted(t, mounted(t, a.start(t), "data", "1"), "gone", "2")
		l.kill()
		synctest.Wait()
		clear(a.journal)
		later := volume.Fail(volume.Unavailable, "of a later version", "")
		a.newer = map[string]error{"data": later, "gone": later}
		a.containerEnds("1")
		w.alter(func(d *disk) {
			if d.Name == "gone" {
				d.Attachment = providers.Attachment{} // by hand
			}
		})
		l = a.start(t)
		time.Sleep(straysEvery + time.Minute)
		for call, err := range map[string]error{
			"create": l.Create(within(t), "data", nil),
			"mount":  func() error { _, err := l.Mount(within(t), "data", "3"); return err }(),
			"remove": l.Remove(within(t), "data"),
		} {
			require.ErrorIs(t, err, volume.Unavailable, call)
			require.ErrorContains(t, err, `of a later version (volume "data")`, call)
		}
		require.NoError(t, l.Unmount(within(t), "data", "1"), "this version has not mounted it")
		info, err := l.Get(within(t), "data")
		require.NoError(t, err)
		assert.Equal(t, "of a later version", info.Status["problem"])
		require.NoError(t, l.Close(limited(t, time.Minute)))
		assert.Equal(t, "a", w.holder("data"))
		assert.Empty(t, a.journal)
		w.set(func() {
			assert.Equal(t, "data", a.mounts["serial-1"].dir, "it was unmounted")
			assert.Equal(t, "gone", a.mounts["serial-2"].dir, "it was unmounted")
		})
	})
}

// own is a cloud that can list the volumes of one node.
type own struct {
	*fakeProvider
	lists atomic.Int64 // of all volumes
}

func (o *own) List(ctx context.Context) ([]*providers.Volume, error) {
	o.lists.Add(1)
	return o.fakeProvider.List(ctx)
}

func (o *own) ListHeld(ctx context.Context, node string) (held []*providers.Volume, err error) {
	all, err := o.fakeProvider.List(ctx)
	for _, v := range all {
		if v.HeldBy(node) {
			held = append(held, v)
		}
	}
	return held, err
}

// In a large cluster, the others have thousands.
func TestANodeListsTheVolumesOfOthersOnlyForAMountThatItDoesNotKnow(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		cloud := &own{}
		start := func() *life {
			return a.start(t, takesAlways, func(c *Config) {
				cloud.fakeProvider = c.Provider.(*fakeProvider) //nolint:forcetypeassert // of the simulated world
				c.Provider = cloud
			})
		}
		mounted(t, start(), "data", "1").kill()
		synctest.Wait()
		l := start()
		made(t, b.start(t), "more").kill()
		w.setFault(at("cloud.Attach", hang))
		_, err := l.Mount(within(t), "more", "2") // it is in the journal, and not here
		require.Error(t, err)
		time.Sleep(2 * straysEvery)
		w.setFault(calm)
		synctest.Wait()
		assert.Zero(t, cloud.lists.Load())

		l.kill()
		synctest.Wait()
		clear(a.journal)
		mustMount(t, b.start(t, takesAlways), "data", "2") // a is cut off
		start()
		synctest.Wait()
		w.set(func() { assert.Empty(t, a.mounts["serial-1"].dir, "it shows a disk that is another node's") })
		assert.EqualValues(t, 1, cloud.lists.Load())
		a.containerEnds("1")
		b.containerEnds("2")
	})
}
