package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

const (
	// AttachTimeout is the longest that an attach may take before it is called off (EBS may stay "attaching" for good).
	AttachTimeout = 90 * time.Second
	// firstCheck is when the cloud is asked about an attach whose device has not arrived: once, and again only if it
	// answers that the attach has come to nothing.
	firstCheck = 15 * time.Second
)

// Claim is what a node says of itself when it wants a volume.
type Claim struct {
	Name     string
	Node     providers.Node
	Progress volume.Progress
	// Wanted tells whether anybody waits for the volume at this moment: no other node is asked to let go of it for nobody.
	Wanted func() bool
	// Record is called before the cloud is asked to attach the disk, so that no crash leaves a disk attached that nobody
	// remembers. The attach is ours unless the cloud says that this node holds the disk already.
	Record func(ctx context.Context, vol *providers.Volume, ours bool) error
	// CancelAttach detaches what a failed attach has left, if nothing on the node uses the disk.
	CancelAttach func(ctx context.Context, vol *providers.Volume) error
}

// attach is one call of Attach.
type attach struct {
	*Controller
	claim  Claim
	holder holderWatch
	retry  pause.Backoff
	atMost time.Duration // of the next wait; 0: no limit

	step    volume.Step
	refusal error // why the cloud has refused the step

	logged   string // what was logged last
	loggedAt time.Time

	stopAsking context.CancelFunc // ends a.holder.peer
	letGoAt    time.Time          // when the holder said that it has nothing of the volume; zero if it did not
	ending     time.Duration      // the longest that the next wait may last for the cloud to end the detach
}

// Attach makes the cloud attach the volume to the node: at once if it is free, after its holder has released it otherwise. It
// tells whether the attach has still to end, and returns a description of the volume that is the caller's own.
func (c *Controller) Attach(ctx context.Context, claim Claim) (vol *providers.Volume, attaching bool, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	a := &attach{Controller: c, claim: claim, holder: holderWatch{since: time.Now()}, retry: newBackoff()}
	if c.takeover == TakeoverFence && c.fencer != nil && c.witnesses != nil {
		a.holder.fencing = a.fence
	}
	a.begin(volume.Step{Phase: volume.WaitingForCloud, Advice: "what is mounted already is not affected"})
	for vol = c.catalog.free(a.claim.Name); ; {
		if vol == nil {
			if vol, err = c.Find(ctx, a.claim.Name); err != nil {
				return nil, false, adviseMissing(err)
			}
		}
		if vol.Zone != "" && a.claim.Node.Zone != "" && vol.Zone != a.claim.Node.Zone {
			return nil, false, volume.Fail(volume.Invalid, fmt.Sprintf("the disk is in zone %s and node %s in zone %s, where it cannot be attached", vol.Zone, a.claim.Node.ID, a.claim.Node.Zone),
				fmt.Sprintf("run the service in zone %s, or copy the volume by a snapshot", vol.Zone))
		}
		done, err := a.try(ctx, vol)
		if done || err != nil {
			a.endFence(ctx, vol)
			return vol, !vol.HeldBy(a.claim.Node.ID) || vol.Attachment.State != providers.Attached, err
		}
		a.logStep(vol)
		tried := vol
		var cause error
		if vol, cause = a.wait(ctx, vol); cause != nil {
			a.endFence(ctx, tried)
			return nil, false, &volume.Error{Code: codeOf(a.step), Cause: fmt.Errorf("%s, %w", a.words(), cause), Advice: a.step.Advice}
		}
	}
}

// try does what can be done to attach the volume as the cloud describes it. Without an error, a later try makes sense.
func (a *attach) try(ctx context.Context, vol *providers.Volume) (done bool, err error) {
	mine, detaching := vol.HeldBy(a.claim.Node.ID), a.detachingFor(vol.ID)
	switch {
	case (!vol.Held() || mine) && detaching > 0:
		// Whatever the answer says may be of a time before that detach, and the device, though it is here, about to go.
		a.begin(volume.Step{Phase: volume.Detaching})
		a.atMost = detaching
	case !vol.Held(), mine && (vol.Attachment.State == providers.Attaching || vol.Attachment.State == providers.Attached):
		// Held by this node it may be of an earlier attempt, or of the life before a crash. The answer may also be older
		// than a detach, or call attached what the machine has lost, as after a reboot: asking again is harmless.
		return a.request(ctx, vol)
	case mine && vol.Attachment.State == providers.AttachFailed:
		a.begin(volume.Step{Phase: volume.Detaching, Detail: "being detached after an attach that failed"})
		return false, a.claim.CancelAttach(ctx, vol)
	case mine:
		a.begin(volume.Step{Phase: volume.Detaching})
	default:
		leaving, err := a.takeOver(ctx, vol, &a.holder, a.begin)
		if err != nil {
			return false, err
		}
		if leaving || time.Since(a.holder.since) < providers.MaxStale/2 { // it is releasing the volume, or has done so since
			a.retry.Shorten(mostUnderWay)
		}
		a.ask(ctx, vol)
		if a.holder.mayBeFree() {
			return a.request(ctx, vol)
		}
	}
	return false, nil
}

