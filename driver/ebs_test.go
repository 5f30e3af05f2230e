package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http" //nolint:depguard // a life's connection to the simulated EC2 is cut and lost here
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/aws" //nolint:depguard // the randomised run has to hold on a real provider, too
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/violation"
)

func TestMain(m *testing.M) {
	pause.Random = func(limit time.Duration) time.Duration { // of the bubble's time alone, so that a run can be repeated
		return time.Duration(rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 3)).Int64N(int64(limit)))
	}
	cloudtest.Unsetenv("AWS_")
	os.Exit(m.Run())
}

// floorsOnEBS are floors for runs on the simulated EC2.
var floorsOnEBS = figures{
	"mounts": 350, "unmounts": 200, "takeovers": 10, "formats": 45, "crashes": 200, "releases": 350, "removes": 35,
	"throttled calls": 500, "stale reads": 500,
}

// TestRandomOnEBS is TestRandom with providers/aws over a simulated EC2, whose reads lag and which throttles.
func TestRandomOnEBS(t *testing.T) {
	seeds(t, "EC2", 10, floorsOnEBS, func(t *testing.T, seed uint64) *world {
		w := newWorld(seed)
		r := newRegion(w, seed)
		t.Cleanup(r.sim.Close)
		random(t, seed, w)
		assert.Empty(t, r.sim.Problems(), violation.Prefix+"of the cloud")
		for _, n := range r.sim.Throttled() {
			w.figures["throttled calls"] += n
		}
		w.figures["stale reads"] += r.stale
		return w
	})
}

// sceneOnEBS is a scene whose cloud is the simulated EC2.
func sceneOnEBS(t *testing.T, story func(t *testing.T, r *region, a, b *machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		r := newRegion(w, 1)
		t.Cleanup(r.sim.Close)
		play(t, w, func(t *testing.T, _ *world, a, b *machine) { story(t, r, a, b) })
	})
}

// What was asked for is compared with what EC2 tells of the volume, in words of its own.
func TestAVolumeOfEBSIsWhatWasAskedForHoweverItWasWritten(t *testing.T) {
	sceneOnEBS(t, func(t *testing.T, r *region, a, b *machine) {
		one, other := a.start(t), b.start(t)
		zone := r.sim.Zones()[0]
		asked := map[string]string{
			"size": "100", "type": "gp3", "iops": "+4000", "throughput": "0250", "encrypted": "1", "kms-key": "alias/data", "zone": zone,
			"tags": "team=db", "fstype": "xfs", "uid": "999", "reclaim": "retain",
		}
		require.NoError(t, one.Create(within(t), "data", asked))
		time.Sleep(time.Minute)
		asked["encrypted"], asked["iops"], asked["size"] = "true", "4000", "100GiB"
		require.NoError(t, other.Create(within(t), "data", asked))
		info, err := other.Get(within(t), "data")
		require.NoError(t, err)
		for option, is := range map[string]string{
			"size": "100GiB", "type": "gp3", "iops": "4000", "throughput": "250", "encrypted": "true", "kms-key": "alias/data", "zone": zone,
		} {
			assert.Equal(t, is, info.Status[option], option)
		}
		for option, value := range map[string]string{"iops": "5000", "kms-key": "alias/other", "zone": zone + "x", "type": "gp2", "fstype": "ext4"} {
			err := other.Create(within(t), "data", map[string]string{option: value})
			require.ErrorContains(t, err, option+"=", "%s=%s", option, value)
		}
	})
}

func TestADiskThatIsAboutToGoIsNotMounted(t *testing.T) {
	for name, f := range map[string]fault{"the release fails": failBefore, "the plugin dies": crashBefore} {
		t.Run(name, func(t *testing.T) {
			sceneOnEBS(t, func(t *testing.T, r *region, a, _ *machine) {
				w := r.world
				l := a.start(t)
				formatted(t, l, "data")
				time.Sleep(time.Minute)
				mustMount(t, l, "data", "1")
				time.Sleep(time.Minute)
				a.containerEnds("1")
				w.setFault(at("host.WaitGone", f)) // EC2 has just taken the detach
				require.Error(t, l.Unmount(within(t), "data", "1"))
				w.setFault(calm)
				if l.dead.Load() {
					_ = l.Close(t.Context())
					l = a.start(t)
				}
				mountAsSwarmDoes(t, l, "data", "2")
				time.Sleep(time.Minute)
				assert.Equal(t, a.name, w.holder("data"))
				mustUnmount(t, l, "data", "2")
			})
		})
	}
}

