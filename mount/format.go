package mount

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// FormatSpec is how a device is to be formatted.
type FormatSpec struct {
	FSType  string   // one of FSTypes
	Options []string // further arguments of mkfs, which CheckOptions accepts
	Size    int64    // bytes that the cloud says the volume has; a smaller device is not it

	// Begin, if set, is called when the device has been proven blank, right before the first byte is written. Its error
	// ends the call. Here the caller records, where the next life finds it, that a format has begun.
	Begin func(ctx context.Context) error

	// Begun says that such a record exists and that the volume has never been published since: what stands on the device
	// is then the remains of a format that a crash cut short, and is cleared first if it is nothing else than spec.FSType
	// or bytes without a signature.
	Begun bool
}

// Format makes a file system on a device, if it is blank. It finds out itself, from the device and not from an earlier
// Probe: the identity is that in dev, the size is no less than spec.Size, no one holds the device, its first and last MiB
// can be read from the disk and are zero, and neither blkid nor wipefs finds a signature. There is no way to force it.
//
// If mkfs fails or ctx ends, what mkfs wrote is cleared, so that a later call finds the device blank again. A crash cannot
// be cleaned up after: see FormatSpec.Begun.
//
// Errors: ErrNotBlank, ErrWrongDevice, ErrNoDevice, ErrUnreadable, ErrBusy, ErrNoTool, ErrInvalid.
func (h *Host) Format(ctx context.Context, disk Device, spec FormatSpec) error {
	if err := CheckOptions(spec.FSType, spec.Options, nil); err != nil {
		return err
	}
	if _, err := exec.LookPath("mkfs." + spec.FSType); err != nil { // before anything is recorded or written
		return fmt.Errorf("%w: device %s cannot be formatted, since mkfs.%s is not installed where blockvol runs (%w)", ErrNoTool, disk.Path, spec.FSType, err)
	}
	release, err := h.claimDevice(ctx, disk)
	if err != nil {
		return err
	}
	defer release()

	// An exclusive open is what mkfs, mount, device-mapper and md use: nobody else begins while it lasts. mkfs needs it for
	// itself, so it is given up just before; the second file keeps the name from passing to another disk.
	kept, err := h.open(disk, os.O_RDWR)
	if err != nil {
		return err
	}
	defer kept.Close()
	if err := h.mustBeBlank(ctx, disk, spec); err != nil {
		return err
	}
	if spec.Begin != nil {
		if err := spec.Begin(ctx); err != nil {
			return fmt.Errorf("device %s is not formatted: %w", disk.Path, err)
		}
	}
	top, err := h.topOf(disk)
	if err != nil {
		return err
	}
	if err := mkfs(ctx, top, spec); err != nil {
		// Not everything there is mkfs's own work: it may have failed since somebody else was quicker.
		spec.Begun = true
		if clearErr := h.mustBeBlank(context.WithoutCancel(ctx), disk, spec); clearErr != nil {
			err = fmt.Errorf("%w; what is there now is left as it is: %w", err, clearErr)
		}
		return err
	}
	if err := kept.Sync(); err != nil {
		return fmt.Errorf("%w: device %s was formatted but could not be flushed: %w", ErrUnreadable, disk.Path, err)
	}
	if err := h.verify(disk); err != nil {
		return err
	}
	return mustHold(ctx, top, spec.FSType)
}

