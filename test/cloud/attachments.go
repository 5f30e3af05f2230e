package cloud

import (
	"errors"
	"time"
)

// plug is the internal state of a volume's disk and its connection to an instance.
type plug struct {
	gate     chan struct{} // held while working on the disk
	turn     int           // increases with each request; the operations of earlier requests have no effect
	in       bool          // the instance's kernel has the device
	underway bool          // a detach is pending
	force    bool          // the pending detach is forced
	root     bool          // the volume is an instance's root volume
	disk     bool          // the Backend has a disk for it
}

// exclusively calls do while nothing else works on the volume's disk. It does not call do if the cloud closes first.
func (c *Cloud) exclusively(volume string, do func()) {
	c.mu.Lock()
	gate := c.plugs[volume].gate
	c.mu.Unlock()
	select {
	case gate <- struct{}{}:
		defer func() { <-gate }()
		do()
	case <-c.ended.Done():
	}
}

// AttachVolume begins to attach a volume to an instance under a device name. Function allow adds the rules of one cloud: it
// gets the instance and its volumes, including those being attached or detached.
//
// Errors: ErrNoVolume, ErrNoInstance, ErrInUse, ErrZoneMismatch, those of allow, and ErrState, which is about the instance if
// the Attachment names it and else about the volume.
func (r *Request) AttachVolume(volume, instance, device string, allow func(Instance, []Volume) error) (Attachment, error) {
	c := r.c
	c.mu.Lock()
	a, turn, err := c.beginAttach(volume, instance, device, allow)
	c.mu.Unlock()
	if err == nil && !r.never {
		c.later(c.times().Attach, func() { c.attached(volume, instance, turn) })
	}
	return a, err
}

func (c *Cloud) beginAttach(volume, instance, device string, allow func(Instance, []Volume) error) (Attachment, int, error) {
	v, ok := c.volumes[volume].now()
	if !ok || v.State == Deleting || v.State == Deleted {
		return Attachment{}, 0, ErrNoVolume
	}
	i, ok := c.instances[instance].now()
	if !ok {
		return Attachment{}, 0, ErrNoInstance
	}
	switch {
	case len(v.Attachments) > 0:
		return Attachment{}, 0, ErrInUse
	case v.State != Available:
		return Attachment{}, 0, ErrState
	case i.State != Running && i.State != Stopped:
		return Attachment{Instance: instance}, 0, ErrState
	case v.Zone != i.Zone:
		return Attachment{}, 0, ErrZoneMismatch
	}
	held := list(c.volumes, current, func(v Volume) bool {
		_, attached := v.attachedTo(instance)
		return attached
	}, olderVolume)
	if err := allow(i.clone(), held); err != nil {
		return Attachment{}, 0, err
	}
	a := Attachment{instance, device, Attaching, false, time.Now()}
	c.change(volume, func(v *Volume) bool {
		v.State, v.Attachments = InUse, []Attachment{a}
		return true
	})
	p := c.plugs[volume]
	p.turn++
	p.underway, p.force = false, false
	return a, p.turn, nil
}

