package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Fencing: a holder that answers nobody is powered off by the cloud, and once the cloud says that it is off, the volume is taken over
// as with TakeoverStopped. What must hold before that, in the order in which it is looked at:
//
//  1. The cloud has just said that it runs. (So this node reaches the cloud.)
//  2. It has not answered this node, which asked again and again, for fenceGrace.
//  3. It has been heard of before, and nobody who answers this node has heard of it for fenceGrace.
//  4. It has not said that it was stopping, in the last leavingGrace.
//  5. This node reaches the larger part of the nodes that it knew and that the cloud does not call stopped or gone, itself and the holder
//     counted. Where there are but the two, none is the larger part, and the next point decides.
//  6. Nobody is about to power off this node. Each claims the volume for it first, in the volume's Record in the cloud, and looks whether one
//     that this node holds is claimed so, when all claims before its own must be shown (providers.MaxStale). So of two nodes that are about to
//     power off each other at least one sees the other's claim. The one with the lesser id goes on when the other has
//     withdrawn; the other withdraws.
const (
	fenceGrace   = 20 * time.Second
	leavingGrace = 2 * time.Minute
	// claimAfter is how long a holder must have been silent for its volume to be claimed: so that the claim costs no time.
	claimAfter = fenceGrace - providers.MaxStale
	// claimLife is how long a claim that does not change counts. Whoever made it has died, or is powered off.
	claimLife = 2 * time.Minute
	// witnessEvery is how often the other nodes are asked about the holder.
	witnessEvery = 5 * time.Second
	// offAgain is how soon a power-off that the cloud has not carried out, or has refused, is asked for again.
	offAgain = time.Minute
)

// Witnesses know the other nodes of the cluster.
type Witnesses interface {
	// Signs asks a node whether it is there, and all others what they know of it.
	Signs(ctx context.Context, node string) volume.Signs
	// Forget is told that the cloud says that a node is gone.
	Forget(node string)
}

// fences are the nodes that this one has had powered off, or was refused that: several volumes may wait for one.
type fences struct {
	mu       sync.Mutex
	asked    map[string]fenced // by node
	restarts map[string]bool   // nodes that are about to be started again
}

type fenced struct {
	at      time.Time // of the last request
	told    time.Time // when the observer was told
	refusal error
}

// last is what became of the last request for the node, if it was not long ago.
func (f *fences) last(node string) (last fenced, lately bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last = f.asked[node]
	return last, time.Since(last.at) < offAgain
}

// begin notes a request for the node, unless there was one lately.
func (f *fences) begin(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.asked[node]
	if time.Since(last.at) < offAgain {
		return false
	}
	last.at, last.refusal = time.Now(), nil
	f.asked[node] = last
	return true
}

// end notes what became of the request. It tells whether that is news to the observer.
func (f *fences) end(node string, refusal error) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last := f.asked[node]
	last.refusal = refusal
	if news = refusal == nil && time.Since(last.told) > 10*offAgain; news {
		last.told = time.Now()
	}
	f.asked[node] = last
	return news
}

// starting tells whether nothing else is about to start the node again.
func (f *fences) starting(node string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.restarts[node]
	f.restarts[node] = true
	return !was
}

func (f *fences) started(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.restarts, node)
}

// fenceWatch is what one wait for a holder has done to have it powered off.
type fenceWatch struct {
	claim   string               // what was written into the volume's Record; empty if nothing
	claimed time.Time            // when
	others  map[string]time.Time // claims by other nodes: when each was seen first
	looked  time.Time            // when it was last looked at whether the holder may be powered off
	why     string               // why it was not to be; empty if it was
}

// fence goes on with having the holder powered off, as far as that can be done at this moment, and tells where that stands. The
// holder is one that the cloud calls running.
func (a *attach) fence(ctx context.Context, vol *providers.Volume) (step volume.Step, fencing bool) {
	holder, f := vol.Attachment.Node, &a.holder.fence
	silent := a.holder.peer.silentFor(holder)
	if of, _ := claimOf(f.claim); silent == 0 || of != holder {
		a.withdraw(ctx, vol)
	}
	if silent == 0 {
		return step, false
	}
	if last, lately := a.fences.last(holder); lately {
		return a.stepOfFence(holder, last), true
	}
	left := claimAfter - silent
	if f.claim != "" {
		left = max(fenceGrace-silent, providers.MaxStale-time.Since(f.claimed))
	}
	switch {
	case !a.claim.Wanted():
		return a.notYet(holder, askAgain), true
	case left > 0:
		return a.notYet(holder, left), true
	case time.Since(f.looked) < witnessEvery:
		return a.notFenced(holder, f.why), true
	case f.claim == "":
		if f.why = a.makeClaim(ctx, vol); f.why == "" {
			return a.notYet(holder, providers.MaxStale), true
		}
	default:
		if f.why = a.mayNotFence(ctx, vol); f.why == "" {
			return a.powerOff(ctx, vol), true
		}
	}
	f.looked = time.Now()
	return a.notFenced(holder, f.why), true
}

// notYet is the step while the holder's silence is too short, and has the next try made in time.
func (a *attach) notYet(holder string, left time.Duration) volume.Step {
	a.atMost = max(left, 0) + time.Millisecond
	return volume.Step{
		Phase:  volume.WaitingForHolder,
		Detail: fmt.Sprintf("still attached to node %s, which does not answer: it is powered off if nobody hears of it for %s", holder, fenceGrace),
		Advice: a.howToFree(holder, a.holder.state),
	}
}

