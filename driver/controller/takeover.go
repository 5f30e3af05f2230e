package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Takeover is when a volume is taken from a node that still holds it.
type Takeover string

// The policies. Whatever the policy, a volume whose holder releases it is attached as soon as it is free.
const (
	// TakeoverNever waits for the holder.
	TakeoverNever Takeover = "never"
	// TakeoverStopped takes it if the cloud itself says that the holder is stopped or gone.
	TakeoverStopped Takeover = "stopped"
	// TakeoverFence does the same, and first has a holder powered off that the cloud calls running and that answers no node.
	TakeoverFence Takeover = "fence"
	// TakeoverAlways takes it from any holder that does not release it soon. It is the operator's word that a node which
	// Swarm has given up writes no more; if it does, data is lost.
	TakeoverAlways Takeover = "always"
)

// holderWatch remembers, over one wait for a holder, what was found out about it.
type holderWatch struct {
	since time.Time
	taken string    // the node that the volume was taken from
	at    time.Time // when
	tries int       // attaches that were asked for

	state providers.NodeState // of the holder, as the cloud said last
	asked time.Time           // when
	of    string              // which node that is
	peer  *peerWatch          // tells what the holder itself says; nil before it is asked

	// fencing goes on with having a running holder powered off, and tells where that stands; nil if no node is to be.
	fencing func(ctx context.Context, vol *providers.Volume) (step volume.Step, fencing bool)
	fence   fenceWatch
}

// mostTries is how many attaches a wait may have asked for when one is tried although another node is shown as the holder.
const mostTries = 3

// mayBeFree tells whether to try an attach although another node is shown as the holder: the answer may be older than the
// release, and the cloud itself refuses to attach what is held. A wait that lasts longer is for a node that does hold the volume.
// One that the volume was just taken from holds it until the detach ends.
func (w *holderWatch) mayBeFree() bool {
	return w.tries < mostTries && time.Since(w.since) < providers.MaxStale/2 && w.taken == ""
}

// takeOver is called again and again while another node holds the volume. It takes the volume from the holder if the
// policy allows; without an error, waiting makes sense. It tells whether a detach is under way, which takes seconds.
func (c *Controller) takeOver(ctx context.Context, vol *providers.Volume, watch *holderWatch, step func(volume.Step)) (leaving bool, err error) {
	holder := vol.Attachment.Node
	if watch.taken == holder && time.Since(watch.at) < holderGrace ||
		vol.Attachment.State == providers.Detaching && time.Since(watch.since) < holderGrace {
		step(volume.Step{Phase: volume.TakingOver, Detail: fmt.Sprintf("being detached from node %s", holder)})
		return true, nil
	}
	_, fencing := c.fences.last(holder)
	if watch.of != holder || watch.state.Life != providers.Running || fencing || time.Since(watch.since) < patience || time.Since(watch.asked) >= mostLong {
		watch.state, watch.asked = c.nodeState(ctx, holder)
		watch.of = holder
	}
	state, asked := watch.state, watch.asked
	for again := 0; again < 2 && writesNoMore(state) && time.Since(asked) > evidenceLife; again++ {
		state, asked = c.nodeState(ctx, holder)
	}
	detail := fmt.Sprintf("still attached to node %s: %s", holder, describe(state))
	if holder == "" {
		detail = fmt.Sprintf("%s: %s", volume.WaitingForHolder.Words(), describe(state))
	}
	waiting := volume.Step{Phase: volume.WaitingForHolder, Detail: detail, Advice: c.howToFree(holder, state)}
	if own, says := watch.peer.says(holder); says {
		waiting = stepOf(own, holder)
	}
	watch.state, watch.asked = state, asked
	if watch.fencing != nil && state.Life == providers.Running {
		if step, fencing := watch.fencing(ctx, vol); fencing {
			waiting = step
		}
	}
	step(waiting)

	evidence := ""
	switch {
	case c.takeover == TakeoverNever:
	case writesNoMore(state) && time.Since(asked) <= evidenceLife:
		evidence = state.Evidence
	case c.takeover == TakeoverAlways && watch.peer.inUse(holder): // it is certainly alive
	case c.takeover == TakeoverAlways && time.Since(watch.since) >= holderGrace:
		asked = time.Now() // no answer of the cloud is relied on
		evidence = fmt.Sprintf("TAKEOVER=always, and it did not release the volume within %s: %s", holderGrace, describe(state))
	}
	if evidence == "" {
		return false, nil
	}
	c.log.WithFields(logrus.Fields{"volume": vol.Name, "id": vol.ID, "holder": holder, "evidence": evidence}).Warn("Volume is taken over from the node that holds it")
	c.observer(volume.TakenOver{Volume: vol.Name, ID: vol.ID, Holder: holder, Evidence: evidence})
	// The request may wait, or be repeated, below; it is not sent when the evidence has become old.
	force, cancel := context.WithDeadline(ctx, asked.Add(forceTimeout))
	defer cancel()
	err = c.cloud.detach(force, vol.ID, holder, true)
	if errors.Is(err, providers.ErrBusy) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: the disk could not be taken from node %s (%s)", err, holder, evidence)
	}
	watch.taken, watch.at = holder, time.Now()
	return true, nil
}

