// Package pace keeps a process, and many of them together, within the rate limit of a cloud.
package pace

import (
	"context"
	"sync"
	"time"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
)

// Pace limits the requests of this process to one rate limit of a cloud. It delays nothing until the cloud throttles. Then one
// caller at a time sends a request, not before the time that the cloud asks for, and after a pause that doubles with each refusal
// and halves with each success. So a node with many waiting callers sends as few requests as a node with one, and many nodes
// together use all that the limit allows, and little more.
//
// The pause grows up to a fifth of the time for which the cloud has throttled. No node knows how many others there are, but the
// longer the throttling lasts, the more there must be. So all nodes together need at most a fifth more than the minimum time,
// whatever their number, and more nodes do not mean more refusals for each.
type Pace struct {
	turn chan struct{} // held by the caller that sends

	mu    sync.Mutex
	delay time.Duration // 0: not throttled
	next  time.Time     // when the next request may be sent
	since time.Time     // of the first refusal
	heard time.Time     // of the last answer to a request that was sent after the last growth of delay
	met   int           // how often delay has grown
	why   string        // the cloud's last refusal
}

const (
	leastDelay = 250 * time.Millisecond
	// The maximum of the pause is 1/shareOfTime of the time for which the cloud has throttled, but between mostAtFirst and mostDelay.
	mostAtFirst = 8 * time.Second
	mostDelay   = 5 * time.Minute
	shareOfTime = 5
)

// New returns a Pace that is not throttled.
func New() *Pace { return &Pace{turn: make(chan struct{}, 1)} }

// Wait returns when a request may be sent, or ctx.Err(). The caller sends it and always calls done once: with the cloud's refusal
// if it throttled the request, otherwise "", and with the time from now for which the cloud accepts no more requests. A time
// without a refusal means that this request was the last one that the limit allows for now.
func (p *Pace) Wait(ctx context.Context) (done func(refusal string, after time.Duration), err error) {
	sent, err := p.wait(ctx)
	if err != nil {
		return nil, err
	}
	unheard := providers.NoteAsked(ctx, time.Now())
	return func(refusal string, after time.Duration) {
		if refusal != "" {
			unheard()
		}
		sent(refusal, after)
	}, nil
}

func (p *Pace) wait(ctx context.Context) (done func(refusal string, after time.Duration), err error) {
	throttled, _, met := p.state()
	if !throttled {
		return func(refusal string, after time.Duration) { p.learn(met, refusal, after) }, ctx.Err()
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	throttled, next, met := p.state()
	if !throttled {
		<-p.turn // throttling has ended: callers need not wait for each other
		return func(refusal string, after time.Duration) { p.learn(met, refusal, after) }, ctx.Err()
	}
	if err := pause.For(ctx, max(time.Until(next), 0)); err != nil {
		<-p.turn
		return nil, err
	}
	return func(refusal string, after time.Duration) {
		p.learn(met, refusal, after)
		<-p.turn
	}, nil
}

// Why returns the cloud's last refusal, or "" while it does not throttle.
func (p *Pace) Why() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.delay == 0 {
		return ""
	}
	return p.why
}

func (p *Pace) state() (throttled bool, next time.Time, met int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay > 0, p.next, p.met
}

// learn notes the outcome of a request that was sent when met had the value sent. Concurrent requests that are refused count as one
// refusal, and the success of a request from before a refusal is ignored.
func (p *Pace) learn(sent int, refusal string, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if refusal != "" {
		p.why = refusal
	}
	if sent != p.met {
		if until := now.Add(after); after > 0 && until.After(p.next) {
			p.next = until.Add(pause.Jitter(p.delay))
		}
		return
	}
	switch {
	case refusal != "":
		if p.delay == 0 || now.Sub(p.heard) > mostAtFirst+p.heard.Sub(p.since) {
			p.since = now // the first refusal, or the first after a time in which the cloud may have served all
		}
		p.delay = min(max(2*p.delay, leastDelay), max(now.Sub(p.since)/shareOfTime, mostAtFirst), mostDelay)
		p.met++
	case after > 0:
		if p.delay == 0 {
			p.why, p.since = "its limit is used up", now
			p.met++
		}
		p.delay = max(p.delay/2, leastDelay)
	case p.delay > leastDelay:
		p.delay /= 2
	default:
		p.delay = 0
	}
	p.heard, p.next = now, now.Add(after+pause.Jitter(p.delay))
}
