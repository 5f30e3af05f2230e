package controller

import (
	"context"
	"fmt"

	"github.com/blockvol/blockvol/providers"
)

// Whose is what an answer of the cloud says of who holds a disk.
type Whose int

// What an answer may say.
const (
	Unclear   Whose = iota // nothing: it is missing, or ambiguous
	Ours                   // this node holds it, on its way in or out included
	Elsewhere              // another node does
	Nobody                 // no node does, or one that an attach has failed to
)

// WhoseDisk asks the cloud who holds a disk, as it was within providers.MaxStale before the question. It says that in words, too.
func (c *Controller) WhoseDisk(ctx context.Context, name, id string, node providers.Node) (said Whose, words string) {
	vol, err := c.Find(ctx, name)
	switch {
	case err != nil, vol.ID != id:
		return Unclear, "" // removed, forgotten or replaced: that does not say who has the disk
	case vol.HeldBy(node.ID):
		return Ours, "the cloud says that this node holds it"
	case !vol.Held():
		return Nobody, "the cloud says that no node holds it"
	case vol.Attachment.Node == "":
		return Unclear, ""
	case vol.Attachment.State == providers.AttachFailed:
		return Nobody, fmt.Sprintf("the cloud says that its attach to node %s has failed", vol.Attachment.Node)
	}
	return Elsewhere, fmt.Sprintf("the cloud says that node %s holds it", vol.Attachment.Node)
}
