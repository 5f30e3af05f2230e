package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

var times = cloud.Times{
	Create: 4 * time.Second, Delete: 4 * time.Second, Attach: 2 * time.Second, Detach: 2 * time.Second,
	Snapshot: 10 * time.Second, Modify: 20 * time.Second, Stop: 30 * time.Second, Terminate: 30 * time.Second,
}

// inBubble runs a test on a cloud under synctest.Test.
func inBubble(t *testing.T, cfg cloud.Config, test func(*testing.T, *cloud.Cloud)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if cfg.Zones == nil {
			cfg.Zones = []string{"a", "b"}
		}
		c := cloud.New(cfg)
		t.Cleanup(c.Close)
		test(t, c)
	})
}

// do makes a call that must succeed.
func do(t *testing.T, c *cloud.Cloud, act func(*cloud.Request) error) {
	t.Helper()
	_, err := c.Do(t.Context(), cloud.Call{Action: "Act"}, act)
	require.NoError(t, err)
}

func create(t *testing.T, c *cloud.Cloud) (id string) {
	t.Helper()
	do(t, c, func(r *cloud.Request) error {
		v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: 1 << 30}})
		id = v.ID
		return err
	})
	return id
}

func attach(t *testing.T, c *cloud.Cloud, volume, instance string) {
	t.Helper()
	do(t, c, func(r *cloud.Request) error { return attachError(r, volume, instance) })
}

func attachError(r *cloud.Request, volume, instance string) error {
	_, err := r.AttachVolume(volume, instance, "/dev/xvdba", func(cloud.Instance, []cloud.Volume) error { return nil })
	return err
}

func detach(t *testing.T, c *cloud.Cloud, volume string, force bool) {
	t.Helper()
	do(t, c, func(r *cloud.Request) error {
		_, err := r.DetachVolume(volume, "", "", force)
		return err
	})
}

// state returns the state of a volume and of its attachment, if any.
func state(c *cloud.Cloud, volume string) string {
	v, ok := c.Volume(volume)
	switch {
	case !ok:
		return "gone"
	case len(v.Attachments) == 0:
		return string(v.State)
	default:
		return string(v.State) + " " + string(v.Attachments[0].State)
	}
}

// after waits for d and for what is then due.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// backend records its calls and can fail.
type backend struct {
	mu    sync.Mutex
	calls []string
	busy  bool
	err   error
	slow  time.Duration // duration of Attach and Detach
}

func (b *backend) note(format string, args ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, fmt.Sprintf(format, args...))
	return b.err
}

func (b *backend) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := b.calls
	b.calls = nil
	return calls
}

func (b *backend) setBusy(busy bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy = busy
}

func (b *backend) CreateDisk(_ string, bytes int64, snapshot string) error {
	return b.note("create %d %q", bytes, snapshot)
}
func (b *backend) DeleteDisk(string) error                { return b.note("delete") }
func (b *backend) ResizeDisk(_ string, bytes int64) error { return b.note("resize %d", bytes) }
func (b *backend) CopyDisk(string, string) error          { return b.note("copy") }
func (b *backend) DeleteSnapshot(string) error            { return b.note("delete snapshot") }

func (b *backend) Attach(instance, _ string) error {
	time.Sleep(b.slow)
	return b.note("attach %s", instance)
}

func (b *backend) Detach(instance, _ string, force bool) error {
	time.Sleep(b.slow)
	if err := b.note("detach %s %t", instance, force); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy && !force {
		return cloud.ErrDeviceBusy
	}
	return nil
}

func TestOperationsTakeTheirConfiguredTime(t *testing.T) {
	inBubble(t, cloud.Config{Times: times}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{})
		v := create(t, c)
		assert.Equal(t, "creating", state(c, v))
		after(times.Create)
		assert.Equal(t, "available", state(c, v))
		attach(t, c, v, i.ID)
		assert.Equal(t, "in-use attaching", state(c, v))
		after(times.Attach)
		assert.Equal(t, "in-use attached", state(c, v))
		detach(t, c, v, false)
		assert.Equal(t, "in-use detaching", state(c, v))
		after(times.Detach)
		assert.Equal(t, "available", state(c, v))
		do(t, c, func(r *cloud.Request) error { return r.DeleteVolume(v) })
		assert.Equal(t, "deleting", state(c, v))
		after(times.Delete / 2)
		assert.Equal(t, "deleted", state(c, v))
		after(times.Delete / 2)
		assert.Equal(t, "gone", state(c, v))
	})
}

