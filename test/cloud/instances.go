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
	c.instances[i.ID] = &history[Instance]{}
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

// Instances returns all instances, subject to Lag.
func (r *Request) Instances() []Instance {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return list(r.c.instances, seen[Instance](r.c), nil, olderInstance)
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

// Start starts a stopped instance. Its attached volumes have devices when it runs.
func (c *Cloud) Start(id string) {
	c.power(id, Stopped, Pending)
	c.later(c.times().Stop, func() {
		if c.reach(id, Pending, Running) {
			c.each(id, func(volume string, _ Attachment) { c.plugIn(volume, id) })
		}
	})
}

// Stop stops a running instance. Its volumes stay attached unless Config.DetachOnStop, but have no devices.
func (c *Cloud) Stop(id string) {
	c.power(id, Running, Stopping)
	c.later(c.times().Stop, func() {
		c.each(id, func(volume string, a Attachment) {
			if c.cfg.DetachOnStop {
				c.abandon(volume, a)
			} else {
				c.pullOut(volume, id)
			}
		})
		c.reach(id, Stopping, Stopped)
	})
}

// Terminate terminates an instance in any state. Then its volumes are detached, and those with DeleteOnTermination deleted. It
// remains visible for an hour.
func (c *Cloud) Terminate(id string) {
	c.power(id, "", ShuttingDown)
	c.later(c.times().Terminate, func() {
		if !c.reach(id, ShuttingDown, Terminated) {
			return
		}
		c.each(id, c.abandon)
		c.later(remembered, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			i, _ := c.instances[id].now()
			c.instances[id].put(i, true, c.cfg.Lag)
		})
	})
}

// power begins a change of an instance's state. It panics if the state does not allow it, since the test is wrong.
func (c *Cloud) power(id string, from, to InstanceState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	if !ok || from != "" && i.State != from || i.State == to || i.State == Terminated {
		panic(fmt.Sprintf("cloud: instance %q is %q and cannot be %s", id, i.State, to))
	}
	i.State = to
	c.instances[id].put(i, false, c.cfg.Lag)
}

// reach completes a change of an instance's state if it is still pending.
func (c *Cloud) reach(id string, from, to InstanceState) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	if !ok || i.State != from {
		return false
	}
	i.State = to
	if to == Running {
		i.LaunchedAt = time.Now()
	}
	c.instances[id].put(i, false, c.cfg.Lag)
	return true
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
