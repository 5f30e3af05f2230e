package cloud

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Instance is a virtual machine.
type Instance struct {
	ID         string // AddInstance makes one if it is ""
	Type       string // as the cloud names it
	Zone       string // "" is the default
	State      InstanceState
	Interfaces int    // number of network interfaces, at least one
	RootDevice string // device name of the root volume, such as "/dev/xvda"; it has no disk of the Backend; "" for no root volume
	Address    string // private address
	LaunchedAt time.Time
	Tags       map[string]string
}

// InstanceState is a state of an instance.
type InstanceState string

// The states of an instance.
const (
	Pending      InstanceState = "pending"
	Running      InstanceState = "running"
	Stopping     InstanceState = "stopping"
	Stopped      InstanceState = "stopped"
	ShuttingDown InstanceState = "shutting-down"
	Terminated   InstanceState = "terminated"
)

// remembered is how long a terminated instance remains visible.
const remembered = time.Hour

func (i Instance) clone() Instance {
	i.Tags = maps.Clone(i.Tags)
	return i
}

// AddInstance adds an instance and returns it. Its state is Running by default.
func (c *Cloud) AddInstance(i Instance) Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	i = i.clone()
	if i.ID == "" {
		i.ID = c.id(AnInstance)
	}
	if _, known := c.instances[i.ID]; known {
		panic("cloud: duplicate instance " + i.ID)
	}
	zone, err := c.zone(i.Zone)
	if err != nil {
		panic(fmt.Sprintf("cloud: %v", err))
	}
	i.Zone = zone
	if i.State == "" {
		i.State = Running
	}
	i.Interfaces = max(1, i.Interfaces)
	if i.LaunchedAt.IsZero() {
		i.LaunchedAt = time.Now()
	}
	if i.Address == "" {
		n := len(c.instances) + 4
		i.Address = fmt.Sprintf("10.0.%d.%d", n/250, n%250)
	}
	if i.Tags == nil {
		i.Tags = map[string]string{}
	}
	c.instances[i.ID], c.supplies[i.ID] = &history[Instance]{}, &supply{}
	c.instances[i.ID].put(i, false, c.cfg.Lag)
	if i.RootDevice != "" {
		c.addRoot(i)
	}
	return i.clone()
}

// Instance returns the current state of an instance, regardless of Lag.
func (c *Cloud) Instance(id string) (Instance, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	return i.clone(), ok
}

// Instances returns the current state of all instances, the oldest first, regardless of Lag.
func (c *Cloud) Instances() []Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return list(c.instances, current, nil, olderInstance)
}

// Instances returns all instances, subject to Lag and HideStopping.
func (r *Request) Instances() []Instance {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	all := list(r.c.instances, seen[Instance](r.c), nil, olderInstance)
	for i := range all {
		if r.c.hides && all[i].State == Stopping {
			all[i].State = Running
		}
	}
	return all
}

func olderInstance(a, b Instance) int { return byAge(a.LaunchedAt, b.LaunchedAt, a.ID, b.ID) }

// SetInterfaces sets an instance's number of network interfaces, which can reduce how many volumes it can have.
func (c *Cloud) SetInterfaces(id string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	if !ok || n < 1 {
		panic(fmt.Sprintf("cloud: instance %q cannot have %d network interfaces", id, n))
	}
	i.Interfaces = n
	c.instances[id].put(i, false, c.cfg.Lag)
}

// each calls do for every volume that is attached to an instance.
func (c *Cloud) each(instance string, do func(volume string, a Attachment)) {
	c.mu.Lock()
	held := map[string]Attachment{}
	for id, h := range c.volumes {
		if v, ok := h.now(); ok {
			if a, attached := v.attachedTo(instance); attached {
				held[id] = a
			}
		}
	}
	c.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(held)) {
		do(id, held[id])
	}
}
