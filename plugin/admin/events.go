package admin

import (
	"slices"
	"sync"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
)

// keptEvents is how many events are remembered, until the plugin ends.
const keptEvents = 1000

// Event is something that has happened on this node.
type Event struct {
	At     time.Time `json:"at"` // when it had ended
	Kind   EventKind `json:"kind"`
	Volume string    `json:"volume,omitempty"`
	What   string    `json:"what"`                   // the operation, phase or finding; of a takeover or fence, the node that held the volume
	Took   float64   `json:"took_seconds,omitempty"` // of calls, their wait for their turn included, and of phases
	Error  *Error    `json:"error,omitempty"`        // how a call failed; unfinished: the work went on
	Reason string    `json:"reason,omitempty"`       // the evidence for a takeover or fence
}

// EventKind is what an Event is about.
type EventKind string

// The kinds of events.
const (
	CallEvent     EventKind = "call"     // a call about a volume was answered
	PhaseEvent    EventKind = "phase"    // a phase of the work on a volume has ended
	TakeoverEvent EventKind = "takeover" // the cloud was asked to take a volume from a node that still held it
	FenceEvent    EventKind = "fence"    // the cloud was asked to power off a node that held a volume and answered nobody
	FindingEvent  EventKind = "finding"  // reconciliation has found something by itself
)

// Events is the answer to a call for them, the latest last.
type Events struct {
	Events []Event `json:"events"`
}

// events remembers what has happened lately.
type events struct {
	mu   sync.Mutex
	last []Event // the oldest is at next, once it is full
	next int
}

func (e *events) add(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.last) < keptEvents {
		e.last = append(e.last, event)
		return
	}
	e.last[e.next] = event
	e.next = (e.next + 1) % keptEvents
}

// of returns the events of a volume, or of all, the latest last.
func (e *events) of(name string) []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := slices.Concat(e.last[e.next:], e.last[:e.next])
	return slices.DeleteFunc(all, func(event Event) bool { return name != "" && event.Volume != name })
}

// keptFailures is how many failed calls the status shows.
const keptFailures = 10

// failures returns the calls that have failed last, the latest last: of each volume and operation one.
func (e *events) failures() []Event {
	type call struct{ volume, what string }
	seen := map[call]bool{}
	var found []Event
	for _, event := range slices.Backward(e.of("")) {
		of := call{event.Volume, event.What}
		if event.Kind == CallEvent && event.Error != nil && !seen[of] && len(found) < keptFailures {
			seen[of] = true
			found = append(found, event)
		}
	}
	slices.Reverse(found)
	return found
}

// standing returns, by volume, the call that has failed last and has not succeeded since. What was refused as invalid has changed nothing.
func (e *events) standing() map[string]Event {
	failed := map[string]Event{}
	for _, event := range e.of("") {
		switch last, has := failed[event.Volume]; {
		case event.Kind != CallEvent, event.Error != nil && event.Error.Code == volume.Invalid:
		case event.Error != nil:
			failed[event.Volume] = event
		case has && last.What == event.What:
			delete(failed, event.Volume)
		}
	}
	return failed
}

// Event is a volume.Observer.
func (s *Server) Event(event volume.Event) {
	now := time.Now().UTC()
	switch e := event.(type) {
	case volume.CallEnded:
		call := Event{At: now, Kind: CallEvent, Volume: e.Volume, What: string(e.Op), Took: e.Took.Seconds()}
		if e.Err != nil {
			call.Error = toError(e.Err, s.paths)
		}
		s.events.add(call)
	case volume.PhaseEnded:
		if e.Phase != volume.Reconciling || e.Took >= time.Second { // there is one for each volume all the time
			s.events.add(Event{At: now, Kind: PhaseEvent, Volume: e.Volume, What: string(e.Phase), Took: e.Took.Seconds()})
		}
	case volume.TakenOver:
		s.events.add(Event{At: now, Kind: TakeoverEvent, Volume: e.Volume, What: e.Holder, Reason: e.Evidence})
	case volume.Fenced:
		s.events.add(Event{At: now, Kind: FenceEvent, Volume: e.Volume, What: e.Holder, Reason: e.Evidence})
	case volume.Found:
		s.events.add(Event{At: now, Kind: FindingEvent, Volume: e.Volume, What: string(e.Finding)})
	}
}
