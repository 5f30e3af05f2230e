package providers

import "time"

// Request is one request to a cloud's API, its repetitions included, as it ended. It has no secret in it.
type Request struct {
	Cloud   string        // the cloud's name for people
	Method  string        // HTTP's
	Path    string        // without the query; for EC2 the action
	Status  int           // of the answer; 0 if there was none
	Retries int           // how often it was sent again
	Took    time.Duration // from the first time that it was sent, or waited for its turn
	Problem string        // why there was no answer; empty if there was one
}

// Observer is told of each request, from any number of goroutines. It must not wait for anything.
type Observer func(Request)
