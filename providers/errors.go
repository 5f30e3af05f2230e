package providers

import (
	"errors"
	"fmt"
)

// The errors that the driver acts upon, to be matched with errors.Is. Each provider translates its cloud's errors into
// these once, at its own boundary, and wraps them in a sentence for the operator: the cause, then what to do. Any other
// error means that the call failed and that its effect is unknown.
var (
	ErrNotFound    = errors.New("no such volume")
	ErrAmbiguous   = errors.New("several volumes have this name")
	ErrInvalid     = errors.New("not accepted")
	ErrNoSpace     = errors.New("no space or quota left")
	ErrHeld        = errors.New("volume is attached")
	ErrAttachLimit = errors.New("node holds as many volumes as it can")
	ErrBusy        = errors.New("busy")
	ErrUnavailable = errors.New("cloud cannot be reached")

	// Both end a call like any other error. Only Examiner tells them apart.
	ErrCredentials = errors.New("credentials are not accepted")
	ErrDenied      = errors.New("permission is missing")
)

// NotOurs is ErrNotFound for a volume that is there, and another cluster's or nobody's.
func NotOurs(id string) error {
	return fmt.Errorf("%w: %s is no volume of this cluster", ErrNotFound, id)
}

// Refused is what it means for a change of a volume by a node, or by none, that the cloud has refused it because of how the
// volume stands, which is this: nil if the node has the volume, or it is on its way there.
// Errors: *HeldError if another node has it; ErrBusy if it is on its way from this one, or no read shows who has it.
func (a Attachment) Refused(volume, node string, refusal error) error {
	switch {
	case a.Node == "":
		return fmt.Errorf("%w: volume %s is just being attached or detached: %w", ErrBusy, volume, refusal)
	case a.Node != node:
		return &HeldError{Volume: volume, Node: a.Node}
	case a.State == Detaching:
		return fmt.Errorf("%w: volume %s is still being detached from this node", ErrBusy, volume)
	}
	return nil
}

// HeldError is ErrHeld with the node that holds the volume.
type HeldError struct {
	Volume string // id
	Node   string // the holder, empty if the cloud does not tell
}

func (e *HeldError) Error() string {
	if e.Node == "" {
		return fmt.Sprintf("volume %s is attached to another node", e.Volume)
	}
	return fmt.Sprintf("volume %s is attached to node %s", e.Volume, e.Node)
}

// Is makes a HeldError match ErrHeld.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }
