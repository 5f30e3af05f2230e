package aws

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
)

// byHand calls the API as an operator or another tool.
func (w *world) byHand(do func(*cloud.Request) error) {
	w.t.Helper()
	_, err := w.cloud.Do(w.t.Context(), cloud.Call{Action: "ByHand", Aside: true}, do)
	require.NoError(w.t, err)
}

// foreign attaches a disk that is not ours.
func (w *world) foreign(instance, device string) (id string) {
	w.t.Helper()
	w.byHand(func(r *cloud.Request) error {
		i, _ := w.cloud.Instance(instance)
		v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: gib, Type: "gp3"}, Zone: i.Zone})
		id = v.ID
		return err
	})
	cloudtest.WaitFor(w.t, w.cloud, id, cloudtest.Detached)
	w.byHand(func(r *cloud.Request) error {
		_, err := r.AttachVolume(id, instance, device, func(cloud.Instance, []cloud.Volume) error { return nil })
		return err
	})
	return id
}

func TestATakenDeviceNameIsSkipped(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.nodeOf(cloud.Instance{Type: "m5.large", Zone: region + "a", RootDevice: deviceNames[0]})
		w.foreign(node, deviceNames[1])
		p := w.on(node)
		first, second, third := w.create(p, "first"), w.create(p, "second"), w.create(p, "third")
		w.attach(p, first)
		assert.Equal(t, deviceNames[2], w.device(first.ID))
		w.foreign(node, deviceNames[3]) // which this process has not seen
		w.attach(p, second)
		assert.Equal(t, deviceNames[4], w.device(second.ID))
		w.attach(p, third)
		assert.Equal(t, deviceNames[5], w.device(third.ID))
	})
}

func TestConcurrentAttachesUseDifferentDeviceNames(t *testing.T) {
	for _, lag := range []time.Duration{0, 5 * time.Second} {
		inWorld(t, cloud.Config{Latency: 50 * time.Millisecond, Times: slow, Lag: lag}, func(t *testing.T, w *world) {
			node := w.nodeOf(cloud.Instance{Type: "m7i.48xlarge", Zone: region + "a"})
			p := w.on(node)
			volumes := make([]*providers.Volume, 90)
			for i := range volumes {
				volumes[i] = w.create(p, fmt.Sprint("v", i))
			}
			var calls []func()
			for _, v := range volumes {
				calls = append(calls, func() { assert.NoError(t, providertest.Attach(t.Context(), p, v.ID)) })
			}
			w.cloud.ResetCalls()
			providertest.AtOnce(calls...)
			names := map[string]bool{}
			for _, v := range volumes {
				names[w.device(v.ID)] = true
			}
			assert.Len(t, names, len(volumes))
			assert.Equal(t, len(volumes), w.cloud.Calls()["AttachVolume"], "no attach is repeated")
			assert.Equal(t, 1, w.cloud.Calls()["DescribeInstances"])
		})
	}
}

func TestDeviceNamesAreReused(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Detach: time.Second}, Lag: 2 * time.Second}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		var volumes []*providers.Volume
		for i := range 3 {
			volumes = append(volumes, w.create(p, fmt.Sprint("v", i)))
		}
		w.cloud.ResetCalls()
		const rounds = 3 * 110 // more than there are names
		for i := range rounds {
			v := volumes[i%len(volumes)]
			w.attach(p, v)
			_, err := p.Find(t.Context(), v.Name)
			require.NoError(t, err)
			w.detach(p, v, node)
			_, err = p.Find(t.Context(), v.Name) // which may show it attached still
			require.NoError(t, err)
		}
		assert.Less(t, w.cloud.Calls()["AttachVolume"], rounds+rounds/10, "names are free")
		assert.Less(t, w.cloud.Calls()["DescribeInstances"], rounds/10)
	})
}

