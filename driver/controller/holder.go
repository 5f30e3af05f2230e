package controller

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Peers asks the blockvols of other nodes.
type Peers interface {
	// Ask asks the node want.To, which has these addresses, to let go of a volume if nothing there uses it. It returns what that node has
	// of it, once that is not want.Known, or after a few seconds. Errors: the node does not answer, or is not one of this cluster.
	Ask(ctx context.Context, addresses []netip.Addr, want volume.Want) (volume.Holding, error)
}

const (
	// askAgain is how soon after a question that told nothing new the holder is asked again.
	askAgain = time.Second
	// leastSilent is how soon after a question without an answer the holder is asked again; each more doubles it, up to mostSilent.
	leastSilent, mostSilent = 5 * time.Second, time.Minute
	// firstEnding is how soon an attach is tried again after the holder has let go, while the cloud ends the detach; it doubles.
	firstEnding = 150 * time.Millisecond
	// heardFor is how long an answer of the holder counts, and heardEvery how often the cloud is asked about a holder that answers.
	heardFor   = 20 * time.Second
	heardEvery = 30 * time.Second
	// mostQuick is how many answers in a row may each be followed by the next question at once.
	mostQuick = 4
)

// peerWatch asks the holder of a volume, for as long as an Attach waits for it.
type peerWatch struct {
	peers  Peers
	want   volume.Want
	wanted func() bool
	log    logrus.FieldLogger

	changed chan struct{} // has one element once there is another answer

	mu        sync.Mutex
	addresses []netip.Addr
	holding   volume.Holding
	heard     time.Time // when; zero if the last question had no answer
	used      bool      // the last answer, however old, was that the volume is in use there, or about to be
	silent    time.Time // since when questions have had no answer; zero if the last one had, or none was asked since
	// unanswered is when the first of the questions that have had no answer was asked: an answer may be waited for, and then tells nothing.
	unanswered time.Time
}

// ask begins to ask the holder itself, or goes on with it. It is asked until ctx ends.
func (a *attach) ask(ctx context.Context, vol *providers.Volume) {
	holder, state := vol.Attachment.Node, a.holder.state
	if a.peers == nil || holder == "" || a.holder.of != holder || writesNoMore(state) {
		return
	}
	if w := a.holder.peer; w != nil && w.want.To == holder {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.addresses = state.Addresses
		return
	}
	if a.stopAsking != nil {
		a.stopAsking()
	}
	ctx, a.stopAsking = context.WithCancel(ctx)
	a.letGoAt = time.Time{}
	w := &peerWatch{
		peers: a.peers, want: volume.Want{From: a.claim.Node.ID, To: holder, Volume: vol.Name, Disk: vol.ID, Serial: vol.Serial},
		wanted: a.claim.Wanted, log: a.log, changed: make(chan struct{}, 1), addresses: state.Addresses,
	}
	a.holder.peer = w
	go w.run(ctx)
}

func (w *peerWatch) run(ctx context.Context) {
	silent, quick := leastSilent, 0
	for ctx.Err() == nil {
		if !w.wanted() {
			_ = pause.For(ctx, askAgain)
			continue
		}
		w.mu.Lock()
		addresses := w.addresses
		w.mu.Unlock()
		asked := time.Now()
		asking, cancel := w.whileWanted(ctx)
		holding, err := w.peers.Ask(asking, addresses, w.want)
		unwanted := asking.Err() != nil
		cancel()
		if unwanted {
			continue
		}
		wait := askAgain - time.Since(asked) // an answer that comes late was waited for
		if err != nil {
			if silent == leastSilent {
				w.log.WithField("volume", w.want.Volume).WithError(err).Info("The node that holds the volume cannot be asked: the cloud is")
			}
			wait, silent = silent, min(2*silent, mostSilent)
			w.hear(volume.Holding{}, time.Time{}, asked)
		} else {
			quick++
			switch {
			case holding.State == w.want.Known, wait <= 0:
				quick = 0
			case quick <= mostQuick: // else it cannot make up its mind
				wait = 0
			}
			silent = leastSilent
			w.hear(holding, time.Now(), asked)
		}
		_ = pause.For(ctx, wait)
	}
}

// whileWanted returns a context that ends soon after nobody waits for the volume any more.
func (w *peerWatch) whileWanted(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for pause.For(ctx, askAgain) == nil {
			if !w.wanted() {
				cancel()
			}
		}
	}()
	return ctx, cancel
}

