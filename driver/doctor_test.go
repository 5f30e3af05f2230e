package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// examined returns what is wrong, as "severity code volume", and checks that each finding is complete and that nothing was changed.
func examined(t *testing.T, l *life) (wrong []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	synctest.Wait()
	l.machine.world.count()
	for _, f := range l.Diagnose(ctx) {
		assert.NotEmpty(t, f.Check)
		assert.NotEmpty(t, f.Message)
		assert.Equal(t, f.Severity == OK, f.Code == "", "%v", f)
		assert.Equal(t, f.Severity == OK, f.Remedy == "", "%v", f)
		if f.Severity != OK {
			wrong = append(wrong, strings.TrimSpace(fmt.Sprintf("%s %s %s", f.Severity, f.Code, f.Volume)))
		}
	}
	return wrong
}

// writes are the calls that change something in the world's cloud.
var writes = []string{"Create", "Adopt", "Forget", "Delete", "Attach", "Detach", "Mark", "Modify", "Snapshot", "DeleteSnapshot"}

func requireNoWrite(t *testing.T, w *world) {
	t.Helper()
	for call, n := range w.count() {
		require.NotContains(t, writes, call, "%d times", n)
	}
}

func TestDoctorFindsNothingOnAHealthyNode(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, b *machine) {
		la, lb := a.start(t), b.start(t)
		made(t, la, "unused")
		mounted(t, lb, "elsewhere", "2")
		assert.Empty(t, examined(t, la))
		mounted(t, la, "data", "1")
		assert.Empty(t, examined(t, la))
		requireNoWrite(t, w)
	})
}

// What only seems wrong, since a volume moves meanwhile or the cloud's answers lag, is looked at again.
func TestDoctorWaitsForWhatIsUnderWay(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		w.setLag(providers.MaxStale - time.Second)
		l := made(t, a.start(t), "data")
		time.Sleep(time.Minute)
		mustMount(t, l, "data", "1")
		assert.Empty(t, examined(t, l), "the cloud does not show the attach yet")
		w.set(func() { w.lag = nil })
		w.alter(func(d *disk) { d.present = time.Now().Add(5 * time.Second) }) // its device is away for a moment
		assert.Empty(t, examined(t, l))
	})
}

// plant is a fault on machine a, which has the volume "data" mounted for a container, unless it is only made.
type plant struct {
	fault func(t *testing.T, w *world, a, b *machine, l *life) *life
	want  string // what doctor finds, and nothing else
	made  bool   // the volume was only made
}

// onDisk changes the disk, and what the machine's kernel has of it.
func onDisk(change func(*disk)) func(*testing.T, *world, *machine, *machine, *life) *life {
	return func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
		w.alter(change)
		return l
	}
}

// inKernel is what the kernel says of the volume.
func inKernel(f mount.Finding) func(*testing.T, *world, *machine, *machine, *life) *life {
	return func(_ *testing.T, w *world, a, _ *machine, l *life) *life {
		f.Message, f.Remedy = "it is so", "look"
		w.set(func() { a.wrong = []mount.Finding{f} })
		return l
	}
}

// failing makes a call fail from now on.
func failing(call string, f fault) func(*testing.T, *world, *machine, *machine, *life) *life {
	return func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
		w.setFault(at(call, f))
		return l
	}
}

var never = 1000 * time.Hour