func TestWithoutTimesOperationsCompleteBeforeTheCallReturns(t *testing.T) {
	c := cloud.New(cloud.Config{Zones: []string{"a"}})
	defer c.Close()
	i := c.AddInstance(cloud.Instance{})
	v := create(t, c)
	assert.Equal(t, "available", state(c, v))
	attach(t, c, v, i.ID)
	assert.Equal(t, "in-use attached", state(c, v))
	c.Terminate(i.ID)
	assert.Equal(t, "available", state(c, v))
	gone, ok := c.Instance(i.ID)
	assert.True(t, ok, "a terminated instance is still shown")
	assert.Equal(t, cloud.Terminated, gone.State)
}

func TestInvalidRequestsAreRefused(t *testing.T) {
	inBubble(t, cloud.Config{Times: times}, func(t *testing.T, c *cloud.Cloud) {
		running, stopped := c.AddInstance(cloud.Instance{}), c.AddInstance(cloud.Instance{State: cloud.Stopped})
		pending, elsewhere := c.AddInstance(cloud.Instance{State: cloud.Pending}), c.AddInstance(cloud.Instance{Zone: "b"})
		rooted := c.AddInstance(cloud.Instance{RootDevice: "/dev/xvda"})
		var root string
		for _, v := range c.Volumes() {
			root = v.ID
		}
		free, held, gone := create(t, c), create(t, c), create(t, c)
		after(times.Create)
		creating := create(t, c)
		attach(t, c, held, running.ID)
		do(t, c, func(r *cloud.Request) error { return r.DeleteVolume(gone) })
		var snapshot cloud.Snapshot
		do(t, c, func(r *cloud.Request) (err error) {
			snapshot, err = r.CreateSnapshot(free, "", nil)
			return err
		})
		detachFrom := func(volume, instance string) func(*cloud.Request) error {
			return func(r *cloud.Request) error {
				_, err := r.DetachVolume(volume, instance, "", false)
				return err
			}
		}
		attachTo := func(volume, instance string) func(*cloud.Request) error {
			return func(r *cloud.Request) error { return attachError(r, volume, instance) }
		}
		spec := func(s cloud.VolumeSpec) func(*cloud.Request) error {
			return func(r *cloud.Request) error {
				_, err := r.CreateVolume(s)
				return err
			}
		}
		for name, try := range map[string]struct {
			want error
			act  func(*cloud.Request) error
		}{
			"an unknown zone":                          {cloud.ErrNoZone, spec(cloud.VolumeSpec{Zone: "z"})},
			"an unknown snapshot":                      {cloud.ErrNoSnapshot, spec(cloud.VolumeSpec{SnapshotID: "snap-0"})},
			"an incomplete snapshot":                   {cloud.ErrState, spec(cloud.VolumeSpec{SnapshotID: snapshot.ID})},
			"attaching an attached volume":             {cloud.ErrInUse, attachTo(held, running.ID)},
			"attaching a volume being created":         {cloud.ErrState, attachTo(creating, running.ID)},
			"attaching a volume being deleted":         {cloud.ErrNoVolume, attachTo(gone, running.ID)},
			"attaching across zones":                   {cloud.ErrZoneMismatch, attachTo(free, elsewhere.ID)},
			"attaching to an instance not yet up":      {cloud.ErrState, attachTo(free, pending.ID)},
			"attaching to an unknown instance":         {cloud.ErrNoInstance, attachTo(free, "i-0")},
			"detaching a detached volume":              {cloud.ErrState, detachFrom(free, "")},
			"detaching from another instance":          {cloud.ErrNotAttached, detachFrom(held, stopped.ID)},
			"detaching the root of a running instance": {cloud.ErrRoot, detachFrom(root, rooted.ID)},
			"deleting an attached volume":              {cloud.ErrInUse, func(r *cloud.Request) error { return r.DeleteVolume(held) }},
			"deleting a volume being created":          {cloud.ErrState, func(r *cloud.Request) error { return r.DeleteVolume(creating) }},
			"deleting twice":                           {cloud.ErrNoVolume, func(r *cloud.Request) error { return r.DeleteVolume(gone) }},
			"deleting an unknown snapshot":             {cloud.ErrNoSnapshot, func(r *cloud.Request) error { return r.DeleteSnapshot("snap-0") }},
		} {
			_, err := c.Do(t.Context(), cloud.Call{}, try.act)
			require.ErrorIs(t, err, try.want, name)
		}
		attach(t, c, free, stopped.ID) // a volume can be attached to a stopped instance
	})
}

