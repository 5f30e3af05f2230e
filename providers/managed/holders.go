package managed

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// holders remembers which attach or detach a cloud has taken last for a volume, so that a read of a time before is known for what
// it is. A Detach that believed it would send no request, and report a volume as detached that stays attached; an Attach that was
// refused would report a volume as attached that another node has by now. The zero holders is ready.
type holders struct {
	mu   sync.Mutex
	last map[string]holding
}

// forgotten is after how long what was done with a volume says nothing any more: longer than any answer takes.
const forgotten = time.Hour

type holding struct {
	node string
	gone bool
	at   time.Time
}

// took notes that the node had the volume, or was given it, at this moment: the cloud has taken the attach, or said that it is
// done; or it has not answered, and may have taken it.
func (h *holders) took(volume, node string) { h.note(volume, holding{node, false, time.Now()}) }

// left notes that the cloud has taken a detach of the volume from the node. One that was not answered is not noted: it may not
// have been taken.
func (h *holders) left(volume, node string) { h.note(volume, holding{node, true, time.Now()}) }

func (h *holders) note(volume string, last holding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		h.last = make(map[string]holding)
	}
	maps.DeleteFunc(h.last, func(_ string, l holding) bool { return time.Since(l.at) > forgotten })
	h.last[volume] = last
}

// denies tells whether an answer to a question that was asked at that time, which does not show the node as the holder, may be
// believed. Otherwise it may be of a time before the attach, and is to be asked for again.
func (h *holders) denies(volume, node string, asked time.Time) bool {
	return !h.hides(holding{node, false, asked}, volume)
}

// confirms tells whether an answer to a question that was asked at that time, which shows the node as the holder, may be believed.
// Otherwise it may be of a time before the detach.
func (h *holders) confirms(volume, node string, asked time.Time) bool {
	return !h.hides(holding{node, true, asked}, volume)
}

// hides tells whether what the node did last with the volume is that, and too late for an answer to be sure to show it.
func (h *holders) hides(what holding, volume string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, is := h.last[volume]
	return is && last.node == what.node && last.gone == what.gone && what.at.Sub(last.at) < Lag
}

// refused is Attachment.Refused for a holder that was asked for at that time.
// Errors: ErrBusy also if the volume was detached from the node so lately that another may have it.
func (h *holders) refused(held providers.Attachment, volume, node string, asked time.Time, refusal error) error {
	err := held.Refused(volume, node, refusal)
	if err == nil && !h.confirms(volume, node, asked) {
		return fmt.Errorf("%w: volume %s was just detached from this node: %w", providers.ErrBusy, volume, refusal)
	}
	return err
}

// HasLeft tells whether the answer may be older than a detach from the node, which the cloud has taken since.
func (p *Provider[V]) HasLeft(d Disk[V], node string) bool {
	return !p.holders.confirms(d.ID, node, d.Asked)
}
