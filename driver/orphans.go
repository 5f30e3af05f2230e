package driver

import (
	"context"
	"fmt"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Orphan is a disk of the cluster that is no volume.
type Orphan = providers.Orphan

// Orphans lists the disks of the cluster that are no volumes, sorted by the name that they had. Errors: volume.Invalid for a provider that
// cannot tell.
func (d *Driver) Orphans(ctx context.Context) ([]Orphan, error) {
	all, err := d.controller.Orphans(ctx)
	if err != nil {
		err = volume.At(d.stopping(fmt.Errorf("%w: the disks that are no volumes cannot be listed", err)), volume.Error{Op: volume.List})
	}
	return all, err
}
