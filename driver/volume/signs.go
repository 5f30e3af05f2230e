package volume

import "time"

// Signs are what the nodes of a cluster know of one of them that one of the others wants to power off.
type Signs struct {
	Known bool      // some node has heard of it before: that it does not answer is no matter of a firewall alone
	Last  time.Time // the last sign of life that any node which was asked has had of it; the start of this process if there was none since
	By    string    // the node that had it; empty for this one
	Left  time.Time // when it said that it was stopping on purpose; zero if it did not, or went on to be heard of

	// OtherKey: it refused this node's key when it was last heard of here, or does not have it: it is alive, or another machine has its
	// address. Nothing else can be learned of it until both have a key in common.
	OtherKey bool

	// Refused: its machine is there and refuses the connection, as it does while its plugin is being started again.
	Refused bool

	Answering []string // other nodes that answer this one now
	Silent    []string // those that do not, although they have before
}