// request asks the cloud to attach the volume.
func (a *attach) request(ctx context.Context, vol *providers.Volume) (done bool, err error) {
	mine := vol.HeldBy(a.claim.Node.ID)
	if err := a.claim.Record(ctx, vol, !mine); err != nil {
		return false, err
	}
	elsewhere := vol.Held() && !mine
	if !elsewhere {
		a.begin(volume.Step{Phase: volume.Attaching})
	}
	a.holder.tries++
	err = a.cloud.attach(ctx, vol.ID, a.claim.Node.ID)
	a.slots.forget()
	if err == nil {
		return true, nil
	}
	// What was found may have been deleted since; then the next answer is of what has the name now, if anything.
	deleted := errors.Is(err, providers.ErrNotFound) && time.Since(a.holder.since) < providers.MaxStale
	if !deleted && !errors.Is(err, providers.ErrBusy) && !errors.Is(err, providers.ErrHeld) {
		return false, adviseMissing(err)
	}
	if !elsewhere { // else that it is held is said already
		a.refusal = err
		a.claim.Progress.Refused(err)
	}
	return false, nil
}

func (a *attach) begin(s volume.Step) {
	if s != a.step {
		a.step, a.refusal = s, nil
	}
	a.claim.Progress.Step(s)
}

// words say what stands in the way, for people.
func (a *attach) words() string {
	if a.refusal == nil {
		return a.step.Words()
	}
	return fmt.Sprintf("%s: %s", a.refusal, a.step.Words())
}

// logStep logs why the volume cannot be attached yet. A refusal may name its request, so that no two read the same: those are
// logged once a minute.
func (a *attach) logStep(vol *providers.Volume) {
	words := a.words()
	if words == a.logged || a.refusal != nil && time.Since(a.loggedAt) < time.Minute {
		return
	}
	a.log.WithFields(logrus.Fields{"volume": vol.Name, "id": vol.ID, "why": words}).Info("The volume cannot be attached yet")
	a.logged = words
	if a.refusal != nil {
		a.loggedAt = time.Now()
	}
}

func codeOf(s volume.Step) volume.Code {
	if s.Phase == volume.WaitingForHolder || s.Phase == volume.TakingOver {
		return volume.Held
	}
	return volume.Busy
}

func adviseMissing(err error) error {
	if errors.Is(err, providers.ErrNotFound) {
		return volume.Advise(err, "if nobody has removed it, see the cloud's own records for who deleted its disk")
	}
	return err
}

// ErrAttachFailed is the kind of WatchAttach's errors.
var ErrAttachFailed = errors.New("the cloud could not attach the disk")

// WatchAttach returns when the attach of the volume to the node is known to have failed, or with nil at the end of ctx. It asks
// the cloud once: whatever the attach takes after that, the device tells of its end.
func (c *Controller) WatchAttach(ctx context.Context, vol *providers.Volume, node providers.Node) error {
	again := false
	for wait := firstCheck; pause.For(ctx, wait) == nil; {
		now, err := c.cloud.find(ctx, vol.Name)
		failure := fmt.Errorf("%w: it is no longer held by this node", ErrAttachFailed)
		switch {
		case errors.Is(err, providers.ErrNotFound):
			failure = fmt.Errorf("%w: it has been deleted", ErrAttachFailed)
		case err != nil: // says nothing about the attach
			continue
		case now.ID == vol.ID && now.HeldBy(node.ID) && now.Attachment.State == providers.AttachFailed:
			return fmt.Errorf("%w: %s", ErrAttachFailed, now.Attachment.Problem)
		case now.ID == vol.ID && now.HeldBy(node.ID):
			<-ctx.Done()
			return nil
		}
		// That nothing is attached is true before the attach too: an answer can be older than it.
		if again {
			return failure
		}
		again, wait = true, providers.MaxStale
	}
	return nil
}

// ExplainAttach adds to the failure of an attach what the cloud says of it.
func (c *Controller) ExplainAttach(ctx context.Context, failure error, vol *providers.Volume, node providers.Node) error {
	now, err := c.cloud.find(ctx, vol.Name)
	switch {
	case errors.Is(err, providers.ErrNotFound), err == nil && now.ID != vol.ID:
		return fmt.Errorf("%w, and the cloud says that the disk does not exist", failure)
	case err != nil:
		return failure
	case !now.HeldBy(node.ID):
		return fmt.Errorf("%w, and the cloud says that this node does not hold the disk", failure)
	case now.Attachment.Problem != "":
		return fmt.Errorf("%w, and the cloud calls the attachment %q: %s", failure, now.Attachment.State, now.Attachment.Problem)
	default:
		return fmt.Errorf("%w, and the cloud calls the attachment %q", failure, now.Attachment.State)
	}
}

// ownCopy is a description that may be changed: the provider may have given the same one to several callers.
func ownCopy(vol *providers.Volume) *providers.Volume {
	own := *vol
	own.Record = maps.Clone(vol.Record)
	return &own
}