func TestAnInstanceThatIsBackKeepsWhatItHasMountedThoughItStillLooksStopped(t *testing.T) {
	late := 0
	for run := 0; run < 4 || late == 0 && run < 60; run++ { // EC2's latencies are random: in one of five runs b asks when a looks as it is
		sceneOnEBS(t, func(t *testing.T, r *region, a, b *machine) {
			la, lb := a.start(t), b.start(t)
			formatted(t, la, "data")
			mustMount(t, la, "data", "1")
			a.powerOff()
			time.Sleep(time.Minute)

			// What b does about it is held up until a has it again.
			letDetach := r.sim.Inject(cloud.Rule{Action: "DetachVolume", Caller: b.name, Fault: cloud.Throttle})
			var other sync.WaitGroup
			other.Go(func() {
				for range 20 {
					_, _ = lb.Mount(within(t), "data", "3")
					time.Sleep(time.Second)
				}
			})
			a.powerOn()
			la = a.start(t)
			mountAsSwarmDoes(t, la, "data", "2")
			letDetach()
			other.Wait()
			synctest.Wait()
			late += r.late
			assert.NotNil(t, a.mounts[r.world.disk("data").Serial])
			mustUnmount(t, la, "data", "2")
			mountAsSwarmDoes(t, lb, "data", "4")
			mustUnmount(t, lb, "data", "4")
		})
	}
	assert.Positive(t, late, "b never came too late")
}

const clusterOfWorld = "default"

// region is a simulated EC2 whose disks and machines are the world's.
type region struct {
	world *world
	sim   *cloud.Cloud
	front *ec2.Front
	// Guarded by world.mu.
	stale   int               // how often a read showed what was not so any more
	askedBy map[string]string // by volume: the machine whose detach EC2 took last
	late    int               // how often another machine's detach did not get what the holder has mounted
}

func newRegion(w *world, seed uint64) *region {
	r := &region{world: w, askedBy: map[string]string{}}
	scarcity := 1 + int(seed%3)
	w.cloud = r
	r.sim = cloud.New(cloud.Config{
		Zones:   []string{"eu-test-1a"},
		Latency: 200 * time.Millisecond,
		Lag:     3 * time.Second,
		Times:   cloud.Times{Create: time.Second, Delete: time.Second, Attach: time.Second, Detach: 2 * time.Second, Modify: 10 * time.Second, Stop: time.Second},
		Limits: func(action string) cloud.Bucket { // a tenth to a thirtieth of what EC2 gives
			if strings.HasPrefix(action, "Describe") {
				return cloud.Bucket{Size: 12 / scarcity, PerSecond: 1 / float64(scarcity)}
			}
			return cloud.Bucket{Size: 6 / scarcity, PerSecond: 0.4 / float64(scarcity)}
		},
		Backend: r,
		Seed:    seed,
	})
	r.front = ec2.New(ec2.Config{Cloud: r.sim, Region: "eu-test-1"})
	return r
}

func (r *region) join(machine string) string {
	return r.sim.AddInstance(cloud.Instance{ID: "i-" + strings.Repeat("0", 16) + machine, Type: "m5.large", RootDevice: "/dev/xvda"}).ID
}

func (r *region) provider(t testing.TB, l *life) providers.Provider {
	t.Helper()
	way := &transport{region: r, life: l, next: r.front.Transport(l.machine.name)}
	p, err := aws.New(aws.Config{Cluster: clusterOfWorld, HTTPClient: &http.Client{Transport: way}})
	require.NoError(t, err)
	return p
}

func (r *region) powerOff(id string) { r.sim.Stop(id) }

func (r *region) powerOn(id string) {
	r.await(id, cloud.Stopped)
	r.sim.Start(id)
	r.await(id, cloud.Running)
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	// Quicker than any machine: it may have mounted its volumes while EC2 still calls it stopped.
	r.world.boot = time.Duration(r.world.dice("boot", id).Int64N(int64(5 * time.Second)))
}

