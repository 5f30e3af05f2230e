package controller

import (
	"context"
	"net/netip"

	"github.com/blockvol/blockvol/providers"
)

// mostNew is how many nodes the cloud is asked about at once: those that are found tell of the others.
const mostNew = 3

// OtherNodes returns the addresses of some nodes that hold volumes and are not known yet.
func (c *Controller) OtherNodes(ctx context.Context, here string, known func(node string) bool) (map[string][]netip.Addr, error) {
	all, err := c.List(ctx)
	found := make(map[string][]netip.Addr)
	for _, vol := range all {
		node := vol.Attachment.Node
		if _, again := found[node]; again || node == "" || node == here || known(node) {
			continue
		}
		if len(found) == mostNew {
			break
		}
		state, _ := c.nodeState(ctx, node)
		if state.Life == providers.Running {
			found[node] = state.Addresses
		}
	}
	return found, err
}
