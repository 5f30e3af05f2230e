package providers

import (
	"regexp"
	"strings"
	"time"
)

// Request is one request to a cloud's API, its repetitions included, as it ended. It has no secret in it.
type Request struct {
	Cloud     string        // the cloud's name for people
	Method    string        // HTTP's
	Path      string        // without the query; for EC2 the action
	Status    int           // of the answer; 0 if there was none
	Retries   int           // how often it was sent again
	Throttled int           // how often the cloud has answered that it is asked too much
	Took      time.Duration // from the first time that it was sent, or waited for its turn
	Problem   string        // why there was no answer; empty if there was one
}

// fixed is a part of a path that is the same whatever the request is about: a word, or the version of an API.
var fixed = regexp.MustCompile(`^([a-z][a-z_-]{0,31}|v[0-9](\.[0-9]{1,2})?(beta[0-9]?)?)$`)

// Call is what is asked for, but not about which object, so that there are few of them: "GET /v1/volumes/{id}", or EC2's action.
func (r Request) Call() string {
	if !strings.HasPrefix(r.Path, "/") {
		return r.Path
	}
	parts := strings.Split(r.Path, "/")
	for i, part := range parts[1:] {
		if part != "" && !fixed.MatchString(part) {
			parts[i+1] = "{id}"
		}
	}
	return r.Method + " " + strings.Join(parts, "/")
}

// Observer is told of each request, from any number of goroutines. It must not wait for anything.
type Observer func(Request)