func plants() map[string]plant {
	return map[string]plant{
		"somebody deletes the disk": {want: "problem disk-gone data", fault: func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
			w.set(func() { clear(w.disks) })
			return l
		}},
		"somebody gives the name to another disk": {want: "problem disk-replaced data", fault: func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
			w.set(func() {
				clear(w.disks)
				w.newDisk("data", 1<<30, nil)
			})
			return l
		}},
		"somebody detaches the disk":           {want: "problem not-attached data", fault: onDisk(func(d *disk) { d.Attachment = providers.Attachment{} })},
		"somebody attaches the disk elsewhere": {want: "problem not-attached data", fault: onDisk(func(d *disk) { d.Attachment.Node = "b" })},
		"the cloud could not attach the disk": {want: "problem attach-failed data", fault: onDisk(func(d *disk) {
			d.Attachment.State, d.Attachment.Problem = providers.AttachFailed, "the hypervisor refuses"
		})},
		"the device vanishes": {want: "problem device-missing data", fault: onDisk(func(d *disk) { d.present = time.Now().Add(never) })},
		"two devices have one serial": {want: "problem device-ambiguous data", fault: func(_ *testing.T, w *world, a, _ *machine, l *life) *life {
			w.set(func() { a.ambiguous = time.Now().Add(never) })
			return l
		}},
		"devices cannot be read": {want: "problem device-unknown data", fault: failing("host.Find", failBefore)},
		"the engine takes the mount away": {want: "warning uses-without-mount data", fault: func(_ *testing.T, _ *world, a, _ *machine, l *life) *life {
			a.engineTakesMounts()
			return l
		}},
		"the device is read-only":          {want: "problem device-read-only data", fault: inKernel(mount.Finding{Code: "device-read-only", Problem: true})},
		"the device is offline":            {want: "problem device-offline data", fault: inKernel(mount.Finding{Code: "device-offline", Problem: true})},
		"the file system has errors":       {want: "problem filesystem-errors data", fault: inKernel(mount.Finding{Code: "filesystem-errors", Problem: true})},
		"the file system became read-only": {want: "problem filesystem-read-only data", fault: inKernel(mount.Finding{Code: "filesystem-read-only", Problem: true})},
		"the kernel does not answer":       {want: "problem kernel-hangs data", fault: failing("host.Examine", hang)},
		"the device does not grow": {want: "warning device-too-small data", fault: onDisk(func(d *disk) {
			d.shown, d.shownUntil = d.Size, time.Now().Add(never)
			d.Size *= 2
		})},
		"the file system is full": {want: "warning filesystem-full data", fault: func(_ *testing.T, w *world, a, _ *machine, l *life) *life {
			w.set(func() { a.full = true })
			return l
		}},
		"the file system stays frozen": {want: "problem filesystem-frozen data", fault: func(t *testing.T, w *world, a, _ *machine, l *life) *life {
			t.Helper()
			w.setFault(at("host.Freeze thaw", crashBefore))
			_, err := l.frozen(t.Context(), func() {})
			require.NoError(t, err)
			l.kill()
			w.setFault(at("host.Thaw", failBefore))
			return a.start(t)
		}},
		"a process keeps the volume": {want: "warning release-unfinished data", fault: func(t *testing.T, _ *world, a, _ *machine, l *life) *life {
			t.Helper()
			require.True(t, a.container("data", "monitoring"))
			a.containerEnds("1")
			require.Error(t, l.Unmount(within(t), "data", "1"))
			return l
		}},
		"the journal is lost": {want: "warning used-without-containers data", fault: func(t *testing.T, _ *world, a, _ *machine, l *life) *life {
			t.Helper()
			l.kill()
			synctest.Wait()
			clear(a.journal)
			l = a.startAsked(t)
			synctest.Wait()
			return l
		}},
		"work does not end": {want: "warning work-unfinished data", made: true, fault: func(_ *testing.T, _ *world, _, _ *machine, l *life) *life {
			go l.attempt("data", volume.Checking, func(h *handle) {
				_ = h.Record(l.ctx, l.controller.Last("data"), "a", true)
				<-l.ctx.Done()
			})
			time.Sleep(longWork)
			return l
		}},
		"somebody attaches a disk to this node": {want: "warning stray data", made: true, fault: func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
			time.Sleep(time.Minute)
			w.alter(func(d *disk) {
				d.Attachment = providers.Attachment{Node: "a", State: providers.Attached}
				w.plug(d)
			})
			return l
		}},
		"another machine runs with this node's id": {want: "problem absent-disk data", made: true, fault: func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
			time.Sleep(time.Minute)
			w.alter(func(d *disk) {
				d.Attachment, d.present = providers.Attachment{Node: "a", State: providers.Attached}, time.Now().Add(never)
			})
			return l
		}},
		"the node that holds a disk is gone": {want: "warning holder-gone data", made: true, fault: onDisk(func(d *disk) {
			d.Attachment = providers.Attachment{Node: "c", State: providers.Attached}
		})},
		"the journal is of a later version": {want: "problem journal-newer other", fault: func(_ *testing.T, w *world, a, _ *machine, l *life) *life {
			w.set(func() { a.newer = map[string]error{"other": errors.New("of a later version")} })
			return l
		}},
		"the engine does not see mounts": {want: "problem mounts-invisible", fault: func(_ *testing.T, _ *world, _, _ *machine, l *life) *life {
			l.unseen.Store(true)
			return l
		}},
		"something else is mounted": {want: "warning mount-unknown", fault: func(_ *testing.T, w *world, a, _ *machine, l *life) *life {
			w.set(func() { a.mounts["other"] = &superblock{disk: &disk{}, dir: "other"} })
			return l
		}},
		"a volume cannot be read": {want: "problem volume-unreadable", made: true, fault: func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
			w.set(func() {
				clear(w.disks)
				for range 2 {
					w.newDisk("twin", 1<<30, nil).twin = true
				}
			})
			return l
		}},
		"two volumes have one name": {want: "problem volume-unreadable", fault: func(_ *testing.T, w *world, _, _ *machine, l *life) *life {
			w.set(func() {
				for range 2 {
					w.newDisk("twin", 1<<30, nil).twin = true
				}
			})
			return l
		}},
		"the cloud is away": {want: "problem cloud-error", fault: failing("cloud.List", failBefore)},
	}
}

