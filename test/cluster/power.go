package cluster

import (
	"slices"

	"github.com/blockvol/blockvol/test/cloud"
)

// machines switches machines off and on when a client of the cloud asks for it, as blockvol does to fence a node.
type machines struct{ c *Cluster }

var _ cloud.Machines = machines{}

// PowerOff cuts the power of an instance's machine. It returns when nothing of it can write to a disk.
func (m machines) PowerOff(instance string) error {
	n := m.c.instance(instance)
	m.c.mu.Lock()
	m.c.poweredOff = append(m.c.poweredOff, instance)
	m.c.mu.Unlock()
	n.cutPower()
	return nil
}

// PowerOn starts an instance's machine.
func (m machines) PowerOn(instance string) error {
	n := m.c.instance(instance)
	if n.On() {
		return nil
	}
	return n.power("")
}

// instance returns the node of an instance.
func (c *Cluster) instance(id string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.instances[id]
}

// PowerOffs returns the instances that clients of the cloud have powered off, in order.
func (c *Cluster) PowerOffs() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.poweredOff)
}