func (r *region) await(id string, state cloud.InstanceState) {
	for {
		if i, _ := r.sim.Instance(id); i.State == state {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (r *region) enlarge(name string) {
	for _, v := range r.volumes() {
		if v.Name == name {
			// That EC2 refuses it is as good.
			_ = r.aside(func(request *cloud.Request) error {
				_, err := request.ModifyVolume(v.ID, func(v cloud.Volume) (cloud.Shape, error) {
					if v.Modification != nil && v.Modification.State != cloud.Completed {
						return cloud.Shape{}, errors.New("an earlier change is not finished")
					}
					shape := v.Shape()
					shape.Size *= 2
					return shape, nil
				})
				return err
			})
		}
	}
}

// aside does something in the cloud that is no call of blockvol's.
func (r *region) aside(do func(*cloud.Request) error) error {
	_, err := r.sim.Do(context.Background(), cloud.Call{Aside: true}, do)
	return err
}

func (r *region) volumes() (all []*providers.Volume) {
	for _, v := range r.sim.Volumes() {
		if v.Tags["blockvol:cluster"] != clusterOfWorld || v.State == cloud.Deleting || v.State == cloud.Deleted {
			continue
		}
		vol := &providers.Volume{ID: v.ID, Name: v.Tags["blockvol:name"], Record: providers.Record{volume.KeyFormatted: v.Tags["blockvol:record:"+volume.KeyFormatted]}}
		for _, a := range v.Attachments {
			vol.Attachment = providers.Attachment{Node: a.Instance, State: providers.AttachState(a.State)}
		}
		all = append(all, vol)
	}
	return all
}

func (r *region) note(volume, node string) {
	r.world.mu.Lock()
	defer r.world.mu.Unlock()
	r.askedBy[volume] = node
}

// compare notes whether a read is behind at this moment.
func (r *region) compare() {
	_ = r.aside(func(request *cloud.Request) error {
		shown, truth := request.Volumes(), r.sim.Volumes()
		r.world.mu.Lock()
		defer r.world.mu.Unlock()
		if !slices.EqualFunc(shown, truth, func(a, b cloud.Volume) bool {
			return a.ID == b.ID && a.State == b.State && slices.Equal(a.Attachments, b.Attachments)
		}) {
			r.stale++
		}
		return nil
	})
}

// The region is what stands behind the cloud's volumes: the world's disks.
var _ cloud.Backend = (*region)(nil)

func (r *region) CreateDisk(id string, bytes int64, _ string) error {
	v, _ := r.sim.Volume(id)
	w := r.world
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disks[id] = &disk{owned: true, born: time.Now(), Volume: providers.Volume{ID: id, Name: v.Tags["blockvol:name"], Size: bytes, Serial: strings.Replace(id, "-", "", 1)}}
	return nil
}

func (r *region) DeleteDisk(id string) error {
	w := r.world
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if m.on(deviceOf(w.disks[id])) != nil {
			w.violate("%s was deleted while %s has it mounted", w.disks[id].Name, m.name)
		}
	}
	w.mayDelete(w.disks[id])
	delete(w.disks, id)
	return nil
}

func (r *region) ResizeDisk(id string, bytes int64) error {
	w := r.world
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disks[id].Size = bytes
	return nil
}

func (r *region) CopyDisk(string, string) error { return nil }

func (r *region) DeleteSnapshot(string) error { return nil }

func (r *region) Attach(instance, id string) error {
	w := r.world
	w.mu.Lock()
	arrival := w.arrival
	if w.machines[instance].life != providers.Running { // it boots, and finds its devices there
		arrival = 0
	}
	w.mu.Unlock()
	time.Sleep(arrival)
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.disks[id]; d.Held() {
		return fmt.Errorf("%s is held by %s", d.Name, d.Attachment.Node)
	}
	w.disks[id].Attachment = providers.Attachment{Node: instance, State: providers.Attached}
	w.plug(w.disks[id])
	return nil
}

func (r *region) Detach(instance, id string, force bool) error {
	w := r.world
	w.mu.Lock()
	m, d, departure := w.machines[instance], w.disks[id], w.departure
	if !force && m.on(deviceOf(d)) != nil && r.askedBy[id] != instance { // it was stopped when that was decided, and does not lose it
		r.late++
		w.mu.Unlock()
		return cloud.ErrDeviceBusy
	}
	if !m.mayLose(d, force) && !force {
		w.mu.Unlock()
		return cloud.ErrDeviceBusy
	}
	if force {
		w.figures["takeovers"]++
	}
	d.Attachment = providers.Attachment{}
	if m.life != providers.Running {
		departure = 0
	}
	w.mu.Unlock()
	time.Sleep(departure)
	return nil
}

// wire is the way from one life of the plugin to EC2 and back.
type transport struct {
	*life
	region *region
	next   http.RoundTripper
}

// RoundTrip lets the requests of a living process pass, but for what the world makes go wrong.
func (x *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	x.machine.awaitGoingOn()
	if x.dead.Load() {
		return nil, errDead
	}
	if r.URL.Hostname() == ec2.MetadataHost {
		return x.next.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	action := form.Get("Action")
	f := x.draw("cloud." + action)
	switch f {
	case failBefore:
		return nil, errInjected
	case hang:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case crashBefore:
		x.dead.Store(true)
		return nil, errDead
	}
	answer, err := x.next.RoundTrip(r)
	if action == "DetachVolume" && (err != nil || answer.StatusCode == http.StatusOK) {
		x.region.note(form.Get("VolumeId"), x.machine.name)
	}
	if err == nil && (action == "AttachVolume" || action == "DetachVolume") {
		x.region.compare()
	}
	switch f {
	case failAfter:
		return nil, errors.Join(errInjected, err)
	case crashAfter:
		x.dead.Store(true)
	}
	if x.dead.Load() {
		return nil, errDead
	}
	return answer, err
}
