package rest

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	// longest is the longest pause that a single answer can ask for.
	longest = 5 * time.Minute
	// spread is the most that is added at random to a pause, so that the nodes of a fleet do not come back at the same moment.
	spread = 10 * time.Second
)

// pauseAfter is how long the cloud asks to wait before the next request; 0 if it does not.
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

// later adds up to spread to a wait, at random.
func later(wait time.Duration) time.Duration {
	if wait <= 0 {
		return 0
	}
	return wait + rand.N(min(wait/4, spread)+1)
}

// retryAfter is the header Retry-After, in seconds or as a date; 0 if there is none.
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

// sentAt is when the answer was sent by the cloud's clock, to which its other times refer. This node's clock may be wrong.
func sentAt(answer *http.Response) time.Time {
	if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
		return date
	}
	return time.Now()
}

// number reads a header of the rate limit, with or without the prefix X-; -1 if there is none.
func number(answer *http.Response, name string) int64 {
	for _, prefix := range []string{"", "X-"} {
		if n, err := strconv.ParseInt(answer.Header.Get(prefix+name), 10, 64); err == nil {
			return n
		}
	}
	return -1
}