func TestAFullInstanceReportsItsLimit(t *testing.T) {
	for _, full := range []struct {
		kind       string
		interfaces int
		volumes    int // beside the root volume
		says       []string
	}{
		{"m5.large", 1, 26, []string{"27"}},
		{"m5.large", 3, 24, []string{"27", "network interface", "3"}},
		{"m7i.large", 3, 31, []string{"32"}},
	} {
		t.Run(fmt.Sprint(full.kind, " ", full.interfaces), func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				node := w.nodeOf(cloud.Instance{Type: full.kind, Interfaces: full.interfaces, Zone: region + "a"})
				p := w.on(node)
				var last *providers.Volume
				for i := range full.volumes {
					last = w.create(p, fmt.Sprint("v", i))
					require.NoError(t, providertest.Attach(t.Context(), p, last.ID), "%d of %d", i+1, full.volumes)
				}
				more := w.create(p, "more")
				for _, p := range []*Provider{p, w.on(node)} {
					err := providertest.Attach(t.Context(), p, more.ID)
					require.ErrorIs(t, err, providers.ErrAttachLimit)
					providertest.Sentence(t, err, append(full.says, node, full.kind, "another node")...)
				}
				assert.Empty(t, w.device(more.ID))
				w.byHand(func(r *cloud.Request) error { // by another hand than this process's
					_, err := r.DetachVolume(last.ID, node, "", false)
					return err
				})
				require.NoError(t, providertest.Attach(t.Context(), p, more.ID))
			})
		})
	}
}

func TestXenInstancesAreRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.nodeOf(cloud.Instance{Type: "t2.micro", Zone: region + "a"}))
		v := w.create(p, "db")
		err := providertest.Attach(t.Context(), p, v.ID)
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "t2.micro", "Xen", "Nitro")
		assert.Zero(t, w.cloud.Calls()["AttachVolume"])
	})
}

func TestAttachDoesNotTakeAHeldVolume(t *testing.T) {
	for _, lag := range []time.Duration{0, 5 * time.Second} {
		inWorld(t, cloud.Config{Lag: lag, Times: slow}, func(t *testing.T, w *world) {
			one, two := w.node("a"), w.node("a")
			a, b := w.on(one), w.on(two)
			v := w.create(a, "db")
			w.attach(a, v)
			time.Sleep(lag)
			for _, held := range []error{providertest.Attach(t.Context(), b, v.ID), b.Delete(t.Context(), v.ID), b.Forget(t.Context(), v.ID)} {
				var by *providers.HeldError
				require.ErrorAs(t, held, &by)
				assert.Equal(t, one, by.Node)
			}
			_, err := b.Adopt(t.Context(), v.ID, providers.Spec{Name: "mine"})
			require.ErrorIs(t, err, providers.ErrInvalid)
			require.NoError(t, b.Detach(t.Context(), v.ID, two, true), "it does not hold it")
			is, _ := w.cloud.Volume(v.ID)
			assert.Equal(t, cloud.Attached, is.Attachments[0].State)

			foreign := w.foreign(one, "/dev/sdp")
			time.Sleep(lag)
			_, err = b.Adopt(t.Context(), foreign, providers.Spec{Name: "mine"})
			require.ErrorIs(t, err, providers.ErrInvalid)
			providertest.Sentence(t, err, one, "detach")
		})
	}
}

// A read may show a volume on this node that was just detached and is attached to another node by now.
func TestAttachDoesNotTrustAnOldRead(t *testing.T) {
	for seed := range uint64(10) {
		inWorld(t, cloud.Config{Lag: 5 * time.Second, Seed: seed}, func(t *testing.T, w *world) {
			one, two := w.node("a"), w.node("a")
			a, b := w.on(one), w.on(two)
			time.Sleep(10 * time.Second)
			v := w.create(a, "db")
			w.attach(a, v)
			time.Sleep(10 * time.Second)
			w.detach(a, v, one)
			w.attach(b, v)
			for range 10 {
				err := providertest.Attach(t.Context(), a, v.ID)
				require.Error(t, err)
				require.True(t, errors.Is(err, providers.ErrHeld) || errors.Is(err, providers.ErrBusy), "%v", err)
				time.Sleep(time.Second)
			}
		})
	}
}

func TestAnAttachThatNeverCompletesCanBeDetached(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		v := w.create(p, "db")
		w.cloud.Inject(cloud.Rule{Action: "AttachVolume", Fault: cloud.NeverFinish, Times: 1})
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID))
		time.Sleep(90 * time.Second)
		found, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{Node: node, State: providers.Attaching}, found.Attachment)
		require.NoError(t, providertest.Attach(t.Context(), p, v.ID), "it is being attached")
		w.detach(p, v, node)
		w.attach(p, v)
		w.detach(p, v, node)
	})
}

