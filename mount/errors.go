package mount

import "errors"

// The errors that callers act upon, to be matched with errors.Is. Each comes wrapped in a sentence for the operator that
// names the device and what to do. Any other error means that the call failed; what it had done by then is undone.
var (
	ErrNoDevice        = errors.New("device not found")
	ErrAmbiguousDevice = errors.New("several devices bear the same identity")
	ErrWrongDevice     = errors.New("wrong device")                    // its identity or its size is not the volume's
	ErrUnreadable      = errors.New("device cannot be read")           //
	ErrNotBlank        = errors.New("device is not blank")             // Format refuses it
	ErrBlank           = errors.New("device is blank")                 // Publish never formats
	ErrWrongFS         = errors.New("device holds something else")     // than the file system asked for
	ErrDamaged         = errors.New("file system is damaged")          // beyond what a check may repair by itself
	ErrBusy            = errors.New("in use")                          // by a mount, a process or another program
	ErrNoTool          = errors.New("program is missing")              // or the kernel's file system is
	ErrForeignLayout   = errors.New("file system is not laid out so")  // Publish with a layout that the disk does not have
	ErrOccupied        = errors.New("published directory is not free") // files or another mount are in the way
	ErrInvalid         = errors.New("not accepted")                    // options, names
)