func (a *attach) notFenced(holder, why string) volume.Step {
	return volume.Step{
		Phase:  volume.WaitingForHolder,
		Detail: fmt.Sprintf("still attached to node %s, which does not answer and is not powered off: %s", holder, why),
		Advice: a.howToFree(holder, a.holder.state),
	}
}

// stepOfFence is the step once the cloud was asked.
func (a *attach) stepOfFence(holder string, last fenced) volume.Step {
	if last.refusal != nil {
		return a.notFenced(holder, last.refusal.Error())
	}
	a.retry.Shorten(mostUnderWay)
	return volume.Step{Phase: volume.TakingOver, Detail: fmt.Sprintf("node %s, which answered nobody, is being powered off", holder)}
}

// mayNotFence looks anew at all that must hold before the holder is powered off. It returns why it is not, or nothing.
func (a *attach) mayNotFence(ctx context.Context, vol *providers.Volume) string {
	holder, f := vol.Attachment.Node, &a.holder.fence
	state, asked := a.nodeState(ctx, holder)
	if a.holder.state, a.holder.asked = state, asked; state.Life != providers.Running {
		return describe(state)
	}
	if why := a.witnessesObject(ctx, holder, fenceGrace); why != "" {
		a.withdraw(ctx, vol)
		return why
	}
	now, err := a.cloud.find(ctx, vol.Name)
	switch {
	case err != nil:
		return err.Error()
	case now.ID != vol.ID, !now.HeldBy(holder):
		return "it does not hold the volume any more"
	case now.Record[volume.KeyFence] != f.claim:
		f.claim = "" // the other one has it now
		return "another node is about to do that"
	}
	return a.aboutToBeFenced(ctx, vol)
}

// witnessesObject asks the other nodes about the holder. It returns why it may be alive, or this node be the one that is cut off, or nothing.
func (a *attach) witnessesObject(ctx context.Context, holder string, grace time.Duration) string {
	signs := a.witnesses.Signs(ctx, holder)
	switch ago := time.Since(signs.Last).Round(time.Second); {
	case !signs.Known:
		return "no node has heard of it before, so that its port may be closed"
	case ago < grace && signs.By != "":
		return fmt.Sprintf("node %s heard of it %s ago", signs.By, ago)
	case ago < grace:
		return fmt.Sprintf("it was heard of %s ago", ago)
	case time.Since(signs.Left) < leavingGrace:
		return fmt.Sprintf("it said %s ago that it was stopping", time.Since(signs.Left).Round(time.Second))
	}
	return a.inTheMinority(ctx, signs)
}

// inTheMinority returns why this node may be the one that is cut off, or nothing.
func (a *attach) inTheMinority(ctx context.Context, signs volume.Signs) string {
	const most = 32 // nodes that the cloud is asked about
	silent := 0
	for i, node := range signs.Silent {
		if i < most {
			switch state, _ := a.nodeState(ctx, node); state.Life {
			case providers.Gone:
				a.witnesses.Forget(node)
				continue
			case providers.Stopped:
				continue
			case providers.Running, providers.Unclear:
			}
		}
		silent++
	}
	answering := len(signs.Answering)
	if all := answering + silent + 2; all > 2 && 2*(answering+1) <= all {
		return fmt.Sprintf("%d of the %d other nodes answer this one, which may itself be the one that is cut off", answering, answering+silent+1)
	}
	return ""
}

// powerOff has the cloud power off the holder.
func (a *attach) powerOff(ctx context.Context, vol *providers.Volume) volume.Step {
	holder := vol.Attachment.Node
	if a.fences.begin(holder) {
		evidence := fmt.Sprintf("it has answered nobody for %s", a.holder.peer.silentFor(holder).Round(time.Second))
		log := a.log.WithFields(logrus.Fields{"volume": vol.Name, "id": vol.ID, "holder": holder})
		log.WithField("evidence", evidence).Warn("The node that holds the volume is powered off")
		off, cancel := context.WithTimeout(ctx, forceTimeout)
		defer cancel()
		err := a.fencer.PowerOff(off, holder)
		if errors.Is(err, providers.ErrNotFound) {
			err = nil // the cloud says more when it is asked about the node
		}
		if err != nil {
			log.WithError(err).Error("The node that holds the volume could not be powered off")
		}
		if a.fences.end(holder, err) {
			a.observer(volume.Fenced{Volume: vol.Name, ID: vol.ID, Holder: holder, Evidence: evidence})
		}
	}
	last, _ := a.fences.last(holder)
	return a.stepOfFence(holder, last)
}

// endFence ends with the wait for a holder: a claim that has come to nothing is withdrawn. After one that was carried through the
// node is started again, if it is to be.
func (a *attach) endFence(ctx context.Context, vol *providers.Volume) {
	claim := a.holder.fence.claim
	if claim == "" {
		return
	}
	holder, _ := claimOf(claim)
	if last, lately := a.fences.last(holder); !lately || last.refusal != nil {
		a.withdraw(ctx, vol)
		return
	}
	a.holder.fence.claim = ""
	vol.Record[volume.KeyFence] = claim + wasOff // for those who read it before the cloud has it
	go func() {
		a.record(a.life, vol.Name, claim, wasOff)
		if a.reboot {
			a.startAgain(a.life, vol.Name, holder, claim)
		}
	}()
}