func TestBackendAttachesAndDetachesEachDevice(t *testing.T) {
	b := &backend{}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{ID: "i-1", RootDevice: "/dev/xvda"})
		v := create(t, c)
		assert.Empty(t, b.take())
		after(times.Create)
		assert.Equal(t, []string{`create 1073741824 ""`}, b.take())
		attach(t, c, v, i.ID)
		after(times.Attach - time.Millisecond)
		assert.Empty(t, b.take())
		after(time.Millisecond)
		assert.Equal(t, []string{"attach i-1"}, b.take())

		c.Stop(i.ID)
		after(times.Stop)
		assert.Equal(t, []string{"detach i-1 true"}, b.take(), "a stop detaches the devices, and the root has no disk")
		assert.Equal(t, "in-use attached", state(c, v))
		c.Start(i.ID)
		after(times.Stop)
		assert.Equal(t, []string{"attach i-1"}, b.take())

		detach(t, c, v, false)
		after(times.Detach)
		do(t, c, func(r *cloud.Request) error { return r.DeleteVolume(v) })
		after(times.Delete)
		assert.Equal(t, []string{"detach i-1 false", "delete"}, b.take())
		assert.Empty(t, c.Problems())
	})
}

func TestBusyDeviceStaysUntilUnusedOrForced(t *testing.T) {
	b := &backend{busy: true}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{})
		v := create(t, c)
		after(times.Create)
		attach(t, c, v, i.ID)
		after(times.Attach)
		for range 2 { // a repeated request tries again
			detach(t, c, v, false)
			assert.Equal(t, "in-use detaching", state(c, v))
			after(times.Detach)
			assert.Equal(t, "in-use busy", state(c, v))
		}
		after(time.Hour)
		assert.Equal(t, "in-use busy", state(c, v))
		b.setBusy(false)
		detach(t, c, v, false)
		after(times.Detach)
		assert.Equal(t, "available", state(c, v))

		b.setBusy(true)
		attach(t, c, v, i.ID)
		after(times.Attach)
		detach(t, c, v, true)
		after(times.Detach)
		assert.Equal(t, "available", state(c, v))
	})
}

func TestForceOverridesAPendingDetach(t *testing.T) {
	b := &backend{busy: true, slow: 10 * time.Second}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{ID: "i-1"})
		v := create(t, c)
		after(times.Create)
		attach(t, c, v, i.ID)
		after(times.Attach + b.slow)
		b.take()
		detach(t, c, v, false)
		after(times.Detach + time.Second) // the backend is detaching
		detach(t, c, v, true)
		after(2 * b.slow)
		assert.Equal(t, []string{"detach i-1 false", "detach i-1 true"}, b.take())
		assert.Equal(t, "available", state(c, v))
	})
}

func TestDetachDuringSlowAttachRemovesTheDevice(t *testing.T) {
	b := &backend{slow: 10 * time.Second}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{ID: "i-1"})
		v := create(t, c)
		after(times.Create)
		b.take()
		attach(t, c, v, i.ID)
		after(times.Attach + time.Second)
		detach(t, c, v, false)
		assert.Equal(t, "in-use detaching", state(c, v))
		after(time.Minute)
		assert.Equal(t, "available", state(c, v))
		assert.Equal(t, []string{"attach i-1", "detach i-1 false"}, b.take())
	})
}

func TestBackendErrorIsAProblemAndChangesNothing(t *testing.T) {
	b := &backend{}
	inBubble(t, cloud.Config{Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{})
		v := create(t, c)
		after(0)
		b.err = errors.New("no space left on device")
		attach(t, c, v, i.ID)
		broken := create(t, c)
		after(0)
		assert.Equal(t, "in-use attaching", state(c, v))
		assert.Equal(t, "error", state(c, broken))
		assert.Len(t, c.Problems(), 2)
	})
}

func TestTerminatedInstanceReleasesItsVolumes(t *testing.T) {
	b := &backend{busy: true}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{RootDevice: "/dev/xvda"})
		root := c.Volumes()[0].ID
		v := create(t, c)
		after(times.Create)
		attach(t, c, v, i.ID)
		after(times.Attach)
		c.Terminate(i.ID)
		at, _ := c.Instance(i.ID)
		assert.Equal(t, cloud.ShuttingDown, at.State)
		assert.Equal(t, "in-use attached", state(c, v))
		after(times.Terminate)
		at, _ = c.Instance(i.ID)
		assert.Equal(t, cloud.Terminated, at.State)
		assert.Equal(t, "in-use detaching", state(c, v))
		after(times.Detach)
		assert.Equal(t, "available", state(c, v))
		assert.Equal(t, "deleting", state(c, root))
		after(times.Delete)
		assert.Equal(t, "gone", state(c, root))
		after(time.Hour)
		_, ok := c.Instance(i.ID)
		assert.False(t, ok)
		assert.Empty(t, c.Problems())
	})
}

