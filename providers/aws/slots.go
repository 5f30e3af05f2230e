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
	"github.com/blockvol/blockvol/providers/recent"
)

// deviceNames are device names that EC2 accepts for EBS volumes of Linux instances and that images rarely use for their own
// disks, in the order of use: first the ranges that EC2's guide recommends ("Device names for volumes on Amazon EC2 instances"),
// then more for instance types with a hundred volumes.
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

const (
	// refusedFor is how long a device name is not used after EC2 called it taken.
	refusedFor = 5 * time.Minute
	// attachUnseen is how long EC2's description of the instance may not show an attach of this process, throttling included.
	attachUnseen = 10 * time.Minute
)

// slots are the device names of an instance, and the number of volumes that its type allows. They are read once, and again when
// they are outdated: the instance's own disks, and those that others attach, rarely change.
type slots struct {
	mu          sync.Mutex
	current     bool // the rest is as EC2 described it, as far as this process knows
	kind        string
	most        limit
	limit       int                      // volumes of the instance, root and others' included
	limitReason string                   // for people
	used        map[string]slot          // by device name; nil: never read
	taken       recent.Map[string, bool] // device names that EC2 called taken
	next        int                      // where the search for a free name starts, so that recently used names come last
}

// slot is a device name in use.
type slot struct {
	volume   string
	reserved time.Time // by this process; zero if EC2 shows it
}

func (p *Provider) slotsOf(instance string) *slots {
	known, _ := p.slots.LoadOrStore(instance, &slots{})
	return known.(*slots) //nolint:forcetypeassert // nothing else is stored
}

// reserveSlot returns a device name for the volume. Errors: ErrAttachLimit.
func (p *Provider) reserveSlot(ctx context.Context, s *slots, instance, volume string) (device string, err error) {
	for read := false; ; read = true {
		device, full := s.reserve(volume)
		switch {
		case device != "":
			return device, nil
		case full != "" && read:
			return "", fmt.Errorf("%w: instance %s %s: run the service on another node, or use an instance type that holds more", providers.ErrAttachLimit, instance, full)
		case full != "":
			s.outdate()
		}
		if err := p.readSlots(ctx, s, instance); err != nil {
			return "", err
		}
	}
}

// reserve returns a device name, or why there is none; neither if the slots must be read first.
func (s *slots) reserve(volume string) (device, full string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.current {
		return "", ""
	}
	for name, u := range s.used {
		if u.volume == volume {
			return name, "" // of an attempt with unknown result
		}
	}
	if len(s.used) >= s.limit {
		return "", fmt.Sprintf("(%s) holds %d volumes, the most for its type (%s)", s.kind, len(s.used), s.limitReason)
	}
	for range deviceNames {
		name := deviceNames[s.next%len(deviceNames)]
		s.next++
		_, used := s.used[name]
		if _, refused := s.taken.Get(refusedFor, name); !used && !refused {
			s.used[name] = slot{volume, time.Now()}
			return name, ""
		}
	}
	return "", fmt.Sprintf("(%s) has no free device name", s.kind)
}

// release frees the device name of the volume.
func (s *slots) release(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.used, func(_ string, u slot) bool { return u.volume == volume })
}

// refused frees a device name that EC2 called taken, and does not use it for a while.
func (s *slots) refused(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, device)
	s.taken.Put(device, time.Now(), true)
}

// observe notes a volume that EC2 shows on the instance.
func (s *slots) observe(volume, device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used != nil && device != "" {
		s.used[device] = slot{volume: volume}
	}
}

// outdate makes the next reserve read again.
func (s *slots) outdate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = false
}

// Slots counts the volumes of this instance, and those that its type allows.
func (p *Provider) Slots(ctx context.Context) (providers.Slots, error) {
	node, err := p.Node(ctx)
	if err != nil {
		return providers.Slots{}, err
	}
	s := p.slotsOf(node.ID)
	s.outdate() // others attach disks, too
	if err := p.readSlots(ctx, s, node.ID); err != nil {
		return providers.Slots{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return providers.Slots{Most: s.limit, Used: len(s.used)}, nil
}

func (s *slots) isCurrent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// readSlots reads the instance's disks, and once the limit of its type, unless another caller has just done so.
func (p *Provider) readSlots(ctx context.Context, s *slots, node string) error {
	unlock, _, err := p.readingSlots.Lock(ctx, node)
	if err != nil {
		return err
	}
	defer unlock()
	if s.isCurrent() {
		return nil
	}
	instance, found, err := p.nodes.Get(ctx, node)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%w: EC2 does not show instance %s: if it has just been started, try again; otherwise the credentials are of another account", providers.ErrBusy, node)
	}
	kind, most := string(instance.InstanceType), s.most
	if kind != s.kind {
		if most, err = p.limitOf(ctx, kind); err != nil {
			return err
		}
	}
	used := make(map[string]slot)
	for _, m := range instance.BlockDeviceMappings {
		if m.Ebs != nil {
			used[sdk.ToString(m.DeviceName)] = slot{volume: sdk.ToString(m.Ebs.VolumeId)}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, u := range s.used {
		if _, shown := used[name]; !shown && time.Since(u.reserved) < attachUnseen {
			used[name] = u
		}
	}
	s.current, s.kind, s.most, s.used = true, kind, most, used
	s.limit, s.limitReason = most.with(len(instance.NetworkInterfaces))
	return nil
}

// limit is the number of volumes that an instance type allows, the root volume included.
type limit struct {
	volumes int
	shared  bool // with network interfaces; the number is already without the first one
}

// with returns the limit of an instance with that many network interfaces, and an explanation for people.
func (l limit) with(interfaces int) (volumes int, reason string) {
	if more := interfaces - 1; l.shared && more > 0 {
		return l.volumes - more, fmt.Sprintf("%d with the root volume, less one for each network interface but the first, here %d interfaces", l.volumes, interfaces)
	}
	return l.volumes, fmt.Sprintf("%d with the root volume", l.volumes)
}

// limitOf asks for an instance type's limit. If EC2 does not tell, it is that of the Nitro system: 28, shared with network
// interfaces (Amazon EC2 User Guide, "Amazon EBS volume limits for Amazon EC2 instances"). EC2's own number does not count the
// first network interface.
func (p *Provider) limitOf(ctx context.Context, kind string) (limit, error) {
	answer, err := call(ctx, p, (*ec2.Client).DescribeInstanceTypes, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{types.InstanceType(kind)}})
	if err != nil {
		return limit{}, err
	}
	l := limit{27, true}
	for _, t := range answer.InstanceTypes {
		switch {
		case t.EbsInfo == nil:
		case t.EbsInfo.NvmeSupport == types.EbsNvmeSupportUnsupported:
			return limit{}, fmt.Errorf("%w: instances of type %s run on Xen, where disks have no serial by which to identify a volume: use a type of the Nitro system", providers.ErrInvalid, kind)
		case t.EbsInfo.MaximumEbsAttachments != nil:
			l = limit{int(*t.EbsInfo.MaximumEbsAttachments), t.EbsInfo.AttachmentLimitType == types.AttachmentLimitTypeShared}
		}
	}
	return l, nil
}
