package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// doubt is the question whether the disk of a mounted volume is still this node's.
type doubt struct {
	about   node.Mounting
	denied  bool      // the cloud has answered that it is not
	cleared time.Time // when the cloud had said that it is; zero while the question is open
}

// protect looks at what the kernel knows of the disk that the volume is mounted from. The caller holds the gate.
func (d *Driver) protect(ctx context.Context, h *handle) {
	if h.Entry().Taken {
		if !h.IsDown() { // it was cut short
			d.giveUp(ctx, h, "the journal says so")
		}
		return
	}
	m := h.Mounting()
	switch {
	case !m.Exists():
	case h.IsCutOff(ctx, m):
		d.giveUp(ctx, h, "the kernel has removed its device")
	case h.HasNewErrors():
		d.doubt(h, "the kernel meets errors on its device", suspectedEvery)
	}
}

// doubtAbsent doubts the volumes that are mounted here and are not among those that the cloud says this node holds, by an answer to a
// question that was asked at that time.
func (d *Driver) doubtAbsent(held map[string]bool, asked time.Time) {
	for _, name := range d.held() {
		h := d.known(name)
		if h == nil {
			continue
		}
		if e := h.Entry(); e != nil && !held[e.Volume] && asked.Sub(h.MountedSince()) >= providers.MaxStale {
			d.doubt(h, "the cloud does not list it among this node's disks", 0)
		}
	}
}

// doubt asks the cloud whether the disk of a volume that is mounted here is still this node's, unless it is being asked, or was that lately,
// and gives the volume up if it is not.
func (d *Driver) doubt(h *handle, why string, lately time.Duration) {
	m := h.Mounting()
	if m.Exists() && h.beginDoubt(m, lately) {
		d.tasks.Go(func() { d.settle(h, m, why) })
	}
}

// settle ends a doubt, in seconds if the cloud answers. While its answers are missing or unclear it is asked more and more seldom, and
// nothing is done.
func (d *Driver) settle(h *handle, m node.Mounting, why string) {
	defer h.endDoubt(m)
	log := h.Log().WithFields(logrus.Fields{"device": m.Device.Path, "why": why})
	denied, warned := controller.Unclear, false // what the cloud has said last that denies it
	for wait := providers.MaxStale; ; wait = min(2*wait, suspectedEvery) {
		said, words := d.whose(h)
		switch {
		case h.Mounting() != m:
			return
		case said == controller.Ours:
			h.clearDoubt(m)
			log.Info("The disk of a mounted volume was in doubt: the cloud says that this node holds it")
			return
		case said == controller.Unclear:
		case said != denied:
			denied, wait = said, providers.MaxStale // by then, every answer is of a time after this one
			h.deny(m)
			log.WithField("answer", words).Warn("The cloud says that this node does not hold a disk which is mounted here: it is asked again")
		default:
			silence := h.Silence(d.ctx, m)
			if said == controller.Elsewhere || silence != nil {
				d.giveUpSoon(h, m, evidence(why, words, silence))
				return
			}
			if !warned {
				log.WithField("answer", words).Warn("The cloud says that no node holds a disk which is mounted here, yet it can be read: the volume is left as it is")
			}
			warned = true
		}
		if pause.For(d.ctx, wait) != nil {
			return
		}
	}
}

// whose asks the cloud who holds the disk of a volume. Nothing that it says counts if this node has come to have another id.
func (d *Driver) whose(h *handle) (said controller.Whose, words string) {
	e := h.Entry()
	here, err := d.thisNode(d.ctx)
	if e == nil || err != nil || e.Node != here.ID {
		return controller.Unclear, ""
	}
	return d.controller.WhoseDisk(d.ctx, e.Name, e.Volume, here)
}

func evidence(why, words string, silence error) string {
	if silence == nil {
		return fmt.Sprintf("%s; %s, twice; its device can be read still", why, words)
	}
	return fmt.Sprintf("%s; %s, twice; its device cannot be read: %v", why, words, silence)
}