func TestVolumeIsCreatedFromCompletedSnapshot(t *testing.T) {
	b := &backend{}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		v := create(t, c)
		after(times.Create)
		b.take()
		do(t, c, func(r *cloud.Request) error {
			_, err := r.CreateSnapshot(v, "before", map[string]string{"a": "b"})
			return err
		})
		after(0)
		assert.Equal(t, []string{"copy"}, b.take(), "the copy has the current contents")
		assert.Equal(t, cloud.SnapshotPending, c.Snapshots()[0].State)
		after(times.Snapshot)
		s := c.Snapshots()[0]
		assert.Equal(t, cloud.SnapshotCompleted, s.State)
		assert.Equal(t, 100, s.Progress)
		_, err := c.Do(t.Context(), cloud.Call{}, func(r *cloud.Request) error {
			_, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: 1}, SnapshotID: s.ID})
			return err
		})
		require.ErrorIs(t, err, cloud.ErrTooSmall)
		do(t, c, func(r *cloud.Request) error {
			made, err := r.CreateVolume(cloud.VolumeSpec{SnapshotID: s.ID})
			assert.EqualValues(t, 1<<30, made.Size)
			return err
		})
		after(times.Create)
		assert.Equal(t, []string{fmt.Sprintf("create 1073741824 %q", s.ID)}, b.take())
		do(t, c, func(r *cloud.Request) error { return r.DeleteSnapshot(s.ID) })
		after(0)
		assert.Equal(t, []string{"delete snapshot"}, b.take())
		assert.Empty(t, c.Snapshots())
	})
}

func TestModificationGrowsTheVolumeHalfWayThrough(t *testing.T) {
	b := &backend{}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		v := create(t, c)
		after(times.Create)
		b.take()
		do(t, c, func(r *cloud.Request) error {
			_, err := r.ModifyVolume(v, func(v cloud.Volume) (cloud.Shape, error) {
				s := v.Shape()
				s.Size *= 2
				return s, nil
			})
			return err
		})
		at, _ := c.Volume(v)
		assert.EqualValues(t, 1<<30, at.Size)
		assert.Equal(t, cloud.Modifying, at.Modification.State)
		after(times.Modify / 2)
		at, _ = c.Volume(v)
		assert.EqualValues(t, 2<<30, at.Size)
		assert.Equal(t, cloud.Optimizing, at.Modification.State)
		assert.Equal(t, []string{"resize 2147483648"}, b.take())
		after(times.Modify / 2)
		at, _ = c.Volume(v)
		assert.Equal(t, cloud.Completed, at.Modification.State)
	})
}

func TestReadsAreStaleForLagAtMost(t *testing.T) {
	inBubble(t, cloud.Config{Lag: 10 * time.Second, Seed: 7}, func(t *testing.T, c *cloud.Cloud) {
		v := create(t, c)
		shown := func() (n int) {
			do(t, c, func(r *cloud.Request) error { n = len(r.Volumes()); return nil })
			return n
		}
		missed, seen := 0, 0
		for range 100 {
			after(50 * time.Millisecond)
			if shown() == 0 {
				missed++
			} else {
				seen++
			}
		}
		assert.NotZero(t, missed)
		assert.NotZero(t, seen)
		after(5*time.Second + time.Nanosecond)
		for range 100 {
			require.Equal(t, 1, shown())
		}
		assert.Equal(t, "available", state(c, v), "the current state is not stale")

		do(t, c, func(r *cloud.Request) error { return r.DeleteVolume(v) })
		still := 0
		for range 100 {
			after(50 * time.Millisecond)
			still += shown()
		}
		assert.NotZero(t, still, "a deleted object can be shown for a while")
		after(5*time.Second + time.Nanosecond)
		for range 100 {
			require.Equal(t, 0, shown())
		}
	})
}