const (
	// holderGrace is how long a holder that may be releasing the volume by itself is given before it is taken.
	holderGrace = 15 * time.Second
	// evidenceLife is how old the cloud's answer that a node is stopped or gone may be when the volume is taken from it.
	evidenceLife = 3 * time.Second
	// forceTimeout bounds a forced detach, from when the cloud was asked: it must not take effect when the node has come back,
	// and no machine boots in that time.
	forceTimeout = 10 * time.Second
)

// nodeState returns what the cloud says of a node, and when it was asked.
func (c *Controller) nodeState(ctx context.Context, node string) (providers.NodeState, time.Time) {
	called := time.Now()
	if node == "" {
		return providers.NodeState{Life: providers.Unclear, Evidence: "the cloud does not tell which node it is"}, called
	}
	ctx, asked := providers.WithAsked(ctx)
	state, err := c.cloud.nodeState(ctx, node)
	if err != nil {
		return providers.NodeState{Life: providers.Unclear, Evidence: err.Error()}, called
	}
	if at := asked.At(); at.After(called) {
		called = at // it had to wait for its turn
	}
	if state.Life == providers.Stopped {
		c.fences.sawOff(node)
	}
	return state, called
}

func writesNoMore(state providers.NodeState) bool {
	return state.Life == providers.Stopped || state.Life == providers.Gone
}

// howToFree is what an operator can do about a holder that does not release the volume.
func (c *Controller) howToFree(holder string, state providers.NodeState) string {
	switch {
	case c.takeover == TakeoverAlways:
		return ""
	case (c.takeover == TakeoverStopped || c.takeover == TakeoverFence) && writesNoMore(state):
		return fmt.Sprintf("it is taken over as soon as the cloud answers within %s and accepts the detach", evidenceLife)
	case writesNoMore(state):
		return "TAKEOVER=stopped would take it over"
	}
	node, remedy := "node "+holder, state.Remedy
	if holder == "" {
		node = "that node"
	}
	if state.Life == providers.Running {
		if remedy != "" {
			remedy = "; if that node is unreachable, " + remedy
		}
		return "stop its container on " + node + remedy
	}
	if remedy != "" {
		remedy += ", or "
	}
	return "if " + node + " is certainly dead, " + remedy + "set TAKEOVER=always"
}

func describe(state providers.NodeState) string {
	switch {
	case state.Evidence == "":
		return "it is " + string(state.Life)
	case state.Life == providers.Unclear:
		return "what state it is in is unclear: " + state.Evidence
	}
	return state.Evidence
}
