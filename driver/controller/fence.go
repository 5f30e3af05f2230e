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

// Fencing: a holder that answers nobody is powered off by the cloud, and once the cloud says that it is off, the volume is taken over
// as with TakeoverStopped. What must hold before that, in the order in which it is looked at:
//
//  1. The cloud has just said that it runs. (So this node reaches the cloud.)
//  2. It has not answered this node, which asked again and again, for fenceGrace.
//  3. It has been heard of before, and nobody who answers this node has heard of it for fenceGrace.
//  4. It has not said that it was stopping, in the last leavingGrace; and if its machine refuses connections, so that only its plugin is
//     away, it has been silent for as long.
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
	// rememberClaims is how long one is known after it was seen first.
	rememberClaims = 7 * 24 * time.Hour
	// witnessEvery is how often the other nodes are asked about the holder.
	witnessEvery = 5 * time.Second
	// offAgain is how soon a power-off that the cloud has not carried out, or has refused, is asked for again.
	offAgain = time.Minute
	// offBusy is the same if the cloud is busy with something else of the node.
	offBusy = 3 * time.Second
	// evidenceFor is how long what the others have told counts, from when they were asked.
	evidenceFor = 20 * time.Second
	// bootGrace is how long a node is given that may be starting.
	bootGrace = 3 * time.Minute
)

// Witnesses know the other nodes of the cluster.
type Witnesses interface {
	// Signs asks a node whether it is there, and all others what they know of it.
	Signs(ctx context.Context, node string) volume.Signs
	// Forget is told that the cloud says that a node is gone, and Started that it was asked to start one.
	Forget(node string)
	Started(node string)
}

// fenceWatch is what one wait for a holder has done to have it powered off.
type fenceWatch struct {
	claim   string    // what was written into the volume's Record; empty if nothing
	first   time.Time // when the first claim on this holder was written
	claimed time.Time // when the last was
	asked   time.Time // when the other nodes were asked, who did not object
	looked  time.Time // when it was last looked at whether the holder may be powered off
	why     string    // why it was not to be; empty if it was
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
	anew := f.claim == "" || time.Since(f.claimed) >= offAgain // for it to count while it is carried through slowly
	left := claimAfter - silent
	if !anew {
		left = max(fenceGrace-silent, providers.MaxStale-time.Since(f.claimed))
	}
	switch {
	case !a.claim.Wanted():
		return a.waiting(holder), true
	case left > 0:
		return a.notYet(holder, left), true
	case time.Since(f.looked) < witnessEvery:
		return a.notFenced(holder, f.why), true
	case anew:
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
	return a.waiting(holder)
}

func (a *attach) waiting(holder string) volume.Step {
	if last, _ := a.fences.last(holder); a.holder.fence.claim != "" && !last.at.Before(a.holder.fence.first) && last.refusal == nil {
		return a.stepOfFence(holder, last)
	}
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
	if why := a.aboutToBeFenced(ctx, vol); why != "" {
		return why
	}
	f.asked = time.Now() // last, since it becomes old soonest
	if why := a.witnessesObject(ctx, holder, fenceGrace); why != "" {
		a.withdraw(ctx, vol)
		return why
	}
	return ""
}

// witnessesObject asks the other nodes about the holder. It returns why it may be alive, or this node be the one that is cut off, or nothing.
func (a *attach) witnessesObject(ctx context.Context, holder string, grace time.Duration) string {
	signs := a.witnesses.Signs(ctx, holder)
	switch ago := time.Since(signs.Last).Round(time.Second); {
	case !signs.Known:
		return "no node has heard of it before, so that its port may be closed"
	case signs.OtherKey:
		return "it has another key than this node, and may be alive; see docs/peers.md"
	case signs.Refused && a.holder.peer.silentFor(holder) < leavingGrace:
		return fmt.Sprintf("its machine answers but its plugin does not, and is given %s to start", leavingGrace)
	case !signs.Last.After(a.begun) && time.Since(a.begun) < bootGrace:
		return "this node has just started, and it may be starting, too"
	case time.Since(a.fences.lastOff(holder)) < bootGrace:
		return "it may be starting: the cloud called it stopped just before"
	case ago < grace && signs.By != "":
		return fmt.Sprintf("node %s heard of it %s ago", signs.By, ago)
	case ago < grace:
		return fmt.Sprintf("it was heard of %s ago", ago)
	case time.Since(signs.Left) < leavingGrace:
		return fmt.Sprintf("it stopped or was started on purpose %s ago", time.Since(signs.Left).Round(time.Second))
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
	holder, f := vol.Attachment.Node, &a.holder.fence
	silent := a.holder.peer.silentFor(holder)
	if silent == 0 || time.Since(f.asked) >= evidenceFor {
		return a.waiting(holder) // it was long ago that nobody objected
	}
	if a.fences.begin(holder) {
		evidence := fmt.Sprintf("it has answered nobody for %s", silent.Round(time.Second))
		log := a.log.WithFields(logrus.Fields{"volume": vol.Name, "id": vol.ID, "holder": holder})
		off, cancel := context.WithDeadline(ctx, f.asked.Add(evidenceFor))
		defer cancel()
		err := a.fencer.PowerOff(off, holder)
		if errors.Is(err, providers.ErrNotFound) {
			err = nil // the cloud says more when it is asked about the node
		}
		if err != nil {
			log.WithField("evidence", evidence).WithError(err).Error("The node that holds the volume could not be powered off")
		} else {
			log.WithField("evidence", evidence).Warn("The node that holds the volume is powered off")
		}
		if a.fences.end(holder, err) {
			a.observer(volume.Fenced{Volume: vol.Name, ID: vol.ID, Holder: holder, Evidence: evidence})
		}
	}
	last, _ := a.fences.last(holder)
	return a.stepOfFence(holder, last)
}

// endFence ends with the wait for a holder. A claim that has come to nothing is withdrawn. Of a node that the cloud was asked to
// power off, and then called stopped, it is recorded that it is off, whatever the answer to the request was; it is started again, if
// it is to be.
func (a *attach) endFence(ctx context.Context, vol *providers.Volume) {
	claim, first := a.holder.fence.claim, a.holder.fence.first
	if claim == "" {
		return
	}
	holder, _ := claimOf(claim)
	last, _ := a.fences.last(holder)
	off := a.fences.lastOff(holder).After(last.at)
	if last.at.Before(first) || last.refusal != nil && !off {
		a.withdraw(ctx, vol)
		return
	}
	a.holder.fence.claim = ""
	if off {
		vol.Record[volume.KeyFence] = claim + wasOff // for those who read it before the cloud has it
	}
	go func() {
		if off {
			a.record(a.life, vol.Name, claim, wasOff)
		}
		if a.reboot {
			a.startAgain(a.life, vol.Name, holder, claim)
		}
	}()
}
