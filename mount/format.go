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

// FormatSpec is how a volume is to be formatted.
type FormatSpec struct {
	FSType  string   // one of FSTypes
	Options []string // further arguments of mkfs, which CheckOptions accepts
	Size    int64    // bytes that the volume has according to the cloud; a smaller disk is another one

	// Begin, if set, is called when the disk is proven blank, right before the first byte is written. Its error ends the call.
	// It lets the caller record durably that a format has begun.
	Begin func(ctx context.Context) error

	// Begun says that this record exists and that the volume has not been staged since. Then a crash interrupted a format, and
	// what is on the disk is cleared first, if it is of FSType or has no signature.
	Begun bool
}

// Format makes the volume's file system if the disk is blank. It proves this itself and does not rely on an earlier Probe: the disk
// has its identity still, it has at least spec.Size bytes, nobody else uses it, its first and last MiB can be read from the disk
// itself and are zero, and neither blkid nor wipefs finds a signature. Nothing overrides this.
//
// If mkfs fails or ctx ends, Format clears what mkfs has written, so that a later call finds the disk blank again. It cannot do that
// after a crash: see FormatSpec.Begun.
//
// Errors: ErrNotBlank, ErrWrongDevice, ErrNoDevice, ErrUnreadable, ErrBusy, ErrNoTool, ErrInvalid.
func (h *Host) Format(ctx context.Context, disk Device, spec FormatSpec) error {
	if err := CheckOptions(spec.FSType, spec.Options, nil); err != nil {
		return err
	}
	if _, err := exec.LookPath("mkfs." + spec.FSType); err != nil { // before anything is recorded or written
		return fmt.Errorf("%w: mkfs.%s is not installed where blockvol runs, so device %s cannot be formatted (%w)", ErrNoTool, spec.FSType, disk.Path, err)
	}
	release, err := h.claimDevice(ctx, disk)
	if err != nil {
		return err
	}
	defer release()

	// mkfs, mount, device-mapper and md open a device exclusively, so none of them can begin during the proof. mkfs must open it
	// itself, so that file is closed right before. This one keeps another disk from getting the name.
	kept, err := h.open(disk, os.O_RDWR)
	if err != nil {
		return err
	}
	defer kept.Close()
	if err := h.proveBlank(ctx, disk, spec); err != nil {
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
		// Perhaps mkfs failed because somebody else has formatted the disk meanwhile: that is not cleared.
		spec.Begun = true
		if clearErr := h.proveBlank(context.WithoutCancel(ctx), disk, spec); clearErr != nil {
			err = fmt.Errorf("%w; what is on the disk now stays there: %w", err, clearErr)
		}
		return err
	}
	if err := kept.Sync(); err != nil {
		return fmt.Errorf("%w: device %s was formatted but could not be flushed: %w", ErrUnreadable, disk.Path, err)
	}
	if err := h.verify(disk); err != nil {
		return err
	}
	return verifyFS(ctx, top, spec.FSType)
}

// proveBlank proves that a disk is blank while nobody else can open it exclusively. Errors: see Format.
func (h *Host) proveBlank(ctx context.Context, disk Device, spec FormatSpec) error {
	f, err := h.open(disk, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer closeExclusive(f)
	if _, err := h.Find(ctx, disk.Serial); err != nil { // another disk with the same serial may have been attached
		return err
	}
	size, err := sizeOf(f)
	if err != nil {
		return err
	}
	// A larger disk is accepted: clouds round up, and the volume may have been resized since the cloud was asked.
	if spec.Size <= 0 || size < spec.Size {
		return fmt.Errorf("%w: device %s has %d bytes, but the cloud says %d; it is not formatted: check what is attached to this node", ErrWrongDevice, disk.Path, size, spec.Size)
	}
	c, err := probe(ctx, disk, f)
	if err != nil {
		return err
	}
	if spec.Begun && !c.Blank && !slices.ContainsFunc(c.Found, func(s string) bool { return s != spec.FSType && s != unknownData }) {
		if err := clearEdges(f); err != nil {
			return err
		}
		if c, err = probe(ctx, disk, f); err != nil {
			return err
		}
	}
	if !c.Blank {
		return fmt.Errorf("%w: %s has %s and is not formatted, so that no data is lost; to use it as it is, adopt it, and to erase it, use wipefs and write zeroes by hand",
			ErrNotBlank, disk.Path, strings.Join(c.Found, ", "))
	}
	return nil
}

func mkfs(ctx context.Context, dev Device, spec FormatSpec) error {
	t := fsTypes[spec.FSType]
	res, err := run(ctx, "mkfs."+spec.FSType, append(t.mkfsArgs(spec.Options), dev.Path)...)
	if err != nil {
		return fmt.Errorf("%w; device %s is not formatted", err, dev.Path)
	}
	if res.code != 0 {
		return fmt.Errorf("mkfs.%s could not format device %s: %s", spec.FSType, dev.Path, res.message())
	}
	return nil
}

// CheckFormat finds out whether mkfs accepts the options for a volume of that size. mkfs works on a file in memory of this size, to
// which it writes nothing, or a few MiB for btrfs.
// Errors: ErrInvalid, ErrNoTool.
func CheckFormat(ctx context.Context, spec FormatSpec) error {
	if err := CheckOptions(spec.FSType, spec.Options, nil); err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("blockvol", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("a file in memory cannot be made: %w", err)
	}
	file := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	defer file.Close()
	if err := file.Truncate(spec.Size); err != nil {
		return fmt.Errorf("a file of %d bytes in memory cannot be made: %w", spec.Size, err)
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
		cause, _, _ := strings.Cut(res.message(), " Usage: ")
		return fmt.Errorf("%w: mkfs.%s cannot format %d bytes with these options: %s", ErrInvalid, spec.FSType, spec.Size, cause)
	}
	return nil
}

// verifyFS checks that the device has the file system, and neither another one of FSTypes nor encryption, according to blkid. To
// look for those takes a third of the reads from the disk that all formats take, which are looked for only to say what is there
// instead. Errors: ErrBlank, ErrWrongFS.
func verifyFS(ctx context.Context, dev Device, fstype string) error {
	c, err := blkid(ctx, dev, append(FSTypes(), "crypto_LUKS")...)
	if err == nil && len(c.Found) == 0 {
		c, err = blkid(ctx, dev)
	}
	switch {
	case err != nil:
		return err
	case len(c.Found) == 0:
		return fmt.Errorf("%w: device %s should have %s but has no known format; it is not formatted now", ErrBlank, dev.Path, fstype)
	case c.FSType != fstype:
		return fmt.Errorf("%w: device %s should have %s but has %s", ErrWrongFS, dev.Path, fstype, strings.Join(c.Found, ", "))
	}
	return nil
}

// clearEdges writes zeroes to the first and the last MiB of a device, where every file system of FSTypes has its signatures.
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
