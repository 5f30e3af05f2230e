package rest

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	// longest is what a cloud's word on when to ask again is believed for at once.
	longest = 5 * time.Minute
	// spread is by how much the nodes of a fleet that were told the same moment come later than it, at most.
	spread = 10 * time.Second
)

// pauseAfter is how long the cloud wants to be left alone after this answer; 0 if it does not say so.
func (c *Client) pauseAfter(answer *http.Response) time.Duration {
	var wait time.Duration
	if answer.StatusCode == http.StatusTooManyRequests {
		wait = retryAfter(answer)
	}
	if number(answer, "RateLimit-Remaining") == 0 {
		if reset := number(answer, "RateLimit-Reset"); reset > 0 {
			until := time.Unix(reset, 0).Sub(sentAt(answer))
			if limit := number(answer, "RateLimit-Limit"); c.cfg.Refills && limit > 0 {
				until /= time.Duration(limit)
			}
			wait = max(wait, min(until, longest))
		}
	}
	return later(wait)
}

// later is a wait as this node shall take it, while others that were told the same take another.
func later(wait time.Duration) time.Duration {
	if wait <= 0 {
		return 0
	}
	return wait + rand.N(min(wait/4, spread)+1)
}

// retryAfter is what Retry-After says, in seconds or as a date; 0 if nothing.
func retryAfter(answer *http.Response) time.Duration {
	text := answer.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, longest)
	}
	if date, err := http.ParseTime(text); err == nil {
		return min(max(date.Sub(sentAt(answer)), 0), longest)
	}
	return 0
}

// sentAt is when the answer was sent by the cloud's own clock, which its other times are of. This node's may be wrong.
func sentAt(answer *http.Response) time.Time {
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		return date
	}
	return time.Now()
}

// number reads a header of the limit, under any of its names; -1 if there is none.
func number(answer *http.Response, name string) int64 {
	for _, prefix := range []string{"", "X-"} {
		if n, err := strconv.ParseInt(answer.Header.Get(prefix+name), 10, 64); err == nil {
			return n
		}
	}
	return -1
}
