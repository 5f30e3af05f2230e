package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fsShutdown is XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32), with the flag that keeps the kernel from writing anything
// first. Linux 6.19 gives btrfs the same one.
const (
	fsShutdown = 0x8004587d
	noLogFlush = 2
)

// Shutdown cuts the file system that the kernel holds on a disk off from it, for good: for a disk that was taken from this node. When it
// returns, reads and writes of that file system fail with EIO in every process and container, nothing that waits in memory will be
// written, and an unmount works and writes nothing. A file system that was shut down already is success. One that is frozen is thawed then,
// so that what waits for it gets its error.
//
// Requests that were sent to the device before go on. And ext4 sends one more, while it is shut down: the superblock of its journal as this
// node has last written it (jbd2_journal_abort, counted on Linux 6.18). xfs sends none. So do not call this to be on the safe side: on
// a disk that another node writes to, while this one still can, that block is out of date, though less so than what would follow.
//
// The file system may be mounted at dir under Config.Published, or anywhere on this machine. Shutdown waits for no other call.
//
// btrfs cannot be shut down before Linux 6.19: the error is ErrNoShutdown, and the file system stays as it is. If the kernel has removed
// its device, all of its reads and writes of the disk fail, and it turns read-only at its next commit; what is in memory can still be
// read. Otherwise nothing keeps the kernel from writing: unmounting, remounting read-only and freezing all write first, and a device that
// is set read-only is written to by what has it mounted. Only whoever uses it can be stopped, or the machine.
//
// Errors: ErrNoShutdown; ErrNotStaged if no mount of it is found; ErrWrongDevice if its device is another disk now.
func (h *Host) Shutdown(ctx context.Context, disk Device, dir string) error {
	path, err := h.pathOf(dir)
	if err != nil {
		return err
	}
	top, err := h.topOf(disk)
	if err != nil {
		return err
	}
	root, err := openAsMounted(path, top)
	if errors.Is(err, unix.EIO) && h.isAt(path, top) {
		return nil // xfs opens no directory any more
	}
	if err != nil {
		root, err = h.openElsewhere(ctx, disk, top)
	}
	if root == nil || err != nil {
		return err
	}
	defer root.Close()
	if err := h.mayBe(disk); err != nil { // after it was opened, so that no other disk gets its number
		return err
	}
	flags := uint32(noLogFlush)
	switch err := ioctl(root, fsShutdown, &flags); {
	case errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("%w: the one on device %s; what uses it must be stopped", ErrNoShutdown, top.Path)
	case err != nil && !errors.Is(err, unix.EIO):
		return fmt.Errorf("the file system of device %s cannot be shut down: %w", top.Path, err)
	}
	if _, err := thawFS(root); err != nil && !errors.Is(err, unix.EIO) {
		return fmt.Errorf("the file system of device %s was shut down, and stays frozen: %w", top.Path, err)
	}
	return nil
}