func TestSameSeedGivesSameCloud(t *testing.T) {
	one, other := cloud.New(cloud.Config{Zones: []string{"a"}, Seed: 3}), cloud.New(cloud.Config{Zones: []string{"a"}, Seed: 3})
	third := cloud.New(cloud.Config{Zones: []string{"a"}, Seed: 4})
	for _, c := range []*cloud.Cloud{one, other, third} {
		t.Cleanup(c.Close)
	}
	id := create(t, one)
	assert.Equal(t, id, create(t, other))
	assert.NotEqual(t, id, create(t, third))
	assert.Regexp(t, "^vol-0[0-9a-f]{16}$", id)
	assert.Regexp(t, "^i-0[0-9a-f]{16}$", one.AddInstance(cloud.Instance{}).ID)
}

func TestBucketAllowsABurstAndThenItsRate(t *testing.T) {
	limits := func(string) cloud.Bucket { return cloud.Bucket{Size: 5, PerSecond: 2} }
	inBubble(t, cloud.Config{Limits: limits}, func(t *testing.T, c *cloud.Cloud) {
		burst := func(action string, n int) (passed int) {
			for range n {
				if _, err := c.Do(t.Context(), cloud.Call{Action: action}, func(*cloud.Request) error { return nil }); err == nil {
					passed++
				} else {
					require.ErrorIs(t, err, cloud.ErrThrottled)
				}
			}
			return passed
		}
		assert.Equal(t, 5, burst("Read", 20))
		assert.Equal(t, 5, burst("Write", 20), "each action has its own bucket")
		after(time.Second)
		assert.Equal(t, 2, burst("Read", 20))
		after(time.Hour)
		assert.Equal(t, 5, burst("Read", 20), "at most the bucket's size")
		assert.Equal(t, map[string]int{"Read": 60, "Write": 20}, c.Calls())
		assert.Equal(t, map[string]int{"Read": 48, "Write": 15}, c.Throttled())
		c.ResetCalls()
		assert.Empty(t, c.Calls())
	})
}

func TestHalfOfTheLatencyPassesBeforeTheEffect(t *testing.T) {
	inBubble(t, cloud.Config{Latency: 2 * time.Second}, func(t *testing.T, c *cloud.Cloud) {
		start := time.Now()
		do(t, c, func(*cloud.Request) error {
			assert.Equal(t, time.Second, time.Since(start))
			return nil
		})
		assert.Equal(t, 2*time.Second, time.Since(start))
		for patience, effect := range map[time.Duration]bool{500 * time.Millisecond: false, 1500 * time.Millisecond: true} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			acted := false
			_, err := c.Do(ctx, cloud.Call{}, func(*cloud.Request) error { acted = true; return nil })
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			assert.Equal(t, effect, acted, "given up after %s", patience)
		}
	})
}

func TestRuleAppliesToMatchingCalls(t *testing.T) {
	c := cloud.New(cloud.Config{Zones: []string{"a"}})
	defer c.Close()
	try := func(call cloud.Call) error {
		_, err := c.Do(t.Context(), call, func(*cloud.Request) error { return nil })
		return err
	}
	remove := c.Inject(cloud.Rule{Action: "Attach", Caller: "i-1", Skip: 1, Times: 2, Fault: cloud.Fail, Code: "Nope"})
	require.NoError(t, try(cloud.Call{Action: "Detach", Caller: "i-1"}))
	require.NoError(t, try(cloud.Call{Action: "Attach", Caller: "i-2"}))
	require.NoError(t, try(cloud.Call{Action: "Attach", Caller: "i-1"}), "the first passes")
	for range 2 {
		var failed *cloud.FailedError
		require.ErrorAs(t, try(cloud.Call{Action: "Attach", Caller: "i-1"}), &failed)
		assert.Equal(t, "Nope", failed.Code)
	}
	require.NoError(t, try(cloud.Call{Action: "Attach", Caller: "i-1"}), "it applies to two")
	remove()

	remove = c.Inject(cloud.Rule{Fault: cloud.Throttle})
	for range 3 {
		require.ErrorIs(t, try(cloud.Call{Action: "Any"}), cloud.ErrThrottled)
	}
	require.NoError(t, try(cloud.Call{Action: "Metadata", Aside: true}), "not an API call")
	remove()
	require.NoError(t, try(cloud.Call{Action: "Any"}))
	assert.Equal(t, 3, c.Throttled()["Any"])
}

