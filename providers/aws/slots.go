package aws

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
)

// deviceNames are those that EC2 accepts for EBS volumes of Linux instances and that hardly an image uses for its own disks,
// in the order in which they are given out: /dev/xvd[b-c][a-z], /dev/xvdd[a-x] and /dev/sd[f-p] as EC2's guide recommends
// ("Device names for volumes on Amazon EC2 instances"), and a few more for types that hold a hundred volumes.
var deviceNames = func() (names []string) {
	for _, r := range []struct {
		prefix      string
		first, last rune
	}{{"/dev/xvdb", 'a', 'z'}, {"/dev/xvdd", 'a', 'x'}, {"/dev/xvdc", 'a', 'z'}, {"/dev/sd", 'f', 'p'}, {"/dev/xvd", 'q', 'z'}, {"/dev/sd", 'b', 'e'}} {
		for c := r.first; c <= r.last; c++ {
			names = append(names, r.prefix+string(c))
		}
	}
	return names
}()

// slots are the places of an instance for volumes: device names, and how many volumes its type takes. What EC2 says of
// the instance is read once, and again when it proves old: the instance's own disks and those that others attach rarely
// change.
type slots struct {
	gate chan struct{} // held by the caller that reads

	mu    sync.Mutex
	reads int                  // how often EC2 was asked
	old   bool                 // what it said may no longer be so
	of    string               // the instance's type
	kind  limit                // what that takes
	limit int                  // volumes that the instance can hold, the root and foreign ones included
	kept  string               // why limit is what it is, for people
	used  map[string]slot      // by device name
	off   map[string]time.Time // names that EC2 refused, and when
	next  int                  // where the search for a free name goes on: names used lately come last
}

// slot is a device name in use.
type slot struct {
	volume string
	taken  time.Time // by this process; zero if EC2 told of it
}

// putOffFor is how long a device name that EC2 called taken is left alone.
const putOffFor = 5 * time.Minute

// slotsOf are the places of an instance.
func (p *Provider) slotsOf(instance string) *slots {
	known, _ := p.places.LoadOrStore(instance, &slots{gate: make(chan struct{}, 1)})
	return known.(*slots) //nolint:forcetypeassert // nothing else is stored
}

// takeSlot reserves a device name for the volume, or tells that the instance is full.
func (p *Provider) takeSlot(ctx context.Context, s *slots, instance, volume string) (device string, err error) {
	for asked := false; ; asked = true {
		device, full, reads := s.take(volume)
		if device != "" {
			return device, nil
		}
		if full != "" && asked {
			return "", fmt.Errorf("%w: instance %s (%s) %s: run the service on another node, or take an instance type that holds more", providers.ErrAttachLimit, instance, s.typeName(), full)
		}
		if err := p.readSlots(ctx, s, instance, reads); err != nil {
			return "", err
		}
	}
}

// take returns a name, or why there is none; neither if EC2 has to be asked first. reads tells how often it was.
func (s *slots) take(volume string) (device, full string, reads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads == 0 || s.old {
		return "", "", s.reads
	}
	for name, u := range s.used {
		if u.volume == volume {
			return name, "", s.reads // of an attempt whose end is not known
		}
	}
	if len(s.used) >= s.limit {
		return "", fmt.Sprintf("holds %d volumes, as many as its type can (%s)", len(s.used), s.kept), s.reads
	}
	for range deviceNames {
		name := deviceNames[s.next%len(deviceNames)]
		s.next++
		if _, taken := s.used[name]; !taken && time.Since(s.off[name]) > putOffFor {
			s.used[name] = slot{volume, time.Now()}
			return name, "", s.reads
		}
	}
	return "", "has no device name left", s.reads
}

// free gives back what the volume has.
func (s *slots) free(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.used, func(_ string, u slot) bool { return u.volume == volume })
}

// putOff leaves a name alone for a while.
func (s *slots) putOff(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, device)
	s.off[device] = time.Now()
}

