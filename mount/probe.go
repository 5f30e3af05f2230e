package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Contents is what is on a device.
type Contents struct {
	// Blank means that nothing is: blkid and wipefs both ran and found no signature, and the first and last MiB were read from
	// the disk itself and are zero.
	Blank bool

	// FSType is the file system on the device, as blkid names it, if there is one and nothing else beside it.
	FSType string

	// Found names everything that was found: "ext4", "crypto_LUKS", "gpt". It is empty if and only if Blank.
	Found []string
}

// unknownData is in Found if there are bytes of no known format.
const unknownData = "data of an unknown kind"

// Probe finds out what is on a disk. It writes nothing. The result may be outdated when it returns.
// Errors: ErrWrongDevice, ErrNoDevice, ErrUnreadable, ErrNoTool.
func (h *Host) Probe(ctx context.Context, disk Device) (Contents, error) {
	f, err := h.open(disk, os.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return Contents{}, err
	}
	defer f.Close()
	return probe(ctx, disk, f)
}

// probe finds out what is on a device that is open with O_DIRECT.
func probe(ctx context.Context, dev Device, f *os.File) (Contents, error) {
	zero, err := edgesAreZero(f)
	if err != nil {
		return Contents{}, err
	}
	c, err := blkid(ctx, dev)
	if err != nil {
		return Contents{}, err
	}
	signatures, err := wipefs(ctx, dev)
	if err != nil {
		return Contents{}, err
	}
	for _, s := range signatures {
		if !slices.Contains(c.Found, s) {
			c.Found = append(c.Found, s)
		}
	}
	if len(c.Found) == 0 && !zero {
		c.Found = []string{unknownData}
	}
	c.Blank = len(c.Found) == 0
	return c, nil
}

// blkid runs libblkid's low-level probe. Exit code 2 means "nothing found" and also "no such file", so it counts only without
// output, for a device that is open here and was just read. It looks for all formats that it knows, or for these.
func blkid(ctx context.Context, dev Device, formats ...string) (Contents, error) {
	args := []string{"--probe", "--output", "export", dev.Path}
	if len(formats) > 0 {
		args = append([]string{"--match-types", strings.Join(formats, ",")}, args...)
	}
	res, err := run(ctx, "blkid", args...)
	if err != nil {
		return Contents{}, fmt.Errorf("%w; what is on device %s is not known", err, dev.Path)
	}
	switch {
	case res.code == 0 && res.stdout != "":
		if c := parseBlkid(res.stdout); len(c.Found) > 0 {
			return c, nil
		}
	case res.code == 2 && res.stdout == "" && res.stderr == "":
		return Contents{}, nil
	case res.code == 8: // ambivalent: several signatures; wipefs names them
		return Contents{Found: []string{"several formats at once"}}, nil
	}
	return Contents{}, fmt.Errorf("%w: blkid ended with code %d (%s), so what is on device %s is not known", ErrUnreadable, res.code, res.message(), dev.Path)
}

// parseBlkid parses the KEY=value lines of blkid's export format.
func parseBlkid(out string) Contents {
	var c Contents
	var usage string
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		switch {
		case value == "":
		case key == "TYPE":
			c.FSType = value
			c.Found = append(c.Found, value)
		case key == "USAGE":
			usage = value
		case key == "PTTYPE":
			c.Found = append(c.Found, value)
		}
	}
	if usage != "filesystem" {
		c.FSType = ""
	}
	return c
}

// wipefs returns the signatures that wipefs would erase. It reports each format by itself, where blkid chooses one.
func wipefs(ctx context.Context, dev Device) ([]string, error) {
	res, err := run(ctx, "wipefs", "--no-act", "--parsable", dev.Path)
	if err != nil {
		return nil, fmt.Errorf("%w; what is on device %s is not known", err, dev.Path)
	}
	if res.code != 0 || res.stderr != "" {
		return nil, fmt.Errorf("%w: wipefs ended with code %d (%s), so what is on device %s is not known", ErrUnreadable, res.code, res.message(), dev.Path)
	}
	return parseWipefs(res.stdout), nil
}

// parseWipefs parses lines of offset, uuid, label and type, separated by commas. A label may have commas itself. If there is any
// output at all, it returns at least one signature.
func parseWipefs(out string) []string {
	if strings.TrimSpace(out) == "" {
		return nil
	}
	var found []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		kind := line[strings.LastIndexByte(line, ',')+1:]
		if kind == "" {
			kind = unknownData
		}
		if !slices.Contains(found, kind) {
			found = append(found, kind)
		}
	}
	if len(found) == 0 {
		return []string{unknownData}
	}
	return found
}

const (
	edge  = 1 << 20 // bytes at both ends of a device that must be readable, and zero on a blank one
	align = 4096    // O_DIRECT needs memory and offsets in whole sectors, which are at most this large
)

// edgesAreZero reads the first and the last MiB of a device that is open with O_DIRECT, from the disk and no cache.
// Errors: ErrUnreadable.
func edgesAreZero(f *os.File) (bool, error) {
	size, err := sizeOf(f)
	if err != nil {
		return false, err
	}
	first, last := edgesOf(size)
	buf := alignedBuffer(edge + align)
	zero := true
	for _, s := range []span{first, last} {
		for done := int64(0); done < s.length; {
			n, err := unix.Pread(int(f.Fd()), buf[done:s.length], s.offset+done)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err == nil && n == 0 {
				err = fmt.Errorf("it ends at byte %d of %d", s.offset+done, size)
			}
			if err != nil {
				return false, fmt.Errorf("%w: device %s at byte %d: %w", ErrUnreadable, f.Name(), s.offset+done, err)
			}
			done += int64(n)
		}
		zero = zero && isZero(buf[:s.length])
	}
	return zero, nil
}

type span struct{ offset, length int64 }

// edgesOf returns the first and the last MiB of a device of that size. They overlap on a small one.
func edgesOf(size int64) (first, last span) {
	from := max(0, size-edge) &^ (align - 1)
	return span{0, min(size, edge)}, span{from, size - from}
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func alignedBuffer(n int) []byte {
	b := make([]byte, n+align)
	skip := align - int(uintptr(unsafe.Pointer(&b[0]))%align)
	return b[skip : skip+n]
}
