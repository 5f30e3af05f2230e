// Package pace keeps a process, and a fleet of them, from asking a cloud more than it allows.
package pace

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// Pace spaces the requests of this process against one limit of a cloud. As long as the limit is not met it is in nobody's
// way. After that one caller at a time tries, not before the cloud wants it and after a pause that doubles with each refusal
// and halves with each success: so however many volumes a node wants, it asks like one, and a fleet of nodes takes all that
// the limit gives and little more.
//
// The pause may become a fifth of the time for which the cloud has throttled. No node knows how many others there are; but the
// longer it has lasted, the more of them there must be, and the less it matters if a node comes late at the end. So a fleet ends
// within a fifth of the least time whatever its size, and is not refused more and more often the larger it is.
type Pace struct {
	turn chan struct{} // held by the caller that tries

	mu    sync.Mutex
	delay time.Duration // 0: not throttled
	next  time.Time     // when the next request may be sent
	since time.Time     // of the first refusal
	heard time.Time     // of the last answer to a request that was sent since
	met   int           // how often the delay has grown
	why   string        // the cloud's last word on it
}

const (
	leastDelay = 250 * time.Millisecond
	// The pause grows up to shareOfTime of the time for which the cloud has throttled, but at least up to mostAtFirst, and at most
	// up to mostDelay.
	mostAtFirst = 8 * time.Second
	mostDelay   = 5 * time.Minute
	shareOfTime = 5
)

// New makes a Pace that nothing is known of yet.
func New() *Pace { return &Pace{turn: make(chan struct{}, 1)} }

// Wait returns when a request may be sent, or ctx.Err(). The caller sends it and then calls done, in any case and once: with
// what the cloud said if it refused because it was asked too much, and with how long from now it wants to be left alone. Such
// a time without a refusal says that this was the last request for now.
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
		<-p.turn // it is over: nobody waits for another's answer
		return func(refusal string, after time.Duration) { p.learn(met, refusal, after) }, ctx.Err()
	}
	if err := Pause(ctx, max(time.Until(next), 0)); err != nil {
		<-p.turn
		return nil, err
	}
	return func(refusal string, after time.Duration) {
		p.learn(met, refusal, after)
		<-p.turn
	}, nil
}

// Why is the cloud's last refusal, empty while it does not throttle.
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

// learn takes an outcome of a request that was sent when the limit had been met so many times. Those that were on their way
// together when it was count as one, and the success of one from before says nothing.
func (p *Pace) learn(sent int, refusal string, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if refusal != "" {
		p.why = refusal
	}
	if sent != p.met {
		if until := now.Add(after); after > 0 && until.After(p.next) {
			p.next = until.Add(Jitter(p.delay))
		}
		return
	}
	switch {
	case refusal != "":
		if p.delay == 0 || now.Sub(p.heard) > mostAtFirst+p.heard.Sub(p.since) {
			p.since = now // the first, or the first after a silence in which the cloud may have had enough for all
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
	p.heard, p.next = now, now.Add(after+Jitter(p.delay))
}

// Jitter is between half of d and d, so that nodes do not ask in step.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// Pause waits, or returns ctx.Err() as soon as ctx ends.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Backoff spaces the questions about something that a cloud has to finish: 250 ms at first, doubling up to Most, with jitter.
type Backoff struct {
	Most time.Duration
	last time.Duration
}

// Wait waits once more, or returns ctx.Err() as soon as ctx ends.
func (b *Backoff) Wait(ctx context.Context) error {
	b.last = min(max(2*b.last, leastDelay), b.Most)
	return Pause(ctx, Jitter(b.last))
}