func TestAttachThatNeverFinishesCanBeDetached(t *testing.T) {
	b := &backend{}
	inBubble(t, cloud.Config{Times: times, Backend: b}, func(t *testing.T, c *cloud.Cloud) {
		i := c.AddInstance(cloud.Instance{})
		v := create(t, c)
		after(times.Create)
		stuck := func(act func()) {
			remove := c.Inject(cloud.Rule{Fault: cloud.NeverFinish})
			act()
			remove()
			after(24 * time.Hour)
		}
		stuck(func() { attach(t, c, v, i.ID) })
		assert.Equal(t, "in-use attaching", state(c, v))
		detach(t, c, v, false)
		after(times.Detach)
		assert.Equal(t, "available", state(c, v))

		attach(t, c, v, i.ID)
		after(times.Attach)
		stuck(func() { detach(t, c, v, false) })
		assert.Equal(t, "in-use detaching", state(c, v))
		detach(t, c, v, false)
		after(time.Hour)
		assert.Equal(t, "in-use detaching", state(c, v), "a repeated request has no effect")
		detach(t, c, v, true)
		after(times.Detach)
		assert.Equal(t, "available", state(c, v), "force has")

		stuck(func() { v = create(t, c) })
		assert.Equal(t, "creating", state(c, v))
	})
}

func TestHangingCallEndsWithItsContextOrTheCloud(t *testing.T) {
	inBubble(t, cloud.Config{}, func(t *testing.T, c *cloud.Cloud) {
		c.Inject(cloud.Rule{Fault: cloud.Hang})
		acted := false
		act := func(*cloud.Request) error { acted = true; return nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := c.Do(ctx, cloud.Call{}, act)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		ended := make(chan error)
		go func() {
			_, err := c.Do(t.Context(), cloud.Call{}, act)
			ended <- err
		}()
		synctest.Wait()
		c.Close()
		require.Error(t, <-ended)
		assert.False(t, acted)
	})
}

func TestTagsAreEditedOnAllObjectsOrNone(t *testing.T) {
	c := cloud.New(cloud.Config{Zones: []string{"a"}})
	defer c.Close()
	one, other := create(t, c), create(t, c)
	set := func(_ string, tags map[string]string) error { tags["a"] = "b"; return nil }
	_, err := c.Do(t.Context(), cloud.Call{}, func(r *cloud.Request) error {
		missing, err := r.EditTags([]string{one, "vol-0"}, set)
		assert.Equal(t, "vol-0", missing)
		return err
	})
	require.ErrorIs(t, err, cloud.ErrNoVolume)
	v, _ := c.Volume(one)
	assert.Empty(t, v.Tags)
	do(t, c, func(r *cloud.Request) error {
		_, err := r.EditTags([]string{one, other}, set)
		return err
	})
	for _, v := range c.Volumes() {
		assert.Equal(t, map[string]string{"a": "b"}, v.Tags)
	}
}

func TestReturnedObjectsAreCopies(t *testing.T) {
	c := cloud.New(cloud.Config{Zones: []string{"a"}})
	defer c.Close()
	i := c.AddInstance(cloud.Instance{})
	v := create(t, c)
	attach(t, c, v, i.ID)
	got, _ := c.Volume(v)
	got.Tags["mine"], got.Attachments[0].Instance = "yes", "i-0"
	again, _ := c.Volume(v)
	assert.Empty(t, again.Tags)
	assert.Equal(t, i.ID, again.Attachments[0].Instance)
}

func TestPaceChangesWhileTheCloudRuns(t *testing.T) {
	var traced []time.Duration
	trace := func(call cloud.Call, took time.Duration) {
		assert.Equal(t, "Act", call.Action)
		traced = append(traced, took)
	}
	inBubble(t, cloud.Config{Times: times, Trace: trace}, func(t *testing.T, c *cloud.Cloud) {
		instance := c.AddInstance(cloud.Instance{}).ID
		volume := create(t, c)
		time.Sleep(times.Create + time.Millisecond)
		attach(t, c, volume, instance)
		slow := times
		slow.Detach = time.Minute
		c.SetPace(time.Second, 0, slow)
		time.Sleep(times.Attach + time.Millisecond)
		assert.Equal(t, "in-use attached", state(c, volume), "pending operations keep their durations")
		begin := time.Now()
		detach(t, c, volume, false)
		assert.Equal(t, time.Second, time.Since(begin), "the latency")
		time.Sleep(slow.Detach - 2*time.Second)
		assert.Equal(t, "in-use detaching", state(c, volume))
		time.Sleep(2 * time.Second)
		assert.Equal(t, "available", state(c, volume))
		assert.Equal(t, []time.Duration{0, 0, time.Second}, traced)
	})
}
