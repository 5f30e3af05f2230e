package volume

import (
	"fmt"
	"strings"
	"time"
)

// Want is what a node asks another about a volume which the cloud says that one holds: to let go of it, if nothing there uses it, and
// to tell what it has of it.
type Want struct {
	From   string // the node that asks
	To     string // the node that is asked
	Volume string
	Disk   string // the cloud's id
	Serial string // of the disk's device
	// Known is the State of the last answer; empty at first. The next answer comes once the state is another one.
	Known HoldingState
}

// Holding is what a node has of a volume that another one wants.
type Holding struct {
	State   HoldingState
	By      string    // who uses it: "container 3f2a…"; empty if that is not known
	Since   time.Time // since when it is mounted there; zero if that is not known
	Message string    // what is being done with it; empty if nothing
}

// HoldingState is how far a node is from having nothing of a volume.
type HoldingState string

// The states.
const (
	HoldsNothing HoldingState = "nothing" // neither in the journal nor in the kernel
	HoldsInUse   HoldingState = "in-use"
	HoldsLeaving HoldingState = "leaving" // it is unmounted, and being detached
	HoldsBusy    HoldingState = "busy"    // it is being brought up or unmounted, or somebody waits there for it
	HoldsStray   HoldingState = "stray"   // its device is there, and the journal does not know it
)

// IsKnown tells whether it is one of the states.
func (s HoldingState) IsKnown() bool {
	switch s {
	case HoldsNothing, HoldsInUse, HoldsLeaving, HoldsBusy, HoldsStray:
		return true
	}
	return false
}

// On says what the node has of the volume, in words.
func (h Holding) On(node string) string {
	switch h.State {
	case HoldsNothing:
		return fmt.Sprintf("node %s says that it has nothing of it", node)
	case HoldsLeaving:
		return strings.TrimSuffix(fmt.Sprintf("being released by node %s: %s", node, h.Message), ": ")
	case HoldsStray:
		return fmt.Sprintf("attached to node %s, which does not know why", node)
	case HoldsBusy:
		return strings.TrimSuffix(fmt.Sprintf("node %s is not done with it: %s", node, h.Message), ": ")
	case HoldsInUse:
	}
	words := "in use on node " + node
	if h.By != "" {
		words += " by " + h.By
	}
	if !h.Since.IsZero() {
		words += fmt.Sprintf(" (since %s)", h.Since.UTC().Format("2006-01-02 15:04 MST"))
	}
	return words
}
