package docker

import (
	"context"
	"fmt"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
)

// Broken stands in for Volumes that could not be made: every call answers with the reason. Get cannot tell whether a
// volume exists and says so, for an engine would take a plain error for "it does not".
func Broken(reason error) Volumes { return broken{reason} }

type broken struct{ reason error }

// Create gives the reason.
func (b broken) Create(context.Context, string, map[string]string) error { return b.reason }

// Remove gives the reason.
func (b broken) Remove(context.Context, string) error { return b.reason }

// Mount gives the reason.
func (b broken) Mount(context.Context, string, string) (string, error) { return "", b.reason }

// Unmount gives the reason.
func (b broken) Unmount(context.Context, string, string) error { return b.reason }

// Path gives the reason.
func (b broken) Path(context.Context, string) (string, error) { return "", b.reason }

// Get gives the reason as one why it cannot tell.
func (b broken) Get(context.Context, string) (driver.Info, error) {
	return driver.Info{}, fmt.Errorf("%w: %w", volume.Unsure, b.reason)
}

// List gives the reason.
func (b broken) List(context.Context) ([]driver.Info, error) { return nil, b.reason }

// WithoutCreate is Volumes that can be served, while none can be created, for that reason.
func WithoutCreate(v Volumes, reason error) Volumes { return createless{v, reason} }

type createless struct {
	Volumes
	reason error
}

// Create gives the reason.
func (c createless) Create(_ context.Context, name string, _ map[string]string) error {
	return fmt.Errorf("%w: volume %q was not created", c.reason, name)
}
