package volume

import "time"

// Signs are what the nodes of a cluster know of one of them that one of the others wants to power off.
type Signs struct {
	Known bool      // some node has heard of it before: that it does not answer is no matter of a firewall alone
	Last  time.Time // the last sign of life that any node which was asked has had of it; the start of this process if there was none since
	By    string    // the node that had it; empty for this one
	Left  time.Time // when it said that it was stopping on purpose; zero if it did not, or was heard of since

	Answering []string // other nodes that answer this one now
	Silent    []string // those that do not, although they have before
}