// learn notes a volume that EC2 says is on this instance.
func (s *slots) learn(volume, device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads > 0 && device != "" {
		s.used[device] = slot{volume: volume}
	}
}

func (s *slots) typeName() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of
}

// stale makes the next attach ask EC2 again.
func (s *slots) stale() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old = true
}

// readSlots asks EC2 for the instance's disks, and once for its type's limit, unless another caller has just done so.
func (p *Provider) readSlots(ctx context.Context, sl *slots, node string, reads int) error {
	select {
	case sl.gate <- struct{}{}:
		defer func() { <-sl.gate }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if sl.hasRead(reads) {
		return nil
	}
	instance, found, err := p.nodes.Get(ctx, node)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%w: EC2 does not show instance %s: if it has just been started, try again; otherwise the credentials are of another account", providers.ErrBusy, node)
	}
	kind := sl.kind
	if reads == 0 {
		if kind, err = p.limitOf(ctx, string(instance.InstanceType)); err != nil {
			return err
		}
	}
	most, kept := kind.with(len(instance.NetworkInterfaces))
	used := make(map[string]slot)
	for _, m := range instance.BlockDeviceMappings {
		if m.Ebs != nil {
			used[sdk.ToString(m.DeviceName)] = slot{volume: sdk.ToString(m.Ebs.VolumeId)}
		}
	}
	sl.mu.Lock()
	defer sl.mu.Unlock()
	for name, u := range sl.used {
		if _, shown := used[name]; !shown && time.Since(u.taken) < inFlight {
			used[name] = u
		}
	}
	sl.of = string(instance.InstanceType)
	sl.reads, sl.old, sl.kind, sl.limit, sl.kept, sl.used = reads+1, false, kind, most, kept, used
	if sl.off == nil {
		sl.off = make(map[string]time.Time)
	}
	maps.DeleteFunc(sl.off, func(_ string, at time.Time) bool { return time.Since(at) > putOffFor })
	return nil
}

// inFlight is how long an attach of this process may not show in what EC2 says of the instance, throttling included.
const inFlight = 10 * time.Minute

func (s *slots) hasRead(before int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads != before
}

// limit is how many volumes an instance type takes, the root volume included.
type limit struct {
	volumes int
	shared  bool // with network interfaces, the first of which is left out of the number
}

// with returns what is left beside so many network interfaces, and why, for people.
func (l limit) with(interfaces int) (volumes int, kept string) {
	if more := interfaces - 1; l.shared && more > 0 {
		return l.volumes - more, fmt.Sprintf("%d with the root volume, of which more than one network interface, here %d, takes a place each", l.volumes, interfaces)
	}
	return l.volumes, fmt.Sprintf("%d with the root volume", l.volumes)
}

// limitOf asks for an instance type's limit. EC2's own number leaves out the first network interface where interfaces share it.
// Where EC2 does not tell, the Nitro system has 28 places (Amazon EC2 User Guide, "Amazon EBS volume limits for Amazon EC2
// instances").
func (p *Provider) limitOf(ctx context.Context, kind string) (limit, error) {
	answer, err := call(ctx, p, "DescribeInstanceTypes", func(ctx context.Context, api *ec2.Client) (*ec2.DescribeInstanceTypesOutput, error) {
		return api.DescribeInstanceTypes(ctx, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{types.InstanceType(kind)}})
	})
	if err != nil {
		return limit{}, err
	}
	l := limit{27, true}
	for _, t := range answer.InstanceTypes {
		switch {
		case t.EbsInfo == nil:
		case t.EbsInfo.NvmeSupport == types.EbsNvmeSupportUnsupported:
			return limit{}, fmt.Errorf("%w: instances of type %s run on Xen, where disks have no serial by which a volume could be told from another: use a type of the Nitro system", providers.ErrInvalid, kind)
		case t.EbsInfo.MaximumEbsAttachments != nil:
			l = limit{int(*t.EbsInfo.MaximumEbsAttachments), t.EbsInfo.AttachmentLimitType == types.AttachmentLimitTypeShared}
		}
	}
	return l, nil
}