func TestDoctorFindsEachPlantedFaultAndNothingElse(t *testing.T) {
	all := plants()
	require.GreaterOrEqual(t, len(all), 20)
	for name, p := range all {
		t.Run(name, func(t *testing.T) {
			scene(t, func(t *testing.T, w *world, a, b *machine) {
				l := a.start(t)
				b.start(t)
				if p.made {
					made(t, l, "data")
				} else {
					mounted(t, l, "data", "1")
				}
				l = p.fault(t, w, a, b, l)
				assert.Equal(t, []string{p.want}, examined(t, l))
				requireNoWrite(t, w)
				w.setFault(calm)
			})
		})
	}
}

func TestDoctorGivesOneReasonForACloudThatIsAway(t *testing.T) {
	scene(t, func(t *testing.T, w *world, a, _ *machine) {
		var cloud []Finding
		l := a.start(t, func(cfg *Config) {
			cfg.Provider = &examinedLater{cfg.Provider, &cloud}
		})
		made(t, l, "data")
		w.setFault(at("cloud.List", failBefore))
		cloud = []Finding{{Severity: Problem, Check: "credentials", Code: "credentials-refused", Message: "no", Remedy: "correct them"}}
		assert.Equal(t, []string{"problem credentials-refused"}, examined(t, l))
		w.setFault(calm)
		cloud = []Finding{providers.Passed("credentials", "they are accepted")}
		assert.Empty(t, examined(t, l))
	})
}

func TestDoctorLooksAtFencingOnlyWhereItIsWanted(t *testing.T) {
	scene(t, func(t *testing.T, _ *world, a, _ *machine) {
		for _, test := range []struct {
			configure func(*Config)
			checked   bool
			wrong     []string
		}{
			{func(*Config) {}, false, nil},
			{withFence, true, nil},
			{func(c *Config) { withFence(c); c.Fencing.Witnesses = nil }, true, []string{"warning no-fence"}},
			{func(c *Config) { withFence(c); c.Provider = struct{ providers.Provider }{c.Provider} }, true, []string{"warning no-fence"}},
			{func(c *Config) {
				withFence(c)
				c.Provider = &examinedLater{c.Provider, &[]Finding{{Severity: Problem, Check: "credentials", Code: "credentials-refused", Message: "no", Remedy: "correct them"}}}
			}, false, []string{"problem credentials-refused"}},
		} {
			l := a.start(t, test.configure)
			assert.Equal(t, test.wrong, examined(t, l))
			checked := slices.ContainsFunc(l.Diagnose(t.Context()), func(f Finding) bool { return f.Check == "fence" })
			assert.Equal(t, test.checked, checked)
			l.kill()
		}
	})
}

type examinedLater struct {
	providers.Provider
	found *[]Finding
}

func (e *examinedLater) Examine(context.Context) []Finding { return slices.Clone(*e.found) }
