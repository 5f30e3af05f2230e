// Package cloud simulates a cloud's instances, volumes, attachments and snapshots, with latency, stale reads, rate limits and
// failures.
//
// It knows no particular cloud: the API and the rules of one are in a package of its own, such as ec2.
//
// It waits on contexts and timers only and holds no lock while it waits, so a Cloud works under testing/synctest as well as
// behind a socket.
//
// It does not simulate networks, images, prices, volume quotas, several regions, or volumes shared by several instances.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a cloud. With the zero value of everything but Zones, every operation completes at once.
type Config struct {
	Zones        []string                   // at least one; the first is the default
	Latency      time.Duration              // of each API call: half before its effect, half after
	Times        Times                      // durations of the background operations
	Lag          time.Duration              // reads show each object as it was up to this long ago; writes see the current state
	Limits       func(bucket string) Bucket // token bucket per action; nil or a zero Bucket: no limit
	Backend      Backend                    // nil: volumes have no devices
	Machines     Machines                   // nil: instances have no machines
	Seed         uint64                     // of IDs and of Lag
	DetachOnStop bool                       // stopping an instance detaches its volumes
	ID           func(Kind, uint64) string  // makes an object's ID from a random number; nil: as EC2 does
	Trace        func(Call, time.Duration)  // called at the end of each API call with its duration; may be nil
}

// Kind is a kind of object.
type Kind string

// The kinds of objects.
const (
	AnInstance Kind = "i"
	AVolume    Kind = "vol"
	ASnapshot  Kind = "snap"
)

// Times are the durations of the background operations. An operation with no duration and no Backend is complete before the
// call returns, although the answer shows it as pending.
//
// Stop is also the duration of a start. Shutdown is how long a client's request that lets the guest shut down waits for the guest,
// before the power is cut.
type Times struct{ Create, Delete, Attach, Detach, Snapshot, Modify, Stop, Shutdown, Terminate time.Duration }

// Backend provides the devices of volumes: loop devices or disks of virtual machines. Calls for one disk do not overlap.
type Backend interface {
	CreateDisk(disk string, bytes int64, snapshot string) error // without a snapshot the disk is blank
	DeleteDisk(disk string) error
	ResizeDisk(disk string, bytes int64) error
	CopyDisk(disk, snapshot string) error // makes a snapshot of the disk
	DeleteSnapshot(snapshot string) error
	Attach(instance, disk string) error             // returns when the instance's kernel has the device
	Detach(instance, disk string, force bool) error // ErrDeviceBusy while the instance uses the device
}

// Machines are the machines behind the instances, such as virtual ones. Clients' requests switch them off and on: Request.Stop and
// Request.Start. Calls for one instance do not overlap, and hold no lock of the cloud.
//
// The machine of an instance runs, and may write to its volumes, until PowerOff has returned. Only then are its devices removed and the
// instance shown as Stopped. After an error the instance remains Stopping, or Pending, and the error is one of Cloud.Problems.
type Machines interface {
	PowerOff(instance string) error // cuts the power, whatever the machine does; one that is off already stays so
	PowerOn(instance string) error  // starts the machine; returns when devices can be attached to it
}

// ErrDeviceBusy is the Backend's error for a device that the instance still uses.
var ErrDeviceBusy = errors.New("the instance still uses the device")

// Errors of requests. Simulators translate them into the errors of their cloud.
var (
	ErrNoInstance   = errors.New("no such instance")
	ErrNoVolume     = errors.New("no such volume")
	ErrNoSnapshot   = errors.New("no such snapshot")
	ErrNoZone       = errors.New("no such zone")
	ErrZoneMismatch = errors.New("volume and instance are in different zones")
	ErrInUse        = errors.New("the volume is in use")
	ErrState        = errors.New("invalid state for this operation")
	ErrNotAttached  = errors.New("the volume is not attached to that instance")
	ErrRoot         = errors.New("a root volume cannot be detached from a running instance")
	ErrTooSmall     = errors.New("smaller than the snapshot")
	ErrThrottled    = errors.New("too many calls")
)