func (w *peerWatch) hear(holding volume.Holding, at, asked time.Time) {
	w.mu.Lock()
	w.holding, w.heard, w.want.Known = holding, at, holding.State
	switch {
	case !at.IsZero():
		w.used, w.silent = holding.State == volume.HoldsInUse || holding.State == volume.HoldsBusy, time.Time{}
	case w.silent.IsZero():
		w.silent, w.unanswered = time.Now(), asked
	}
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// says returns the holder's own last answer, if it is fresh.
func (w *peerWatch) says(holder string) (holding volume.Holding, fresh bool) {
	if w == nil || w.want.To != holder {
		return holding, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holding, !w.heard.IsZero() && time.Since(w.heard) < heardFor
}

// inUse tells whether the holder has said that the volume is in use there, and has not been silent for long since. One whose plugin is
// being restarted is silent too, and one that is not asked, since nobody waits here at this moment, says nothing new.
func (w *peerWatch) inUse(holder string) bool {
	if w == nil || w.want.To != holder {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.used && (w.silent.IsZero() || time.Since(w.silent) < heardFor)
}

// silentFor is how long the holder has not answered, if it was asked again and again and the last question had no answer; otherwise 0.
func (w *peerWatch) silentFor(holder string) time.Duration {
	if w == nil || w.want.To != holder {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.silent.IsZero() {
		return 0
	}
	return max(time.Since(w.unanswered), 1)
}

// stepOf is how a wait for a holder that answers is told.
func stepOf(holding volume.Holding, holder string) volume.Step {
	step := volume.Step{Phase: volume.WaitingForHolder, Detail: holding.On(holder)}
	switch holding.State {
	case volume.HoldsInUse:
		step.Advice = "stop its container on node " + holder
	case volume.HoldsLeaving:
		step.Phase = volume.TakingOver
	case volume.HoldsStray:
		step.Advice = "run blockvol doctor on node " + holder + ", and if nothing there uses the disk, detach it in the cloud"
	case volume.HoldsNothing, volume.HoldsBusy:
	}
	return step
}

// wait waits until it makes sense to try again, and returns what the next try is to work with: the volume as free if its holder says
// that it has nothing of it; nil to ask the cloud. Errors: the reason why ctx ended.
func (a *attach) wait(ctx context.Context, vol *providers.Volume) (*providers.Volume, error) {
	if !a.letGoAt.IsZero() && time.Since(a.letGoAt) < providers.MaxStale/2 && !vol.Held() {
		wait := min(a.next(), a.ending) // the cloud is not done with the detach
		a.ending *= 2
		return vol, waitFor(ctx, wait)
	}
	w, holder := a.holder.peer, vol.Attachment.Node
	if w == nil || w.want.To != holder {
		return nil, waitFor(ctx, a.next())
	}
	longest, begun := a.next(), time.Now()
	for {
		switch holding, answers := w.says(holder); {
		case !answers:
		case holding.State != volume.HoldsNothing:
			longest = max(longest, heardEvery)
			a.withdraw(ctx, vol)
			a.begin(stepOf(holding, holder))
			a.logStep(vol)
		case a.letGoAt.IsZero() && a.holder.taken != holder: // else the cloud has had its time to show it
			a.letGoAt, a.ending = time.Now(), firstEnding
			a.log.WithFields(logrus.Fields{"volume": vol.Name, "id": vol.ID, "holder": holder}).Info("The node that held the volume says that it has let go of it")
			free := *vol
			free.Attachment = providers.Attachment{}
			return &free, nil
		}
		timer := time.NewTimer(longest - time.Since(begun))
		select {
		case <-w.changed:
			timer.Stop()
			if _, answers := w.says(holder); answers {
				continue
			}
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		return nil, context.Cause(ctx)
	}
}

// next returns how long to wait before the next try.
func (a *attach) next() time.Duration {
	a.retry.Most = newBackoff().Most
	if waited := time.Since(a.holder.since); a.step.Phase == volume.WaitingForHolder && waited > patience {
		a.retry.Most = min(waited/8, mostLong)
	}
	wait := a.retry.Next()
	if a.atMost > 0 {
		wait, a.atMost = min(wait, a.atMost), 0
	}
	return wait
}
