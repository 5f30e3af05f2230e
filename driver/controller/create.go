package controller

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// Request is a volume as somebody asked for it.
type Request struct {
	Spec  providers.Spec
	Adopt string // id of an existing disk that becomes the volume; empty for a new one
	From  string // name of the volume that it shall be a copy of; empty for none
	Sized bool   // the size was asked for; it is not the default

	// What was asked for explicitly, and must be so if the volume exists: of the Record, and of the cloud's disk by option.
	Record  providers.Record
	Options map[string]string

	// Check, if set, is called before anything is made.
	Check func(ctx context.Context) error
	// Copy takes a snapshot of From, which is deleted again. It is shared if another node may be about to make the volume of it.
	Copy func(ctx context.Context) (s *providers.Snapshot, shared bool, err error)
}

// names are those that Docker's own volumes have. A client puts a name into the path of a request, where others, like ".."
// and "a/../b", mean another volume or none.
var names = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Create makes the volume, or adopts a disk. One that exists already, made by an earlier call or by another node, is returned
// if it is what was asked for. Errors: volume.Conflict if it is not.
func (c *Controller) Create(ctx context.Context, r Request) (vol *providers.Volume, created bool, err error) {
	vol, err = c.Find(ctx, r.Spec.Name)
	switch {
	case err == nil:
		return vol, false, r.matches(vol)
	case !errors.Is(err, providers.ErrNotFound):
		return nil, false, err
	case !names.MatchString(r.Spec.Name):
		return nil, false, volume.Fail(volume.Invalid, "Docker could not remove a volume of that name", "use letters, digits, '_', '.' and '-', with a letter or digit first")
	}
	if r.Check != nil {
		if err := r.Check(ctx); err != nil {
			return nil, false, err
		}
	}
	switch {
	case r.Adopt != "":
		vol, err = c.cloud.adopt(ctx, r.Adopt, r.Spec)
	case r.From != "":
		if vol, err = c.clone(ctx, r); err != nil {
			if made, findErr := c.Find(ctx, r.Spec.Name); findErr == nil { // by another node, which has deleted the snapshot
				return made, false, r.matches(made)
			}
		}
	default:
		vol, err = c.cloud.create(ctx, r.Spec)
	}
	if err != nil {
		return nil, false, err
	}
	c.catalog.put(vol)
	return vol, true, r.matches(vol) // another node may have been first
}

// clone makes the volume a copy of another.
func (c *Controller) clone(ctx context.Context, r Request) (vol *providers.Volume, err error) {
	s, shared, err := r.Copy(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: volume %q, of which this one is to be a copy", err, r.From)
	}
	defer func() {
		if shared && err != nil {
			return
		}
		if err := c.cloud.deleteSnapshot(ctx, s.ID); err != nil {
			c.log.WithField("volume", r.From).WithField("snapshot", s.ID).WithError(err).Warn("The snapshot for a copy of the volume could not be deleted; `blockvol gc` deletes it")
		}
	}()
	r.Spec.Snapshot = s.ID
	vol, err = c.cloud.create(ctx, r.Spec)
	return vol, err
}

// matches refuses an existing volume that is not what was explicitly asked for.
func (r Request) matches(vol *providers.Volume) error {
	differs := func(option, is, asked string) error {
		return volume.Fail(volume.Conflict, fmt.Sprintf("the volume exists with %s=%s, not %s", option, is, asked), "use it as it is, or choose another name")
	}
	if r.Adopt != "" && vol.ID != r.Adopt {
		return differs("volume-id", vol.ID, r.Adopt)
	}
	if r.Sized && vol.Size < r.Spec.Size {
		return differs("size", volume.FormatSize(vol.Size), volume.FormatSize(r.Spec.Size))
	}
	if r.Spec.Snapshot != "" && vol.Snapshot != r.Spec.Snapshot {
		return differs("snapshot", vol.Snapshot, r.Spec.Snapshot)
	}
	for key, asked := range r.Options {
		if is, told := vol.Details[key]; told && !strings.EqualFold(is, asked) {
			return differs(key, is, asked)
		}
	}
	for key, asked := range r.Record {
		is := vol.Record[key]
		switch key {
		case volume.KeyReclaim:
			is = string(volume.SettingsOf(vol.Record).Reclaim)
		case volume.KeyFrom:
			if is == "" {
				return volume.Fail(volume.Conflict, fmt.Sprintf("the volume exists, and was not made as a copy of %q", asked), "choose another name")
			}
		case volume.KeyTags:
			if is != "" && is != asked { // volumes of earlier versions do not tell
				return volume.Fail(volume.Conflict, "the volume exists, and was created with other tags", "use it as it is, or choose another name")
			}
			continue
		}
		if is != asked {
			return differs(optionOf(key), is, asked)
		}
	}
	return nil
}

// optionOf is the create option whose value is in the Record under key.
func optionOf(key string) string {
	switch key {
	case volume.KeySchedule:
		return "snapshot-schedule"
	case volume.KeyKeep:
		return "snapshot-keep"
	}
	return key
}