// giveUpSoon is giveUp at the volume's next turn, unless what was mounted is not mounted any more by then.
func (d *Driver) giveUpSoon(h *handle, m node.Mounting, cause string) {
	for done := false; !done; {
		d.attempt(h.Name, volume.Reconciling, func(now *handle) {
			done = true
			if now != h || h.Mounting() != m {
				return
			}
			ctx, cancel := context.WithTimeout(d.ctx, releaseTimeout)
			defer cancel()
			if held, err := h.IsHeld(ctx, m); held || err != nil { // else only the journal has uses of it
				d.giveUp(ctx, h, cause)
			}
		})
		if !done && pause.For(d.ctx, time.Second) != nil {
			return
		}
	}
}

// giveUp shuts down the file system of a volume whose disk was taken from this node. The caller holds the gate.
func (d *Driver) giveUp(ctx context.Context, h *handle, cause string) {
	again := h.Entry().Taken
	_, _ = h.Users(ctx) // for the log
	err := h.ShutDown(ctx)
	log := h.Log().WithFields(logrus.Fields{"id": h.Entry().Volume, "device": h.Device().Path, "cause": cause, "users": h.LastUsers().String()})
	switch {
	case errors.Is(err, mount.ErrNoShutdown):
		log.WithError(err).Error("A disk was taken from this node while it was mounted, and its file system cannot be shut down: stop what uses it, or restart the machine")
	case err != nil:
		log.WithError(err).Error("A disk was taken from this node while it was mounted, and its file system is not shut down yet")
	default:
		log.Warn("A disk was taken from this node while it was mounted: its file system is shut down, and what uses it gets I/O errors")
	}
	if !again {
		d.found(h.Name, volume.Taken)
	}
}

// errDenied is the answer to a Mount of a volume that the cloud says this node does not hold any more.
func errDenied() error {
	return volume.Fail(volume.Busy, "the cloud says that this node does not hold the disk, though its file system is mounted here: the cloud is asked again", "try again in half a minute")
}

// record notes a volume that this node is about to attach. If the kernel holds its file system still, the cloud may be behind, or the disk
// was elsewhere since: then the attach would give an old file system a disk that others have written to.
func (d *Driver) record(ctx context.Context, h *handle, vol *providers.Volume, here providers.Node, ours bool) error {
	if m := h.Mounting(); ours && m.Exists() {
		held, err := h.IsHeld(ctx, m)
		switch {
		case err != nil:
			return err
		case held && h.IsCutOff(ctx, m):
			d.giveUp(ctx, h, "the kernel has removed its device")
		case held:
			d.doubt(h, "it is to be attached to this node", 0)
			return errDenied()
		}
	}
	return h.Record(ctx, vol, here.ID, ours)
}

// beginDoubt tells whether to ask now.
func (h *handle) beginDoubt(m node.Mounting, lately time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b := h.doubt; b != nil && b.about == m && (b.cleared.IsZero() || time.Since(b.cleared) < lately) {
		return false
	}
	h.doubt = &doubt{about: m}
	return true
}

func (h *handle) deny(m node.Mounting) {
	h.changeDoubt(m, func(b *doubt) { b.denied = true })
}

func (h *handle) clearDoubt(m node.Mounting) {
	h.changeDoubt(m, func(b *doubt) { b.denied, b.cleared = false, time.Now() })
}

// endDoubt forgets a doubt that was not cleared.
func (h *handle) endDoubt(m node.Mounting) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt != nil && h.doubt.about == m && h.doubt.cleared.IsZero() {
		h.doubt = nil
	}
}

func (h *handle) changeDoubt(m node.Mounting, change func(*doubt)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.doubt != nil && h.doubt.about == m {
		change(h.doubt)
	}
}

// isDenied tells whether the cloud has said that this node does not hold what is mounted of the volume, and not yet the contrary.
func (h *handle) isDenied() bool {
	m := h.Mounting()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.doubt != nil && h.doubt.about == m && h.doubt.denied
}

// wasStopped tells whether this process, or the whole machine, has stood still while it slept: its own clock shows that it slept too
// long, or the clock on the wall has gone on without it. A hypervisor that stops the machine's clocks too goes unnoticed here.
func wasStopped(meant, slept, wall time.Duration) bool {
	return slept-meant > providers.MaxStale || wall-slept > providers.MaxStale
}
