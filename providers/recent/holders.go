package recent

import (
	"sync"
	"time"
)

// Holders remembers which attach a cloud has taken last for a volume, so that a read of a time before is known for what it is: a
// Detach that believed it would send no request, and report a volume as detached that stays attached. The zero Holders is ready.
type Holders struct{ last sync.Map }

// lag is how old an answer may be when it comes.
const lag = 10 * time.Second

type holding struct {
	node string
	at   time.Time
}

// Took notes that the node had the volume, or was given it, at this moment: the cloud has taken the attach, or said that it is
// done; or it has not answered, and may have taken it.
func (h *Holders) Took(volume, node string) { h.last.Store(volume, holding{node, time.Now()}) }

// Left notes that the cloud has taken a detach of the volume. One that was not answered is not noted: it may not have been taken.
func (h *Holders) Left(volume string) { h.last.Delete(volume) }

// Denies tells whether an answer to a question that was asked at that time, which does not show the node as the holder, may be
// believed. Otherwise it may be of a time before the attach, and is to be asked for again.
func (h *Holders) Denies(volume, node string, asked time.Time) bool {
	last, _ := h.last.Load(volume)
	took, _ := last.(holding)
	if took.node != node {
		return true
	}
	if asked.Sub(took.at) < lag {
		return false
	}
	h.last.CompareAndDelete(volume, took)
	return true
}
