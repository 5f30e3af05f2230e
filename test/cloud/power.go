package cloud

import (
	"fmt"
	"sync"
	"time"
)

// supply is the internal state of an instance's power.
type supply struct {
	turn     int  // increases with each change; the operations of earlier changes have no effect
	underway bool // a stop is pending
	gentle   bool // the pending stop waits for the guest

	switching sync.Mutex // held during calls of Machines
}

// Stop begins to stop an instance, and returns its state before. One that is stopping or stopped is left as it is, unless its stop is
// stuck (NeverFinish), or waits for the guest and this one does not. A stop that is not hard lets the guest shut down: that takes
// Times.Shutdown more. The instance's machine runs until its power is cut, at the end. Its volumes stay attached unless
// Config.DetachOnStop.
//
// Errors: ErrNoInstance; ErrState if it is pending, shutting down or terminated.
func (r *Request) Stop(id string, hard bool) (was InstanceState, err error) {
	c := r.c
	c.mu.Lock()
	i, ok := c.instances[id].now()
	if !ok {
		c.mu.Unlock()
		return "", ErrNoInstance
	}
	s := c.supplies[id]
	begin := i.State == Running || i.State == Stopping && (!s.underway || hard && s.gentle)
	if begin {
		c.setState(id, Stopping)
		s.underway, s.gentle = !r.never, !hard
	}
	turn, takes := s.turn, c.cfg.Times.Stop
	if !hard {
		takes += c.cfg.Times.Shutdown
	}
	c.mu.Unlock()
	switch {
	case begin && !r.never:
		c.later(takes, func() { c.stopped(id, turn, true) })
	case !begin && i.State != Stopping && i.State != Stopped:
		return i.State, ErrState
	}
	return i.State, nil
}

// Start begins to start an instance, and returns its state before. One that is pending or running is left as it is. Its attached
// volumes have devices when it runs.
//
// Errors: ErrNoInstance; ErrState if it is stopping, shutting down or terminated.
func (r *Request) Start(id string) (was InstanceState, err error) {
	c := r.c
	c.mu.Lock()
	i, ok := c.instances[id].now()
	if !ok {
		c.mu.Unlock()
		return "", ErrNoInstance
	}
	if i.State == Stopped {
		c.setState(id, Pending)
	}
	turn, takes := c.supplies[id].turn, c.cfg.Times.Stop
	c.mu.Unlock()
	switch {
	case i.State == Stopped && !r.never:
		c.later(takes, func() { c.started(id, turn, true) })
	case i.State != Stopped && i.State != Pending && i.State != Running:
		return i.State, ErrState
	}
	return i.State, nil
}

// HideStopping makes reads show an instance as running until it is stopped, or ends that.
func (c *Cloud) HideStopping(hide bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hides = hide
}

// Start starts a stopped instance whose machine the test has started. Its attached volumes have devices when it runs.
func (c *Cloud) Start(id string) {
	turn := c.power(id, Stopped, Pending)
	c.later(c.times().Stop, func() { c.started(id, turn, false) })
}

// Stop stops a running instance whose machine the test has switched off. Its volumes stay attached unless Config.DetachOnStop, but
// have no devices.
func (c *Cloud) Stop(id string) {
	turn := c.power(id, Running, Stopping)
	c.later(c.times().Stop, func() { c.stopped(id, turn, false) })
}

// Terminate terminates an instance in any state. Then its volumes are detached, and those with DeleteOnTermination deleted. It
// remains visible for an hour.
func (c *Cloud) Terminate(id string) {
	turn := c.power(id, "", ShuttingDown)
	c.later(c.times().Terminate, func() {
		if !c.reach(id, turn, Terminated) {
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

// stopped completes a stop if it is still pending. With cut, it cuts the machine's power.
func (c *Cloud) stopped(id string, turn int, cut bool) {
	if !c.turnOf(id, turn) {
		return
	}
	if cut && !c.switched(id, "off", Machines.PowerOff) {
		return
	}
	c.each(id, func(volume string, a Attachment) {
		if c.cfg.DetachOnStop {
			c.abandon(volume, a)
		} else {
			c.pullOut(volume, id)
		}
	})
	c.reach(id, turn, Stopped)
}

// started completes a start if it is still pending. With machine, it starts the machine.
func (c *Cloud) started(id string, turn int, machine bool) {
	if !c.turnOf(id, turn) {
		return
	}
	if machine && !c.switched(id, "on", Machines.PowerOn) {
		return
	}
	if c.reach(id, turn, Running) {
		c.each(id, func(volume string, _ Attachment) { c.plugIn(volume, id) })
	}
}

// switched switches an instance's machine, if it has one, and reports whether that did not fail.
func (c *Cloud) switched(id, word string, do func(Machines, string) error) bool {
	if c.cfg.Machines == nil {
		return true
	}
	c.mu.Lock()
	s := c.supplies[id]
	c.mu.Unlock()
	s.switching.Lock()
	defer s.switching.Unlock()
	err := do(c.cfg.Machines, id)
	if err != nil {
		c.problem("powering %s %s: %w", word, id, err)
	}
	return err == nil
}

// power begins a change of an instance's state. It panics if the state does not allow it, since the test is wrong.
func (c *Cloud) power(id string, from, to InstanceState) (turn int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	if !ok || from != "" && i.State != from || i.State == to || i.State == Terminated {
		panic(fmt.Sprintf("cloud: instance %q is %q and cannot be %s", id, i.State, to))
	}
	c.setState(id, to)
	c.supplies[id].underway, c.supplies[id].gentle = true, false
	return c.supplies[id].turn
}

// setState begins a change of an instance's state, and makes pending ones void. The caller holds the lock.
func (c *Cloud) setState(id string, to InstanceState) {
	i, _ := c.instances[id].now()
	i.State = to
	c.instances[id].put(i, false, c.cfg.Lag)
	c.supplies[id].turn++
}

// turnOf reports whether a change of an instance's state is still pending.
func (c *Cloud) turnOf(id string, turn int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.supplies[id].turn == turn
}

// reach completes a change of an instance's state if it is still pending.
func (c *Cloud) reach(id string, turn int, to InstanceState) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.instances[id].now()
	if !ok || c.supplies[id].turn != turn {
		return false
	}
	i.State = to
	if to == Running {
		i.LaunchedAt = time.Now()
	}
	c.instances[id].put(i, false, c.cfg.Lag)
	c.supplies[id].underway = false
	return true
}
