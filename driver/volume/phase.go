package volume

// Phase is what is being done with a volume, for programs: its values do not change. The empty Phase is nothing.
type Phase string

// The phases of a volume.
const (
	Creating            Phase = "creating"
	WaitingForCloud     Phase = "waiting-for-cloud"     // the cloud has not answered yet
	WaitingForHolder    Phase = "waiting-for-holder"    // another node has the disk
	TakingOver          Phase = "taking-over"           // the disk is being detached from another node
	Attaching           Phase = "attaching"             // the cloud is asked to attach the disk
	WaitingForDevice    Phase = "waiting-for-device"    // the cloud attaches it; its device is not here yet
	Formatting          Phase = "formatting"            //
	Checking            Phase = "checking"              // the file system is checked
	Mounting            Phase = "mounting"              // the file system is mounted and grown
	Unmounting          Phase = "unmounting"            //
	WaitingForProcesses Phase = "waiting-for-processes" // a process of this node uses the file system
	Detaching           Phase = "detaching"             // the disk is being detached from this node
	Releasing           Phase = "releasing"             // its last use has ended; the release is tried again
	Removing            Phase = "removing"              //
	Reconciling         Phase = "reconciling"           // what is here is compared with what should be
	Modifying           Phase = "modifying"             // the cloud changes the disk
	WaitingForSize      Phase = "waiting-for-size"      // the disk has its new size; the device does not show it yet
	Growing             Phase = "growing"               // the file system grows into its device
	TakingSnapshot      Phase = "taking-snapshot"       // the cloud is asked for a snapshot
	WaitingForSnapshot  Phase = "waiting-for-snapshot"  // the cloud copies; the volume can be used
	Restoring           Phase = "restoring"             // a disk is made from a snapshot
)

var phaseWords = map[Phase]string{
	WaitingForCloud:     "the cloud has not answered yet",
	WaitingForHolder:    "still attached to another node",
	TakingOver:          "being detached from another node",
	Attaching:           "being attached",
	WaitingForDevice:    "being attached: waiting for the device",
	Checking:            "being checked",
	WaitingForProcesses: "still used by a process of this node",
	Detaching:           "being detached from this node",
	Reconciling:         "being looked at",
	WaitingForSize:      "waiting for the device to show the new size",
	TakingSnapshot:      "a snapshot is being taken",
	WaitingForSnapshot:  "waiting for the cloud to complete the snapshot",
}

// Words are the phase for people.
func (p Phase) Words() string {
	if words, special := phaseWords[p]; special {
		return words
	}
	return "being " + map[Phase]string{Creating: "created", Formatting: "formatted", Mounting: "mounted", Releasing: "released", Growing: "grown", Modifying: "changed", Unmounting: "unmounted", Removing: "removed", Restoring: "restored"}[p]
}

// Step is where work on a volume stands.
type Step struct {
	Phase  Phase
	Detail string // for people, in place of the phase's own words: which node is waited for, and why
	Advice string // what the operator can do about it
}

// Words are the step for people.
func (s Step) Words() string {
	if s.Detail != "" {
		return s.Detail
	}
	return s.Phase.Words()
}

// Progress is told where work on a volume stands.
type Progress interface {
	// Step begins a step. The same step again changes nothing.
	Step(Step)
	// Refused tells why the cloud has refused the step for now; it is tried again.
	Refused(error)
}
