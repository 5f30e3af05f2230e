package mount

import "errors"

// The errors that callers act upon, to be matched with errors.Is. Each is wrapped in a sentence for the operator that names the
// device and what to do. Any other error means that the call failed. A call that fails undoes what it has done.
var (
	ErrNoDevice        = errors.New("device not found")
	ErrAmbiguousDevice = errors.New("several devices have the same serial")
	ErrWrongDevice     = errors.New("wrong device") // another identity, or smaller than the volume
	ErrUnreadable      = errors.New("device cannot be read")
	ErrNotBlank        = errors.New("device is not blank")
	ErrBlank           = errors.New("device is blank")
	ErrWrongFS         = errors.New("device has another file system")
	ErrDamaged         = errors.New("file system is damaged") // more than can be repaired without asking
	ErrBusy            = errors.New("in use")                 // by a mount, a process or another program
	ErrNoTool          = errors.New("program is missing")     // or a feature of the kernel
	ErrForeignLayout   = errors.New("file system has another layout")
	ErrOccupied        = errors.New("directory is not free") // files or another mount are in the way
	ErrNotStaged       = errors.New("volume is not mounted on this node")
	ErrInvalid         = errors.New("not accepted") // an option, a name or a path
	ErrFreezing        = errors.New("file system is not frozen in time")
	ErrThawed          = errors.New("file system was thawed too soon")
	ErrNoShutdown      = errors.New("a file system of this type cannot be shut down by the kernel of this node")
)
