// Package cloud simulates what clouds have in common: instances, volumes, attachments and snapshots, whose changes take
// time, and calls that are slow, limited, answered from a state of a while ago, or that fail in all ways that calls fail.
// It knows no cloud: the protocol, the rules and the words of one are a front of their own (package ec2).
//
// All waiting is on contexts and timers, and nothing is locked meanwhile, so that a Cloud works in a bubble of
// testing/synctest as well as behind a socket.
//
// It does not simulate what nothing here asks for: networks, images, prices, quotas on volumes, several regions, volumes
// that several instances hold at once.
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

// Config is what a cloud is like. The zero value of everything but Zones is a cloud that does all at once.
type Config struct {
	Zones   []string                   // at least one; the first is the default
	Latency time.Duration              // of each API call: half before its effect, half after
	Times   Times                      // how long what a call starts goes on in the background
	Lag     time.Duration              // a read may show any object as it was up to so long ago; writes act on the truth
	Limits  func(bucket string) Bucket // token bucket per action; nil or a zero Bucket: no limit
	Backend Backend                    // nil: attachments have nothing behind them
	Seed    uint64                     // of ids and of lag
	LetGo   bool                       // a volume is detached from an instance that is powered off
	ID      func(Kind, uint64) string  // words a number that was never used as the id of an object; nil: as EC2 does
	Trace   func(Call, time.Duration)  // told of each call to the API at its end, and how long it took; may be nil
}

// Kind is what an id is of.
type Kind string

// The kinds of objects.
const (
	AnInstance Kind = "i"
	AVolume    Kind = "vol"
	ASnapshot  Kind = "snap"
)

// Times are how long what a call starts goes on in the background. What takes no time, and has no Backend behind it, is
// over before the call returns, although the answer shows it as begun.
type Times struct{ Create, Delete, Attach, Detach, Snapshot, Modify, Stop, Terminate time.Duration }

// Backend is what stands behind disks and attachments: loop devices, virtual machines. Calls for one disk come one after
// the other.
type Backend interface {
	CreateDisk(disk string, bytes int64, snapshot string) error // snapshot "" is a blank disk
	DeleteDisk(disk string) error
	ResizeDisk(disk string, bytes int64) error
	CopyDisk(disk, snapshot string) error // takes a snapshot
	DeleteSnapshot(snapshot string) error
	Attach(instance, disk string) error             // returns when the device is in the instance's kernel
	Detach(instance, disk string, force bool) error // ErrDeviceBusy while the instance does not let go of it
}

// ErrDeviceBusy is a Backend's word for a device that its instance does not let go of.
var ErrDeviceBusy = errors.New("the instance does not let go of the device")

// What a cloud refuses. Fronts translate these into the words of theirs.
var (
	ErrNoInstance   = errors.New("no such instance")
	ErrNoVolume     = errors.New("no such volume")
	ErrNoSnapshot   = errors.New("no such snapshot")
	ErrNoZone       = errors.New("no such zone")
	ErrZoneMismatch = errors.New("volume and instance are in different zones")
	ErrInUse        = errors.New("the volume is in use")
	ErrState        = errors.New("the object's state does not allow that")
	ErrNotAttached  = errors.New("the volume is not attached to that instance")
	ErrRoot         = errors.New("a root volume stays with its instance")
	ErrTooSmall     = errors.New("smaller than what is copied to it")
	ErrThrottled    = errors.New("too many calls")
)

// Cloud is one simulated cloud.
type Cloud struct {
	cfg   Config
	ended context.Context // when closed
	end   context.CancelFunc
	work  sync.WaitGroup // what runs in the background
	ahead atomic.Int64   // how much later it is by the cloud's clock, see SetClock

	mu        sync.Mutex
	closed    bool
	rand      *rand.Rand
	timers    map[*time.Timer]struct{}
	instances map[string]*history[Instance]
	volumes   map[string]*history[Volume]
	snapshots map[string]*history[Snapshot]
	plugs     map[string]*plug // by volume
	rules     []*rule
	buckets   map[string]*bucket
	calls     map[string]int
	throttled map[string]int
	problems  []error
}

// New returns a cloud without any object in it. It starts nothing that outlives Close.
func New(cfg Config) *Cloud {
	if len(cfg.Zones) == 0 {
		panic("cloud: a cloud has at least one zone")
	}
	c := &Cloud{
		cfg:       cfg,
		rand:      rand.New(rand.NewPCG(cfg.Seed, 0x626c6f636b766f6c)),
		timers:    map[*time.Timer]struct{}{},
		instances: map[string]*history[Instance]{},
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

// Close stops the cloud: what goes on in the background is not finished, calls that hang are let go of.
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

// SetPace changes how long things take from now on, and how old answers may be. What has begun goes on as it was.
func (c *Cloud) SetPace(latency, lag time.Duration, times Times) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cfg.Latency, c.cfg.Lag, c.cfg.Times = latency, lag, times
}

// SetClock puts the cloud's clock ahead of this machine's, or behind it if that is negative. How long things take stays as it is.
func (c *Cloud) SetClock(ahead time.Duration) { c.ahead.Store(int64(ahead)) }

// Now is the time by the cloud's clock: that of all times which the cloud tells or is told.
func (c *Cloud) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *Cloud) times() Times {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cfg.Times
}

// Zones returns the zones, the default first.
func (c *Cloud) Zones() []string { return slices.Clone(c.cfg.Zones) }

// Problems returns what the Backend failed at, device busy excepted: the objects concerned are left as they were.
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

// later does something after a while, unless the cloud is closed before. The caller holds no lock.
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

// id makes an identifier that was never used. The caller holds the lock.
func (c *Cloud) id(of Kind) string {
	if c.cfg.ID != nil {
		return c.cfg.ID(of, c.rand.Uint64())
	}
	return fmt.Sprintf("%s-0%016x", of, c.rand.Uint64())
}

// zone resolves a zone's name, "" being the default.
func (c *Cloud) zone(name string) (string, error) {
	if name == "" {
		return c.cfg.Zones[0], nil
	}
	if !slices.Contains(c.cfg.Zones, name) {
		return "", fmt.Errorf("%w: %s", ErrNoZone, name)
	}
	return name, nil
}

// live returns the true state of all objects of a kind that exist. The caller holds the lock.
func live[T any](objects map[string]*history[T], order func(a, b T) int) []T {
	all := make([]T, 0, len(objects))
	for _, object := range objects {
		if value, ok := object.now(); ok {
			all = append(all, value)
		}
	}
	slices.SortFunc(all, order)
	return all
}

// byAge orders by time, then by id.
func byAge(aTime, bTime time.Time, a, b string) int {
	if order := aTime.Compare(bTime); order != 0 {
		return order
	}
	return strings.Compare(a, b)
}
