package driver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Create makes the volume, or adopts the disk that the option volume-id names. Nothing is made unless every option is
// right, and under no name that Docker could not address. A volume that exists already, made by an earlier call or by another
// node, is success if it is what was asked for.
func (d *Driver) Create(ctx context.Context, name string, options map[string]string) error {
	switch {
	case len(name) > 255:
		return fmt.Errorf("the name has %d bytes, where at most 255 fit: no volume was created; choose a shorter name", len(name))
	case !printable(name):
		return fmt.Errorf("the name %q has characters that cannot be printed: no volume was created; choose another name", name)
	}
	r, err := d.parseOptions(name, options)
	if err != nil {
		return fmt.Errorf("%w: volume %q was not created", err, name)
	}
	v, err := d.enter(ctx, name, "being created")
	if err != nil {
		return err
	}
	owns, err := d.background(ctx, v, func(ctx context.Context) error { return d.create(ctx, v, r) })
	if owns {
		d.leave(v)
	}
	return err
}

// creatable are the names that Docker's own volumes have. A client puts a name into the path of a request, where others, like
// ".." and "a/../b", mean another volume or none.
var creatable = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func (d *Driver) create(ctx context.Context, v *volume, r request) error {
	vol, err := d.find(ctx, v.name)
	switch {
	case err == nil:
		return d.sameAsAsked(vol, r)
	case !errors.Is(err, providers.ErrNotFound):
		return fmt.Errorf("%w: volume %q was not created", err, v.name)
	case !creatable.MatchString(v.name):
		return fmt.Errorf("volume %q was not created: Docker could not remove a volume of that name; use letters, digits, '_', '.' and '-', with a letter or digit first", v.name)
	}
	if err := checkFormat(ctx, r.spec); err != nil {
		return fmt.Errorf("%w: volume %q was not created", err, v.name)
	}
	if r.adopt != "" {
		vol, err = d.provider.Adopt(ctx, r.adopt, r.spec)
	} else {
		vol, err = d.provider.Create(ctx, r.spec)
	}
	if err != nil {
		return fmt.Errorf("%w: volume %q was not created", err, v.name)
	}
	d.catalog.put(vol)
	if err := d.sameAsAsked(vol, r); err != nil {
		return err // another node was first
	}
	d.volumeLog(v).WithField("id", vol.ID).WithField("size", FormatSize(vol.Size)).Info("Volume created")
	return nil
}

// checkFormat has mkfs check the operator's options for it. Where there is no such program, another node may have it.
func checkFormat(ctx context.Context, spec providers.Spec) error {
	set := settingsOf(spec.Record)
	if len(set.mkfsOptions) == 0 {
		return nil
	}
	err := mount.CheckFormat(ctx, mount.FormatSpec{FSType: set.fstype, Options: set.mkfsOptions, Size: spec.Size})
	if errors.Is(err, mount.ErrNoTool) {
		return nil
	}
	return err
}

// sameAsAsked refuses an existing volume that is not what the options explicitly ask for.
func (d *Driver) sameAsAsked(vol *providers.Volume, r request) error {
	differs := func(option, is, asked string) error {
		return fmt.Errorf("volume %q exists with %s=%s, not %s: use it as it is, or choose another name", vol.Name, option, is, asked)
	}
	if r.adopt != "" && vol.ID != r.adopt {
		return differs("volume-id", vol.ID, r.adopt)
	}
	if r.sized && vol.Size < r.spec.Size {
		return differs("size", FormatSize(vol.Size), FormatSize(r.spec.Size))
	}
	if r.spec.Snapshot != "" && vol.Snapshot != r.spec.Snapshot {
		return differs("snapshot", vol.Snapshot, r.spec.Snapshot)
	}
	for key, asked := range r.cloud {
		if is, told := vol.Details[key]; told && !strings.EqualFold(is, asked) {
			return differs(key, is, asked)
		}
	}
	for key, asked := range r.explicit {
		is := vol.Record[key]
		switch key {
		case recReclaim:
			is = string(settingsOf(vol.Record).reclaim)
		case recTags:
			if is != "" && is != asked { // volumes of earlier versions do not tell
				return fmt.Errorf("volume %q exists, and was created with other tags: use it as it is, or choose another name", vol.Name)
			}
			continue
		}
		if is != asked {
			return differs(key, is, asked)
		}
	}
	return nil
}
