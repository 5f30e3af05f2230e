package managed

import (
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// holders remembers the last attach or detach of each volume that the cloud has accepted, to recognise an older answer. If a Detach
// believed an answer from before the attach, it would send no request, and call a volume detached that stays attached. If a refused
// Attach believed an answer from before the detach, it would call a volume attached that another node holds. The zero value is ready.
type holders struct {
	mu   sync.Mutex
	last map[string]holding
}

// forgotten is how long an attach or detach is remembered: longer than any answer takes.
const forgotten = time.Hour

type holding struct {
	node string
	gone bool
	at   time.Time
}

// took notes that the node holds the volume from this moment: the cloud has accepted the attach or completed it, or it has not
// answered and may have accepted it.
func (h *holders) took(volume, node string) { h.note(volume, holding{node, false, time.Now()}) }

// left notes that the cloud has accepted a detach of the volume from the node. One without an answer is not noted: it may not have
// been accepted.
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

// denies reports whether an answer to a question asked at that time, which does not show the node as the holder, can be believed.
// Otherwise it may be from before the attach, and the question must be asked again.
func (h *holders) denies(volume, node string, asked time.Time) bool {
	return !h.hides(holding{node, false, asked}, volume)
}

// confirms reports whether an answer to a question asked at that time, which shows the node as the holder, can be believed.
// Otherwise it may be from before the detach.
func (h *holders) confirms(volume, node string, asked time.Time) bool {
	return !h.hides(holding{node, true, asked}, volume)
}

// hides reports whether the last attach or detach of the volume is that one, and so recent that an answer may not show it.
func (h *holders) hides(what holding, volume string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, is := h.last[volume]
	return is && last.node == what.node && last.gone == what.gone && what.at.Sub(last.at) < providers.MaxStale
}

// refused is Attachment.Refused for the answer to a question asked at that time.
// Errors: ErrBusy also if the volume was detached from the node so recently that another node may hold it.
func (h *holders) refused(held providers.Attachment, volume, node string, asked time.Time, refusal error) error {
	err := held.Refused(volume, node, refusal)
	if err == nil && !h.confirms(volume, node, asked) {
		return fmt.Errorf("%w: volume %s was just detached from this node: %w", providers.ErrBusy, volume, refusal)
	}
	return err
}

// HasLeft reports whether d may be older than a detach from the node that the cloud has accepted.
func (p *Provider[V]) HasLeft(d Disk[V], node string) bool {
	return !p.holders.confirms(d.ID, node, d.Asked)
}