// openAsMounted opens a directory where the file system of a device is mounted. Unlike openStaged, it may be on a device that is gone.
func openAsMounted(path string, top Device) (*os.File, error) {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(root.Fd()), &st)
	if err == nil {
		fstype := ""
		if st.Type == unix.BTRFS_SUPER_MAGIC {
			fstype = "btrfs"
		}
		err = verifyDeviceOf(root, top, fstype)
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// isAt tells whether this process's mount table has the device at the path, on top.
func (h *Host) isAt(path string, top Device) bool {
	all, err := mountsUnder(path)
	if err != nil {
		return false
	}
	m := mountAround(all, path)
	return m != nil && m.Mountpoint == path && uint32(m.Major) == top.Major && uint32(m.Minor) == top.Minor
}

// openElsewhere opens a directory of a volume's file system in whichever mount namespace has it. It returns nil, without an error, if
// each that was found says that it was shut down. Errors: ErrNotStaged.
func (h *Host) openElsewhere(ctx context.Context, disk, top Device) (*os.File, error) {
	q := query{disk: diskOf(disk), top: diskOf(top)}
	all, err := h.mounts.get(ctx, q)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("%w: no mount of the file system of device %s is found", ErrNotStaged, top.Path)
	if all.of[q] == nil {
		return nil, err
	}
	down := false
	for _, m := range all.of[q].others {
		processes := []string{"/proc/self"}
		if !m.in.own {
			processes = nil
			for _, pid := range m.in.pids {
				processes = append(processes, filepath.Join(h.proc, pid))
			}
		}
		for _, process := range processes {
			root, openErr := openAsMounted(filepath.Join(process, "root")+m.path, top)
			if openErr == nil {
				return root, nil
			}
			down = down || errors.Is(openErr, unix.EIO)
		}
	}
	if down {
		return nil, nil
	}
	return nil, err
}

// mayBe checks that a device, if the kernel has it still, is the disk. Errors: ErrWrongDevice.
func (h *Host) mayBe(disk Device) error {
	removed, err := h.Removed(disk)
	if err != nil || removed {
		return err
	}
	return h.verify(disk)
}

// Removed tells whether the kernel has removed a device. It does that once, and for good: no read or write of a file system on it
// reaches a disk any more. A device whose file system is mounted keeps its number until it was unmounted, also when the disk comes back:
// then that is another device. So the result is about the file system only while that is mounted.
func (h *Host) Removed(disk Device) (bool, error) {
	_, err := os.Lstat(filepath.Join(kernelSysfs, "dev/block", disk.number().String()))
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	}
	return false, fmt.Errorf("whether device %s is still there cannot be found out: %w", disk.Path, err)
}

// Answers reads from the disk itself, past what the kernel remembers, and returns nil if that succeeds before ctx ends. The kernel may keep
// the read for longer than ctx lasts; then later calls wait for the same one.
// Errors: ErrUnreadable, ErrNoDevice, ErrWrongDevice; the cause of ctx's end.
func (h *Host) Answers(ctx context.Context, disk Device) error {
	read := h.reads.DoChan(disk.number().String(), func() (any, error) { return nil, h.readDirectly(disk) })
	select {
	case r := <-read:
		return r.Err
	case <-ctx.Done():
		return fmt.Errorf("%w: device %s does not answer: %w", ErrUnreadable, disk.Path, context.Cause(ctx))
	}
}

func (h *Host) readDirectly(disk Device) error {
	f, err := h.open(disk, os.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 4096 // the largest sector
	room := make([]byte, 2*size)
	aligned := room[size-int(uintptr(unsafe.Pointer(&room[0]))%size):][:size]
	if _, err := f.ReadAt(aligned, 0); err != nil {
		return fmt.Errorf("%w: device %s: %w", ErrUnreadable, disk.Path, err)
	}
	return nil
}

// Errors counts the errors that the kernel has met on a disk: what ext4 and btrfs count of their file system, and SCSI of its device. It is
// the change that means something: SCSI counts harmless ones too, and what is not counted at all is 0, as for xfs on NVMe.
func (h *Host) Errors(disk Device) (n uint64, err error) {
	top, err := h.topOf(disk)
	if err != nil {
		return 0, err
	}
	name := kernelNameOf(top)
	for _, file := range []string{
		filepath.Join(kernelSysfs, "fs/ext4", name, "errors_count"),
		filepath.Join(kernelSysfs, "block", kernelNameOf(disk), "device/ioerr_cnt"),
	} {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // not of that kind
		}
		count, err := strconv.ParseUint(strings.TrimSpace(string(content)), 0, 64)
		if err == nil {
			n += count
		}
	}
	devices, err := filepath.Glob(filepath.Join(kernelSysfs, "fs/btrfs/*/devices", name))
	if err != nil {
		return n, err
	}
	for _, device := range devices {
		stats, err := filepath.Glob(filepath.Join(device, "../../devinfo/*/error_stats"))
		if err != nil {
			return n, err
		}
		for _, file := range stats {
			content, _ := os.ReadFile(file)
			n += sumOfStats(content)
		}
	}
	return n, nil
}

// sumOfStats sums the counters of btrfs, which have a line each: "write_errs 3".
func sumOfStats(content []byte) (sum uint64) {
	for line := range bytes.Lines(content) {
		_, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err == nil {
			sum += n
		}
	}
	return sum
}
