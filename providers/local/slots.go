package local

import (
	"context"

	"github.com/blockvol/blockvol/providers"
)

// Slots counts the volumes of this node. Their number has no limit but the kernel's, which makes loop devices as they are needed.
func (p *Provider) Slots(ctx context.Context) (slots providers.Slots, err error) {
	all, err := p.List(ctx)
	for _, v := range all {
		if v.HeldBy(p.node) {
			slots.Used++
		}
	}
	return slots, err
}
