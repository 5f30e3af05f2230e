package cloud

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Fault is a way in which a call goes wrong.
type Fault string

// The faults.
const (
	Fail        Fault = "fail"         // an error, no effect
	Hang        Fault = "hang"         // no effect, and no answer until the request's context ends
	Throttle    Fault = "throttle"     // refused as one too many, no effect
	LoseAnswer  Fault = "lose-answer"  // the effect, then the connection breaks
	NeverFinish Fault = "never-finish" // accepted, but what it starts never ends
	Truncate    Fault = "truncate"     // the effect, then half of the answer's bytes
	CutShort    Fault = "cut-short"    // the effect, then an answer that is half of what it should be, and ends as a whole one does
	Garbage     Fault = "garbage"      // the effect, then an answer that is not the protocol's

	// No effect, and a 404 of what stands before the cloud, such as a gateway: a page, JSON of its own, or nothing at all.
	PageNotFound  Fault = "page-not-found"
	RouteNotFound Fault = "route-not-found"
	EmptyNotFound Fault = "empty-not-found"
)

// Rule tells which calls meet a fault.
type Rule struct {
	Action string // "" is any
	Caller string // instance id of the caller, "" is any
	Skip   int    // let so many matching calls pass first
	Times  int    // how many meet it; 0 is all until removed
	Fault  Fault
	Code   string // for Fail: the cloud's error code; "" is an internal error
}

type rule struct {
	Rule
	left int
}

// Inject makes calls meet a fault. Of several rules that match, the oldest that still has calls to meet is taken.
func (c *Cloud) Inject(r Rule) (remove func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := &rule{r, r.Times}
	c.rules = append(c.rules, added)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rules = slices.DeleteFunc(c.rules, func(r *rule) bool { return r == added })
	}
}

// meet returns the rule whose fault a call meets, if any. The caller holds the lock.
func (c *Cloud) meet(call Call) Rule {
	for i, r := range c.rules {
		if r.Action != call.Action && (r.Action != "" || call.Aside) || r.Caller != "" && r.Caller != call.Caller {
			continue
		}
		if r.Skip > 0 {
			r.Skip--
			continue
		}
		if r.Times > 0 {
			if r.left--; r.left == 0 {
				c.rules = slices.Delete(c.rules, i, i+1)
			}
		}
		return r.Rule
	}
	return Rule{}
}

// FailedError is what a call returns that met Fail.
type FailedError struct{ Code string }

func (e *FailedError) Error() string { return fmt.Sprintf("made to fail with %q", e.Code) }

// Call is one request of a client.
type Call struct {
	Action string
	Caller string // instance id, "" if it is none
	Bucket string // whose tokens it takes; its action's if it is "" or has no limit
	Aside  bool   // not a call to the API: no latency, no limit, not counted, and met only by rules that name its action
}

// Request is what a call acts through. Its reads show what was up to Config.Lag ago.
type Request struct {
	c     *Cloud
	never bool // what it starts never ends
}

// Do carries a call: it counts it, lets time pass, and has it throttled or fail as configured; act is its effect.
//
// The error is act's, ErrThrottled, a *FailedError, or the context's if the caller gave up; then act has been done only
// if half of the latency had passed. The fault tells the front what to do to the answer: LoseAnswer, Truncate, CutShort, Garbage and the
// NotFound ones.
func (c *Cloud) Do(ctx context.Context, call Call, act func(*Request) error) (Fault, error) {
	if begin := time.Now(); c.cfg.Trace != nil && !call.Aside {
		defer func() { c.cfg.Trace(call, time.Since(begin)) }()
	}
	c.mu.Lock()
	if !call.Aside {
		c.calls[call.Action]++
	}
	met := c.meet(call)
	if !call.Aside && (met.Fault == Throttle || !c.take(call)) {
		c.throttled[call.Action]++
		met.Fault = Throttle
	}
	half := c.cfg.Latency / 2
	c.mu.Unlock()

	if call.Aside {
		half = 0
	}
	if err := c.sleep(ctx, half); err != nil {
		return "", err
	}
	var err error
	switch met.Fault {
	case Throttle:
		err = ErrThrottled
	case Fail:
		err = &FailedError{met.Code}
	case Hang:
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-c.ended.Done():
			return "", c.ended.Err()
		}
	case PageNotFound, RouteNotFound, EmptyNotFound:
	default:
		err = act(&Request{c, met.Fault == NeverFinish})
	}
	if waited := c.sleep(ctx, half); waited != nil {
		return "", waited
	}
	switch met.Fault {
	case LoseAnswer, Truncate, CutShort, Garbage, PageNotFound, RouteNotFound, EmptyNotFound:
		return met.Fault, err
	default:
		return "", err
	}
}

// sleep waits, or returns why it did not.
func (c *Cloud) sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended.Done():
		return c.ended.Err()
	}
}
