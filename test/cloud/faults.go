package cloud

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Fault is a way in which a call fails.
type Fault string

// The faults.
const (
	Fail        Fault = "fail"         // an error, no effect
	Hang        Fault = "hang"         // no effect, and no answer until the request's context ends
	Throttle    Fault = "throttle"     // refused by the rate limit, no effect
	LoseAnswer  Fault = "lose-answer"  // takes effect; the connection breaks without an answer
	NeverFinish Fault = "never-finish" // accepted, but the background operation never completes
	Truncate    Fault = "truncate"     // takes effect; the connection breaks after half of the answer
	CutShort    Fault = "cut-short"    // takes effect; half of the answer with a matching Content-Length
	Garbage     Fault = "garbage"      // takes effect; the answer is not of the cloud's protocol

	// No effect, and a 404 from a gateway in front of the cloud: an HTML page, JSON of its own, or empty.
	PageNotFound  Fault = "page-not-found"
	RouteNotFound Fault = "route-not-found"
	EmptyNotFound Fault = "empty-not-found"
)

// Rule selects the calls that a fault applies to.
type Rule struct {
	Action string // "" is any
	Caller string // the caller's instance ID; "" is any
	Skip   int    // number of matching calls to let pass first
	Times  int    // number of calls to apply to; 0 is all until removed
	Fault  Fault
	Code   string // for Fail: the cloud's error code; "" is an internal error
}

type rule struct {
	Rule
	left int
}

// Inject applies a fault to calls. If several rules match a call, the oldest that is not used up applies.
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

// meet returns the rule that applies to a call, if any. The caller holds the lock.
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

// FailedError is the error of a call with the fault Fail.
type FailedError struct{ Code string }

func (e *FailedError) Error() string { return fmt.Sprintf("made to fail with %q", e.Code) }

// Call describes a client's request.
type Call struct {
	Action string
	Caller string // instance ID; "" for no instance
	Bucket string // rate limit bucket; that of Action if it is "" or unlimited
	Aside  bool   // not an API call: no latency, no limit, not counted, and subject only to rules that name its action
}

// Request gives a call access to the cloud. Its reads show the state of up to Config.Lag ago.
type Request struct {
	c     *Cloud
	never bool // background operations never complete
}

// Do handles a call: it counts it, waits for the latency, applies limits and faults, and calls act.
//
// The error is that of act, ErrThrottled, a *FailedError, or the context's. After the context's error, act was called only if
// half of the latency had passed. The fault tells the simulator how to change the answer: LoseAnswer, Truncate, CutShort,
// Garbage or one of the NotFound ones.
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

// sleep waits for d, or returns an error if the context or the cloud ends first.
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
