package volume

import "time"

// Observer is told of events, for a log, metrics or a command line: from any number of goroutines. It must return at once, and call
// nothing of the driver.
type Observer func(Event)

// Event is a PhaseEnded, a CallEnded, a TakenOver, a Fenced or a Found.
type Event interface{ event() }

// PhaseEnded tells how long a phase of a volume took.
type PhaseEnded struct {
	Volume string
	Phase  Phase
	Took   time.Duration
}

// CallEnded tells how a call about a volume was answered: from when it came, its wait for its turn included.
type CallEnded struct {
	Volume string
	Op     Op // not Get or List, which wait for nothing
	Took   time.Duration
	Err    error // nil for success; Unfinished: the work goes on
}

// TakenOver tells that the cloud is asked to detach a volume from a node that still holds it.
type TakenOver struct{ Volume, ID, Holder, Evidence string }

// Fenced tells that the cloud was asked to power off a node that holds a volume and answers nobody.
type Fenced struct{ Volume, ID, Holder, Evidence string }

// Found tells of something that nobody told blockvol about, and that a look at the kernel and the cloud has shown.
type Found struct {
	Volume  string
	Finding Finding
}

// Finding is what was found, for programs.
type Finding string

// The findings.
const (
	Abandoned    Finding = "abandoned"     // uses of the volume for which no container is left: they are dropped
	Stray        Finding = "stray"         // this node holds a disk that its journal does not know
	AbsentDisk   Finding = "absent-disk"   // the cloud says that this node holds a disk whose device is not here
	Unreleased   Finding = "unreleased"    // a release that failed once more
	Undetermined Finding = "undetermined"  // the kernel does not tell whether the volume is in use
	Taken        Finding = "taken"         // the disk was taken from this node while it was mounted: its file system is shut down
	DeadMount    Finding = "dead-mount"    // the mount of a volume that this node does not hold, which cannot be taken away
	NoSnapshot   Finding = "no-snapshot"   // a snapshot that is due could not be taken; it is tried again
	LateSnapshot Finding = "late-snapshot" // a snapshot that was due was taken late
	NotVisible   Finding = "not-visible"   // the engine does not see what is mounted; of no one volume
)

// Findings are all of them.
func Findings() []Finding {
	return []Finding{Abandoned, Stray, AbsentDisk, Unreleased, Undetermined, Taken, DeadMount, NoSnapshot, LateSnapshot, NotVisible}
}

func (PhaseEnded) event() {}
func (CallEnded) event()  {}
func (TakenOver) event()  {}
func (Fenced) event()     {}
func (Found) event()      {}
