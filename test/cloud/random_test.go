package cloud_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

// kernels is a Backend that is slow and sometimes busy, and that reports what a cloud must never do: have a device in two
// kernels, or twice in one, or delete the disk of a device.
type kernels struct {
	t     *testing.T
	cloud *cloud.Cloud
	mu    sync.Mutex
	rand  *rand.Rand
	in    map[string]string // the instance that has each device
	disk  map[string]bool
	at    map[string]bool // disks in a call
}

// enter begins a call for a disk, which no other call may be using, and takes some time.
func (k *kernels) enter(disk string) (leave func()) {
	k.mu.Lock()
	assert.False(k.t, k.at[disk], "concurrent calls for %s", disk)
	k.at[disk] = true
	d := time.Duration(k.rand.IntN(2000)) * time.Millisecond
	k.mu.Unlock()
	time.Sleep(d)
	k.mu.Lock()
	return func() {
		delete(k.at, disk)
		k.mu.Unlock()
	}
}

func (k *kernels) CreateDisk(disk string, _ int64, _ string) error {
	defer k.enter(disk)()
	k.disk[disk] = true
	return nil
}

func (k *kernels) DeleteDisk(disk string) error {
	defer k.enter(disk)()
	assert.True(k.t, k.disk[disk])
	assert.Empty(k.t, k.in[disk], "a disk is deleted while its device exists")
	delete(k.disk, disk)
	return nil
}

func (k *kernels) ResizeDisk(string, int64) error { return nil }
func (k *kernels) CopyDisk(string, string) error  { return nil }
func (k *kernels) DeleteSnapshot(string) error    { return nil }

func (k *kernels) Attach(instance, disk string) error {
	i, _ := k.cloud.Instance(instance)
	assert.NotContains(k.t, []cloud.InstanceState{cloud.Pending, cloud.Stopped, cloud.Terminated}, i.State, "the instance is off")
	defer k.enter(disk)()
	assert.True(k.t, k.disk[disk])
	assert.Empty(k.t, k.in[disk], "a device is attached twice")
	k.in[disk] = instance
	return nil
}

func (k *kernels) Detach(instance, disk string, force bool) error {
	defer k.enter(disk)()
	assert.Equal(k.t, instance, k.in[disk], "a device is detached that is not attached")
	if !force && k.rand.IntN(3) == 0 {
		return cloud.ErrDeviceBusy
	}
	delete(k.in, disk)
	return nil
}

func TestDeviceIsInOneKernelDespiteConcurrentRequests(t *testing.T) {
	for seed := range uint64(20) {
		k := &kernels{t: t, rand: rand.New(rand.NewPCG(seed, 1)), in: map[string]string{}, disk: map[string]bool{}, at: map[string]bool{}}
		// Attaching takes longer than the requests that follow it.
		times := cloud.Times{Create: time.Second, Attach: 10 * time.Second, Detach: time.Second, Stop: 5 * time.Second, Terminate: 5 * time.Second}
		inBubble(t, cloud.Config{Times: times, Backend: k, Latency: 100 * time.Millisecond, Lag: time.Second, Seed: seed}, func(t *testing.T, c *cloud.Cloud) {
			k.cloud = c
			var instances, volumes []string
			for range 3 {
				instances = append(instances, c.AddInstance(cloud.Instance{RootDevice: "/dev/xvda"}).ID)
			}
			for range 4 {
				volumes = append(volumes, create(t, c))
			}
			after(time.Minute)
			var clients sync.WaitGroup
			for n := range uint64(6) {
				random := rand.New(rand.NewPCG(seed, 100+n))
				clients.Go(func() {
					for range 60 {
						time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
						v, i := volumes[random.IntN(len(volumes))], instances[random.IntN(len(instances))]
						_, err := c.Do(t.Context(), cloud.Call{}, func(r *cloud.Request) error {
							switch random.IntN(5) {
							case 0, 1:
								return attachError(r, v, i)
							case 2, 3:
								_, err := r.DetachVolume(v, "", "", random.IntN(4) == 0)
								return err
							default:
								r.Volumes()
								return nil
							}
						})
						assert.True(t, err == nil || errors.Is(err, cloud.ErrInUse) || errors.Is(err, cloud.ErrState), "%v", err)
					}
				})
			}
			power := rand.New(rand.NewPCG(seed, 2))
			clients.Go(func() { // the first instance is stopped and started, the second terminated
				for n := range 8 {
					time.Sleep(time.Duration(power.IntN(5000)) * time.Millisecond)
					c.Stop(instances[0])
					if n == 4 {
						c.Terminate(instances[1])
					}
					reach(c, instances[0], cloud.Stopped)
					time.Sleep(time.Second)
					c.Start(instances[0])
					reach(c, instances[0], cloud.Running)
				}
			})
			clients.Wait()
			after(time.Minute)
			k.mu.Lock()
			defer k.mu.Unlock()
			for _, id := range volumes {
				v, ok := c.Volume(id)
				require.True(t, ok)
				in := ""
				if len(v.Attachments) > 0 {
					in = v.Attachments[0].Instance
				}
				assert.Equal(t, in, k.in[id], "%s is %s", id, state(c, id))
			}
			assert.Empty(t, c.Problems())
		})
	}
}

// reach waits for an instance's state.
func reach(c *cloud.Cloud, instance string, state cloud.InstanceState) {
	for i, _ := c.Instance(instance); i.State != state; i, _ = c.Instance(instance) {
		time.Sleep(100 * time.Millisecond)
	}
}