// attached completes an attach.
func (c *Cloud) attached(volume, instance string, turn int) {
	c.exclusively(volume, func() {
		if !c.current(volume, turn) || !c.plug(volume, instance) {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.plugs[volume].turn == turn {
			c.change(volume, func(v *Volume) bool { v.Attachments[0].State = Attached; return true })
		}
	})
}

func (c *Cloud) current(volume string, turn int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.plugs[volume].turn == turn
}

// plug gives the device to the instance's kernel, if it runs, and reports whether that did not fail. It is called in
// exclusively.
func (c *Cloud) plug(volume, instance string) bool {
	c.mu.Lock()
	p := c.plugs[volume]
	i, ok := c.instances[instance].now()
	wanted := p.disk && !p.in && ok && i.State == Running
	c.mu.Unlock()
	if !wanted {
		return true
	}
	if err := c.cfg.Backend.Attach(instance, volume); err != nil {
		c.problem("attaching %s to %s: %w", volume, instance, err)
		return false
	}
	c.mu.Lock()
	p.in = true
	c.mu.Unlock()
	return true
}

// unplug removes the device from the instance's kernel. It is called in exclusively.
func (c *Cloud) unplug(volume, instance string, force bool) error {
	c.mu.Lock()
	p := c.plugs[volume]
	in := p.in
	c.mu.Unlock()
	if !in {
		return nil
	}
	if err := c.cfg.Backend.Detach(instance, volume, force); err != nil {
		if !errors.Is(err, ErrDeviceBusy) {
			c.problem("detaching %s from %s: %w", volume, instance, err)
		}
		return err
	}
	c.mu.Lock()
	p.in = false
	c.mu.Unlock()
	return nil
}

// plugIn plugs a volume in at power-on, and pullOut removes it by force at power-off.
func (c *Cloud) plugIn(volume, instance string) {
	c.exclusively(volume, func() { c.plug(volume, instance) })
}

func (c *Cloud) pullOut(volume, instance string) {
	c.exclusively(volume, func() {
		if err := c.unplug(volume, instance, true); err != nil {
			c.problem("powering off %s with %s attached: %w", instance, volume, err)
		}
	})
}

// DetachVolume begins to detach a volume from an instance; "" is its holder. Repeating it has no effect, except that force also
// makes a pending detach forced.
//
// Errors: ErrNoVolume, ErrState if it is not attached, ErrNotAttached, ErrRoot.
func (r *Request) DetachVolume(volume, instance, device string, force bool) (Attachment, error) {
	c := r.c
	c.mu.Lock()
	a, turn, begin, err := c.beginDetach(volume, instance, device, force, r.never)
	c.mu.Unlock()
	if begin {
		c.later(c.times().Detach, func() { c.detached(volume, a.Instance, turn) })
	}
	return a, err
}

func (c *Cloud) beginDetach(volume, instance, device string, force, never bool) (a Attachment, turn int, begin bool, err error) {
	v, ok := c.volumes[volume].now()
	switch {
	case !ok || v.State == Deleting || v.State == Deleted:
		return a, 0, false, ErrNoVolume
	case len(v.Attachments) == 0:
		return a, 0, false, ErrState
	}
	a = v.Attachments[0]
	if instance != "" && a.Instance != instance || device != "" && a.Device != device {
		return a, 0, false, ErrNotAttached
	}
	p := c.plugs[volume]
	if i, _ := c.instances[a.Instance].now(); p.root && i.State != Stopped {
		return a, 0, false, ErrRoot
	}
	asked := a.State == Detaching || a.State == Busy
	if asked && (p.underway || a.State == Detaching && !force) { // pending or stuck
		p.force = p.force || force
		return a, 0, false, nil
	}
	a.State = Detaching
	c.change(volume, func(v *Volume) bool { v.Attachments[0] = a; return true })
	p.turn++
	p.underway, p.force = !never, force
	return a, p.turn, !never, nil
}

// detached completes a detach, or makes the attachment Busy if the instance still uses the device.
func (c *Cloud) detached(volume, instance string, turn int) {
	c.exclusively(volume, func() {
		for c.current(volume, turn) {
			c.mu.Lock()
			force := c.plugs[volume].force
			c.mu.Unlock()
			err := c.unplug(volume, instance, force)
			c.mu.Lock()
			p := c.plugs[volume]
			if p.turn == turn && err != nil && p.force && !force { // force was requested meanwhile
				c.mu.Unlock()
				continue
			}
			if p.turn == turn {
				p.underway = false
				c.change(volume, func(v *Volume) bool {
					if err != nil {
						v.Attachments[0].State = Busy
					} else {
						v.Left = v.Attachments[0]
						v.Left.Since = time.Now()
						v.State, v.Attachments = Available, nil
					}
					return true
				})
			}
			c.mu.Unlock()
			return
		}
	})
}

// abandon detaches a volume from a terminated instance.
func (c *Cloud) abandon(volume string, a Attachment) {
	c.mu.Lock()
	p := c.plugs[volume]
	p.turn++
	p.underway, p.force = true, true
	turn := p.turn
	c.change(volume, func(v *Volume) bool { v.Attachments[0].State = Detaching; return true })
	c.mu.Unlock()
	c.pullOut(volume, a.Instance)
	c.later(c.times().Detach, func() {
		c.detached(volume, a.Instance, turn)
		if !a.DeleteOnTermination {
			return
		}
		deleting := c.settle(volume, func(v *Volume) bool {
			free := v.State == Available
			v.State = Deleting
			return free
		})
		if deleting {
			c.destroy(volume)
		}
	})
}
