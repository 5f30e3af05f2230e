package driver

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
)

// handle is a volume that is being worked on, or of which this node has something.
//
// Its gate is held by the one job that works on the volume. Fields marked "gate" belong to that job. The others are read by
// calls that must not wait, and are guarded by mu.
type handle struct {
	*node.Volume
	gate chan struct{}
	refs int // jobs that have the handle; guarded by Driver.mu

	usedSince time.Time     // gate: since when a use has the volume
	keptUntil time.Time     // gate: when it is released if nobody has come to use it
	called    time.Time     // gate: when the job's call came
	keep      time.Duration // gate: how long it is kept when the job ends and nobody uses it; 0 for no longer than before

	observer volume.Observer
	mu       sync.Mutex
	step     volume.Step                    // what the job does; zero if there is none
	since    time.Time                      // since when it is in that phase
	took     map[volume.Phase]time.Duration // how long the job's finished phases took
	refusal  string                         // why the cloud has last refused the step; it is tried again
	problem  error                          // why its last release is not finished
	attempts int                            // finished attempts to bring it up
	failed   error                          // how the last of them ended
	waiting  int                            // callers that wait for the gate to bring it up
	wantedAt time.Time                      // when the last of them came or went
	caller   context.Context                // of the job that brings it up; nil if none does
	changed  chan struct{}                  // closed when the job's phase changes, and so whenever this node comes to have more or less of it
	doubt    *doubt                         // whether the disk is still this node's; nil if that was not asked
	rival    string                         // the node that has last asked for it
	rivalAt  time.Time                      // when
	rivalNew bool                           // it had not asked before, and that was not logged yet
}

func newHandle(v *node.Volume, observer volume.Observer) *handle {
	return &handle{Volume: v, gate: make(chan struct{}, 1), observer: observer, changed: make(chan struct{})}
}

// Step implements volume.Progress.
func (h *handle) Step(s volume.Step) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.Words() != h.step.Words() {
		h.refusal = ""
	}
	was, began := h.step.Phase, h.since
	h.step = s
	if s.Phase == was {
		return
	}
	h.since = time.Now()
	close(h.changed)
	h.changed = make(chan struct{})
	if was == "" {
		h.took = make(map[volume.Phase]time.Duration)
		return
	}
	h.took[was] += h.since.Sub(began)
	h.observer(volume.PhaseEnded{Volume: h.Name, Phase: was, Took: h.since.Sub(began)})
}

// Refused implements volume.Progress.
func (h *handle) Refused(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusal = why.Error()
}

// durations are how long the phases of the job took, for the log: "took" from the call on, "queued" of it until the job's turn.
func (h *handle) durations() logrus.Fields {
	h.mu.Lock()
	defer h.mu.Unlock()
	total := time.Since(h.called)
	took := maps.Clone(h.took)
	took[h.step.Phase] += time.Since(h.since)
	fields, queued := logrus.Fields{"took": total.Round(time.Millisecond)}, total
	for phase, d := range took {
		fields[strings.ReplaceAll(string(phase), "-", "_")] = d.Round(time.Millisecond)
		queued -= d
	}
	fields["queued"] = queued.Round(time.Millisecond)
	return fields
}

// words say what is being done with the volume, behind what stands in its way. The caller holds mu.
func (h *handle) words() string {
	if h.refusal == "" {
		return h.step.Words()
	}
	return h.refusal + ": " + h.step.Words()
}

// unfinished is the answer to a caller whose time ran out while the work goes on.
func (h *handle) unfinished(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	words, since, advice := "busy with another call", time.Now(), "try again"
	if h.step.Phase != "" {
		words, since = h.words(), h.since
	}
	if h.step.Advice != "" {
		advice = h.step.Advice
	}
	return &volume.Error{
		Code: volume.Unfinished, Cause: &waited{fmt.Sprintf("%s (waited %s)", words, time.Since(since).Round(time.Second)), ctx.Err()},
		Advice: advice + "; blockvol keeps trying",
	}
}

// waited is a sentence for people that is also the end of a context, for programs.
type waited struct {
	words string
	err   error
}

func (w *waited) Error() string { return w.words }
func (w *waited) Unwrap() error { return w.err }

func (h *handle) attempted() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.attempts, h.failed
}

func (h *handle) attemptEnded(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.attempts++
	h.failed = err
}

func (h *handle) setProblem(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem = why
}

// want counts the callers that wait for the gate to bring the volume up, and notes when one came or went.
func (h *handle) want(change int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting += change
	h.wantedAt = time.Now()
}

// whileWanted returns a context for work that brings the volume up on behalf of a call: it ends when the call has, and nobody
// has waited for that for as long as a caller may take to come back.
func (h *handle) whileWanted(work, call context.Context) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancelCause(work)
	h.set(func() { h.caller = call })
	stop := context.AfterFunc(call, func() {
		h.want(0)
		h.waitUnwanted(work)
		cancel(errUnwanted)
	})
	return work, func() { stop(); cancel(nil); h.set(func() { h.caller = nil }) }
}

// isWanted tells whether anybody waits for the volume at this moment.
func (h *handle) isWanted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting > 0 || h.caller != nil && h.caller.Err() == nil
}

// willChange returns what is closed when this node may have come to have more or less of the volume.
func (h *handle) willChange() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.changed
}

// askedFor notes that another node wants the volume.
func (h *handle) askedFor(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rivalNew = h.rivalNew || node != h.rival || time.Since(h.rivalAt) > wantedFor
	h.rival, h.rivalAt = node, time.Now()
}

// isNewlyAsked tells, once, whether a node wants the volume that did not before.
func (h *handle) isNewlyAsked() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := h.rivalNew
	h.rivalNew = false
	return is
}

// wantedBy is the node that waits for the volume; empty if none has told so.
func (h *handle) wantedBy() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.rivalAt) > wantedFor {
		return ""
	}
	return h.rival
}

func (h *handle) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// waitUnwanted returns when nobody has waited for the volume during the last idleTTL, or with ctx.
func (h *handle) waitUnwanted(ctx context.Context) {
	for {
		h.mu.Lock()
		left := idleTTL - time.Since(h.wantedAt)
		if h.waiting > 0 {
			left = idleTTL
		}
		h.mu.Unlock()
		if left <= 0 || pause.For(ctx, left) != nil {
			return
		}
	}
}