// mustBeBlank climbs the whole ladder, on an exclusive open.
func (h *Host) mustBeBlank(ctx context.Context, dev Device, spec FormatSpec) error {
	f, err := h.open(dev, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer letGo(f)
	if _, err := h.Find(ctx, dev.Serial); err != nil { // another disk may have come that bears the same serial
		return err
	}
	size, err := sizeOf(f)
	if err != nil {
		return err
	}
	// A larger one is accepted: clouds round up, and a volume may have been grown since the cloud was asked.
	if spec.Size <= 0 || size < spec.Size {
		return fmt.Errorf("%w: device %s has %d bytes where the cloud says %d; it is not formatted, see what is attached to this node", ErrWrongDevice, dev.Path, size, spec.Size)
	}
	c, err := probe(ctx, dev, f)
	if err != nil {
		return err
	}
	if spec.Begun && !c.Blank && !slices.ContainsFunc(c.Found, func(s string) bool { return s != spec.FSType && s != unknownData }) {
		if err := clearEdges(f); err != nil {
			return err
		}
		if c, err = probe(ctx, dev, f); err != nil {
			return err
		}
	}
	if !c.Blank {
		return fmt.Errorf("%w: it holds %s; device %s is not formatted, so that no data is lost: if it is to be used as it is, adopt it, and if it is to be emptied, do so with wipefs and zeroes by hand",
			ErrNotBlank, strings.Join(c.Found, ", "), dev.Path)
	}
	return nil
}

func mkfs(ctx context.Context, dev Device, spec FormatSpec) error {
	t := fsTypes[spec.FSType]
	res, err := run(ctx, "mkfs."+spec.FSType, append(t.mkfsArgs(spec.Options), dev.Path)...)
	if err != nil {
		return fmt.Errorf("device %s could not be formatted: %w", dev.Path, err)
	}
	if res.code != 0 {
		return fmt.Errorf("mkfs.%s could not format device %s: %s", spec.FSType, dev.Path, res.words())
	}
	return nil
}

// CheckFormat asks mkfs whether it could format a volume so, without one: the size is that of a file in memory, to which mkfs
// writes nothing, or for btrfs a few MiB.
// Errors: ErrInvalid, ErrNoTool.
func CheckFormat(ctx context.Context, spec FormatSpec) error {
	if err := CheckOptions(spec.FSType, spec.Options, nil); err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("blockvol", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("no file in memory could be made: %w", err)
	}
	file := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	defer file.Close()
	if err := file.Truncate(spec.Size); err != nil {
		return fmt.Errorf("no file of %d bytes could be made in memory: %w", spec.Size, err)
	}
	t := fsTypes[spec.FSType]
	args := append(t.mkfsArgs(spec.Options), file.Name())
	if t.dryRun != "" {
		args = append([]string{t.dryRun}, args...)
	}
	res, err := run(ctx, "mkfs."+spec.FSType, args...)
	if err != nil {
		return err
	}
	if res.code != 0 {
		cause, _, _ := strings.Cut(res.words(), " Usage: ")
		return fmt.Errorf("%w: mkfs.%s cannot format %d bytes so: %s", ErrInvalid, spec.FSType, spec.Size, cause)
	}
	return nil
}

// mustHold checks that the device holds the file system, by blkid's word. Errors: ErrBlank, ErrWrongFS.
func mustHold(ctx context.Context, dev Device, fstype string) error {
	c, err := blkid(ctx, dev)
	switch {
	case err != nil:
		return err
	case len(c.Found) == 0:
		return fmt.Errorf("%w: device %s should hold %s and holds nothing known; it is not formatted here", ErrBlank, dev.Path, fstype)
	case c.FSType != fstype:
		return fmt.Errorf("%w: device %s should hold %s and holds %s", ErrWrongFS, dev.Path, fstype, strings.Join(c.Found, ", "))
	}
	return nil
}

// clearEdges writes zeroes over the first and the last MiB of a device, where every file system of FSTypes has what makes
// it one.
func clearEdges(f *os.File) error {
	size, err := sizeOf(f)
	if err != nil {
		return err
	}
	first, last := edgesOf(size)
	zeroes := alignedBuffer(edge + align)
	for _, s := range []span{first, last} {
		if _, err := f.WriteAt(zeroes[:s.length], s.offset); err != nil {
			return fmt.Errorf("device %s cannot be written: %w", f.Name(), err)
		}
	}
	return f.Sync()
}
