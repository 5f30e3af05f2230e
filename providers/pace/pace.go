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
// caller at a time sends a request, not before the time that the cloud asks for, and after a pause that grows with each refusal.
// So a node with many waiting callers sends as few requests as a node with one.
//
// The pause grows up to a share of the time for which the cloud has throttled. No node knows how many others there are, but the
// longer the throttling lasts, the more there must be. So all nodes together need little more than the minimum time, whatever their
// number, and more nodes do not mean more refusals for each.
type Pace struct {
	rule rule
	turn chan struct{} // held by the caller that sends while the cloud throttles

	mu       sync.Mutex
	delay    time.Duration // 0: not throttled
	next     time.Time     // when the next request may be sent
	since    time.Time     // of the first refusal
	heard    time.Time     // of the last answer to a request that was sent after the last growth of delay
	met      int           // how often delay has grown
	served   bool          // that request succeeded
	why      string        // the cloud's last refusal
	window   int           // how many requests may be under way while the cloud does not throttle
	underWay int           // those that were sent while it did not
	answered chan struct{} // closed with the next answer
}

// rule is how a Pace behaves.
type rule struct {
	bucket      bool          // see NewBucket
	window      int           // the first value of Pace.window
	first       time.Duration // the first pause
	shareOfTime float64       // the maximum of the pause, of the time for which the cloud has throttled, but between mostAtFirst and mostDelay
	mostAtFirst time.Duration
}

var (
	general = rule{window: unlimited, first: 250 * time.Millisecond, shareOfTime: 0.2, mostAtFirst: 8 * time.Second}
	// A node that pauses for long loses nothing while others use the limit. So the pauses of bucket are as long as the last of them,
	// in which the limit is not used up, allow.
	bucket = rule{bucket: true, window: 2, first: time.Second, shareOfTime: 0.4, mostAtFirst: 12 * time.Second}
)

const (
	mostDelay = 5 * time.Minute
	unlimited = 1 << 30
	// After silenceAfter without an answer, the window is as at first. A request that is not answered within patience holds nobody up.
	silenceAfter = 10 * time.Second
	patience     = time.Second
)

// New returns a Pace for any limit. Its pause doubles with each refusal and halves with each success.
func New() *Pace { return newPace(general) }

// NewBucket returns a Pace for a token bucket that has room for the requests of several seconds, and that all nodes share. It sends
// a fraction of the requests that New would send in vain:
//
//   - After a time without answers it sends two requests, and more with each success. So nodes that start at one moment learn from
//     two requests of each, and not from all, that the bucket is empty. This costs a node that nobody competes with the time of one
//     request if it has up to ten to send, of two if it has more.
//   - While the cloud throttles, the next request follows a success at once. So each node that comes takes what the bucket has, and
//     the bucket fills while all pause. A refusal makes the pause twice as long if there was a success before it, otherwise four
//     times; a success halves it.
func NewBucket() *Pace { return newPace(bucket) }

func newPace(r rule) *Pace {
	return &Pace{rule: r, turn: make(chan struct{}, 1), window: r.window, answered: make(chan struct{})}
}

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
	var impatient <-chan time.Time
	for anyway := false; ; {
		done, answered := p.enter(anyway)
		switch {
		case done != nil:
			return done, ctx.Err()
		case answered == nil:
			if done, err := p.waitTurn(ctx); done != nil || err != nil {
				return done, err
			}
			continue // throttling has ended: callers need not wait for each other
		case impatient == nil:
			impatient = time.After(patience)
		}
		select {
		case <-answered:
		case <-impatient:
			anyway = true
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// enter begins a request if the cloud does not throttle, and the window has room or need not have. If the window has none, answered is
// closed with the next answer. While the cloud throttles, both are nil.
func (p *Pace) enter(anyway bool) (done func(refusal string, after time.Duration), answered <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.delay > 0 {
		return nil, nil
	}
	if p.underWay == 0 && time.Since(p.heard) > silenceAfter {
		p.window = p.rule.window
	}
	if p.underWay >= p.window && !anyway {
		return nil, p.answered
	}
	p.underWay++
	met := p.met
	return func(refusal string, after time.Duration) {
		p.learn(met, refusal, after)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.underWay--
		close(p.answered)
		p.answered = make(chan struct{})
	}, nil
}

// waitTurn is wait while the cloud throttles. It returns nothing if throttling has ended.
func (p *Pace) waitTurn(ctx context.Context) (done func(refusal string, after time.Duration), err error) {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	throttled, next, met := p.state()
	if !throttled {
		<-p.turn
		return nil, nil //nolint:nilnil // see above
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
		p.grow(now)
	case after > 0:
		if p.delay == 0 {
			p.why, p.since = "its limit is used up", now
			p.met++
		}
		p.delay = max(p.delay/2, p.rule.first)
	case p.delay > p.rule.first:
		p.delay /= 2
	case p.delay > 0:
		p.delay, p.window = 0, p.rule.window
	default:
		p.window = min(2*p.window, unlimited)
	}
	p.heard, p.next = now, now.Add(after)
	p.served = refusal == ""
	if refusal != "" || after > 0 || !p.rule.bucket {
		p.next = p.next.Add(pause.Jitter(p.delay))
	}
}

// grow makes the pause longer.
func (p *Pace) grow(now time.Time) {
	if p.delay == 0 || now.Sub(p.heard) > p.rule.mostAtFirst+p.heard.Sub(p.since) {
		p.since = now // the first refusal, or the first after a time in which the cloud may have served all
	}
	longer := 2 * p.delay
	if p.rule.bucket && !p.served {
		longer *= 2
	}
	share := time.Duration(p.rule.shareOfTime * float64(now.Sub(p.since)))
	p.delay = min(max(longer, p.rule.first), max(share, p.rule.mostAtFirst), mostDelay)
	p.met++
}