// stubborn is a kernel that does not release its disks.
type stubborn struct{ lets bool }

func (s *stubborn) CreateDisk(string, int64, string) error { return nil }
func (s *stubborn) DeleteDisk(string) error                { return nil }
func (s *stubborn) ResizeDisk(string, int64) error         { return nil }
func (s *stubborn) CopyDisk(string, string) error          { return nil }
func (s *stubborn) DeleteSnapshot(string) error            { return nil }
func (s *stubborn) Attach(string, string) error            { return nil }
func (s *stubborn) Detach(_, _ string, force bool) error {
	if s.lets || force {
		return nil
	}
	return cloud.ErrDeviceBusy
}

func TestADiskTheKernelDoesNotReleaseIsStillHeld(t *testing.T) {
	kernel := &stubborn{}
	inWorld(t, cloud.Config{Times: slow, Backend: kernel}, func(t *testing.T, w *world) {
		node, other := w.node("a"), w.node("a")
		p, b := w.on(node), w.on(other)
		v := w.create(p, "db")
		w.attach(p, v)
		require.NoError(t, p.Detach(t.Context(), v.ID, node, false))
		cloudtest.WaitFor(w.t, w.cloud, v.ID, func(v cloud.Volume) bool { return v.Attachments[0].State == cloud.Busy })
		found, err := b.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, providers.Attachment{Node: node, State: providers.Detaching}, found.Attachment)
		require.ErrorIs(t, providertest.Attach(t.Context(), b, v.ID), providers.ErrHeld)
		require.ErrorIs(t, b.Delete(t.Context(), v.ID), providers.ErrHeld)
		require.ErrorIs(t, providertest.Attach(t.Context(), p, v.ID), providers.ErrBusy)
		kernel.lets = true
		w.detach(p, v, node)
		kernel.lets = false
		w.attach(b, v)
		require.NoError(t, p.Detach(t.Context(), v.ID, other, true))
		cloudtest.WaitFor(w.t, w.cloud, v.ID, func(v cloud.Volume) bool { return v.Attachments[0].State == cloud.Busy })
		require.NoError(t, p.Detach(t.Context(), v.ID, other, true), "a detach without force does not complete, so this one is forced")
		cloudtest.WaitFor(w.t, w.cloud, v.ID, cloudtest.Detached)
	})
}

func TestNodeStateFollowsTheInstance(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Stop: 30 * time.Second, Terminate: 30 * time.Second}}, func(t *testing.T, w *world) {
		stops, goes := w.node("a"), w.node("a")
		p := w.on(w.node("a"))
		held := map[string]*providers.Volume{stops: w.create(p, "stops"), goes: w.create(p, "goes")}
		for node, v := range held {
			w.attach(w.on(node), v)
		}
		life := func(node string) providers.Life {
			state, err := p.NodeState(t.Context(), node)
			require.NoError(t, err)
			assert.Contains(t, state.Evidence, node)
			return state.Life
		}
		doomed := w.on(goes)
		_, err := doomed.Node(t.Context())
		require.NoError(t, err)
		w.cloud.Stop(stops)
		w.cloud.Terminate(goes)
		assert.Equal(t, providers.Running, life(stops), "it still writes")
		assert.Equal(t, providers.Running, life(goes), "it still writes")
		time.Sleep(time.Minute)
		assert.Equal(t, providers.Stopped, life(stops))
		assert.Equal(t, providers.Gone, life(goes))
		err = providertest.Attach(t.Context(), doomed, w.create(p, "more").ID)
		require.ErrorIs(t, err, providers.ErrBusy)
		providertest.Sentence(t, err, "instance")

		require.ErrorIs(t, providertest.Attach(t.Context(), p, held[stops].ID), providers.ErrHeld)
		require.NoError(t, p.Detach(t.Context(), held[stops].ID, stops, true))
		w.attach(p, held[stops])
		w.attach(p, held[goes]) // EC2 has let go of it

		// After an hour EC2 does not know the instance, so it holds nothing.
		time.Sleep(2 * time.Hour)
		require.NoError(t, p.Detach(t.Context(), held[goes].ID, goes, true))
		assert.NotEmpty(t, w.device(held[goes].ID))
	})
}