// Cloud is a simulated cloud.
type Cloud struct {
	cfg   Config
	ended context.Context // done after Close
	end   context.CancelFunc
	work  sync.WaitGroup // background operations
	ahead atomic.Int64   // how far the cloud's clock is ahead, see SetClock

	mu        sync.Mutex
	closed    bool
	rand      *rand.Rand
	timers    map[*time.Timer]struct{}
	instances map[string]*history[Instance]
	supplies  map[string]*supply // by instance
	hides     bool               // see HideStopping
	volumes   map[string]*history[Volume]
	snapshots map[string]*history[Snapshot]
	plugs     map[string]*plug // by volume
	rules     []*rule
	buckets   map[string]*bucket
	calls     map[string]int
	throttled map[string]int
	problems  []error
}

// New returns a cloud without objects. Close stops everything it starts.
func New(cfg Config) *Cloud {
	if len(cfg.Zones) == 0 {
		panic("cloud: Config.Zones is empty")
	}
	c := &Cloud{
		cfg:       cfg,
		rand:      rand.New(rand.NewPCG(cfg.Seed, 0x626c6f636b766f6c)),
		timers:    map[*time.Timer]struct{}{},
		instances: map[string]*history[Instance]{},
		supplies:  map[string]*supply{},
		volumes:   map[string]*history[Volume]{},
		snapshots: map[string]*history[Snapshot]{},
		plugs:     map[string]*plug{},
		buckets:   map[string]*bucket{},
		calls:     map[string]int{},
		throttled: map[string]int{},
	}
	c.ended, c.end = context.WithCancel(context.Background())
	return c
}

// Close stops the cloud. Background operations are not completed, and calls that hang return.
func (c *Cloud) Close() {
	c.mu.Lock()
	c.closed = true
	for timer := range c.timers {
		if timer.Stop() {
			c.work.Done()
		}
	}
	clear(c.timers)
	c.mu.Unlock()
	c.end()
	c.work.Wait()
}

// SetPace changes latency, lag and durations from now on. Pending operations keep their durations.
func (c *Cloud) SetPace(latency, lag time.Duration, times Times) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg.Latency, c.cfg.Lag, c.cfg.Times = latency, lag, times
}

// SetChangeTimes changes how long attaching and detaching, and stopping and starting instances, take from now on.
func (c *Cloud) SetChangeTimes(attachments, power time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg.Times.Attach, c.cfg.Times.Detach, c.cfg.Times.Stop, c.cfg.Times.Shutdown = attachments, attachments, power, power
}

// SetLag changes how old answers may be from now on.
func (c *Cloud) SetLag(lag time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg.Lag = lag
}

// SetClock sets the cloud's clock ahead of this machine's, or behind if negative. Durations do not change.
func (c *Cloud) SetClock(ahead time.Duration) { c.ahead.Store(int64(ahead)) }

// Now returns the time by the cloud's clock, which all times in the API refer to.
func (c *Cloud) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *Cloud) times() Times {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Times
}

// Zones returns the zones, the default first.
func (c *Cloud) Zones() []string { return slices.Clone(c.cfg.Zones) }

// Problems returns the errors of the Backend except ErrDeviceBusy. The objects concerned did not change.
func (c *Cloud) Problems() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.problems)
}

func (c *Cloud) problem(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = append(c.problems, fmt.Errorf(format, args...))
}

// later calls do after this time unless the cloud is closed before. The caller must not hold the lock.
func (c *Cloud) later(after time.Duration, do func()) {
	if after <= 0 && c.cfg.Backend == nil {
		do()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	c.work.Add(1)
	var timer *time.Timer
	timer = time.AfterFunc(after, func() {
		defer c.work.Done()
		c.mu.Lock()
		delete(c.timers, timer)
		closed := c.closed
		c.mu.Unlock()
		if !closed {
			do()
		}
	})
	c.timers[timer] = struct{}{}
}

// id returns a new ID. The caller holds the lock.
func (c *Cloud) id(of Kind) string {
	if c.cfg.ID != nil {
		return c.cfg.ID(of, c.rand.Uint64())
	}
	return fmt.Sprintf("%s-0%016x", of, c.rand.Uint64())
}

// zone checks a zone's name; "" is the default.
func (c *Cloud) zone(name string) (string, error) {
	if name == "" {
		return c.cfg.Zones[0], nil
	}
	if !slices.Contains(c.cfg.Zones, name) {
		return "", fmt.Errorf("%w: %s", ErrNoZone, name)
	}
	return name, nil
}

// byAge compares by time, then by ID.
func byAge(aTime, bTime time.Time, a, b string) int {
	if order := aTime.Compare(bTime); order != 0 {
		return order
	}
	return strings.Compare(a, b)
}
