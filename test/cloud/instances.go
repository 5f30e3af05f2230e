package cloud

import (
	"fmt"
	"maps"
	"time"
)

// Instance is a virtual machine.
type Instance struct {
	ID         string // AddInstance makes one if it is empty
	Type       string // the cloud's word
	Zone       string // "" is the default
	State      InstanceState
	Interfaces int    // network interfaces, at least one
	RootDevice string // "/dev/xvda": there is a root volume under this name, without a disk of the Backend; "" for none
	Address    string // in the private network
	LaunchedAt time.Time
	Tags       map[string]string
}

// InstanceState is where an instance is in its life.
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

// remembered is how long a terminated instance is still shown.
const remembered = time.Hour

func (i Instance) clone() Instance {
	i.Tags = maps.Clone(i.Tags)
	return i
}

// AddInstance adds an instance, running unless it says otherwise, and returns it as it is then.
func (c *Cloud) AddInstance(i Instance) Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	i = i.clone()
	if i.ID == "" {
		i.ID = c.id(AnInstance)
	}
	if _, known := c.instances[i.ID]; known {
		panic("cloud: there is an instance " + i.ID)
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

// Instance returns the truth about an instance.
func (c *Cloud) Instance(id string) (Instance, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	return i.clone(), ok
}

// Instances returns the truth about all instances, the oldest first.
func (c *Cloud) Instances() []Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listInstances(c.instances)
}

// Instances returns all instances as a read shows them.
func (r *Request) Instances() []Instance {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.c.listInstances(seen(r.c, r.c.instances))
}

func (c *Cloud) listInstances(from map[string]*history[Instance]) []Instance {
	all := live(from, func(a, b Instance) int { return byAge(a.LaunchedAt, b.LaunchedAt, a.ID, b.ID) })
	for i := range all {
		all[i] = all[i].clone()
	}
	return all
}

// SetInterfaces gives an instance so many network interfaces, which may take places of volumes.
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

// Start powers a stopped instance on. What was attached is there when it runs.
func (c *Cloud) Start(id string) {
	c.power(id, Stopped, Pending)
	c.later(c.times().Stop, func() {
		if c.reach(id, Pending, Running) {
			c.each(id, func(volume string, _ Attachment) { c.plugIn(volume, id) })
		}
	})
}

// Stop powers a running instance off. Its volumes stay attached, unless Config.LetGo; their devices are gone with its kernel.
func (c *Cloud) Stop(id string) {
	c.power(id, Running, Stopping)
	c.later(c.times().Stop, func() {
		c.each(id, func(volume string, a Attachment) {
			if c.cfg.LetGo {
				c.abandon(volume, a)
			} else {
				c.pullOut(volume, id)
			}
		})
		c.reach(id, Stopping, Stopped)
	})
}

// Terminate ends an instance for good, whatever its state. Then its volumes are detached, those with
// DeleteOnTermination deleted. It is shown for an hour more.
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

// power begins a change of an instance's state. One that cannot be is a mistake of the test.
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

// reach ends a change of an instance's state, if it is still under way.
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

// each does something with every volume that is attached to an instance.
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
	for _, id := range sortedKeys(held) {
		do(id, held[id])
	}
}
