package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Busy tells whether the kernel of this machine uses the volume's disk or its top: for a file system mounted in any mount
// namespace, visible to this process or not, also on a device that was pulled; for swap, device-mapper, md or another program
// that has the device open exclusively; or for a call of this Host that works on it. Detach a disk only if it is not busy.
func (h *Host) Busy(disk Device) (bool, error) {
	release, free := h.claims.forProbe(disk.number().String())
	if !free {
		return true, nil
	}
	defer release()
	top, err := h.topOf(disk)
	if err != nil {
		return true, err
	}
	busy, err := isBusy(disk)
	if err != nil || busy || top == disk {
		return busy, err
	}
	return isBusy(top)
}

// WaitFree returns when the volume is not busy any more (see Busy), or with ErrBusy when ctx ends. The kernel sends no event for
// this, so WaitFree polls: often at first, since the last unmount mostly frees a device at once, then each second.
func (h *Host) WaitFree(ctx context.Context, disk Device) error {
	wait := 5 * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		busy, err := h.Busy(disk)
		if err != nil || !busy {
			return err
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: device %s is still used on this node by %s: %w", ErrBusy, disk.Path, h.usersOf(disk), context.Cause(ctx))
		}
		wait = min(2*wait, time.Second)
		timer.Reset(wait)
	}
}

// Activity counts the reads and the writes that a disk has completed.
type Activity struct{ Reads, Writes uint64 }

// Activity returns the kernel's counters of the disk's reads and writes.
// Source: Linux, Documentation/block/stat.rst.
func (h *Host) Activity(disk Device) (Activity, error) {
	var a Activity
	content, err := os.ReadFile(filepath.Join(kernelSysfs, "block", kernelNameOf(disk), "stat"))
	if err == nil {
		var skipped uint64
		_, err = fmt.Sscan(string(content), &a.Reads, &skipped, &skipped, &skipped, &a.Writes)
	}
	if err != nil {
		return a, fmt.Errorf("%w: the counters of device %s cannot be read: %w", ErrNoDevice, disk.Path, err)
	}
	return a, nil
}

// isBusy tells whether the kernel uses a device.
func isBusy(dev Device) (bool, error) {
	fstype, err := mountedOn(dev)
	if err != nil || fstype != "" {
		return true, err
	}
	// Whoever needs a block device for itself opens it exclusively, and a second exclusive open fails.
	err = tryExclusive(dev.Path)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return false, nil // pulled, and sysfs has no file system on it
	}
	return true, fmt.Errorf("whether device %s is in use cannot be found out: %w", dev.Path, err)
}

// mountedOn returns the type of the file system that the kernel holds on a device, mounted anywhere or no more, "" if there is none.
func mountedOn(dev Device) (fstype string, err error) {
	name := kernelNameOf(dev)
	// It has a directory in sysfs: most types by the device's name, btrfs by the file system's id.
	for _, pattern := range []string{"*/" + name, "btrfs/*/devices/" + name} {
		found, err := filepath.Glob(filepath.Join(kernelSysfs, "fs", pattern))
		if err != nil {
			return "", fmt.Errorf("whether device %s is in use cannot be found out: %w", dev.Path, err)
		}
		if len(found) > 0 {
			fstype, _, _ = strings.Cut(strings.TrimPrefix(found[0], kernelSysfs+"/fs/"), "/")
			return fstype, nil
		}
	}
	return "", nil
}

// closeExclusive closes a file that is open exclusively, and returns when the device is free. A program that another goroutine is
// starting has a copy of every open file until its exec, and keeps the device busy a moment longer: mkfs would fail.
func closeExclusive(f *os.File) {
	f.Close() // nothing was written that an error could be about
	for wait := 50 * time.Microsecond; wait < time.Second && errors.Is(tryExclusive(f.Name()), unix.EBUSY); wait *= 2 {
		time.Sleep(wait)
	}
}

// tryExclusive opens the device exclusively and closes it again. Go starts no program meanwhile, so that none gets a copy of
// this file.
func tryExclusive(path string) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// usersOf names the processes that have the volume's file system mounted, or open files on it after it was unmounted, and says
// what to do.
func (h *Host) usersOf(disk Device) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // the caller's context has ended
	defer cancel()
	top, err := h.topOf(disk)
	if err != nil {
		top = disk
	}
	var users []string
	q := query{disk: diskOf(disk), top: diskOf(top)}
	if all, err := h.mounts.get(ctx, q); err == nil {
		for _, m := range all.of[q].others[:min(len(all.of[q].others), namedUsers)] {
			who := "blockvol itself"
			if !m.in.own {
				u, _ := h.userOf(m)
				who = u.words()
			}
			users = append(users, who+", which has it mounted at "+m.path)
		}
	}
	if len(users) == 0 {
		users = h.processesOn(ctx, top.number())
	}
	if len(users) == 0 {
		return "a process or program that cannot be identified"
	}
	return strings.Join(users, " and ") + "; stop it"
}

// usersAt names the processes that keep a mount from being unmounted, and says what to do.
func (h *Host) usersAt(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		if users := h.processesOn(ctx, devno{unix.Major(st.Dev), unix.Minor(st.Dev)}); len(users) > 0 {
			return strings.Join(users, " and ") + "; stop it"
		}
	}
	return "a process that uses it or another mount inside it"
}

// processesOn describes up to three processes whose root, working directory or open files are on a file system. Those of other
// users and with more capabilities cannot be examined.
func (h *Host) processesOn(ctx context.Context, fs devno) (found []string) {
	processes, _ := filepath.Glob(filepath.Join(h.proc, "[0-9]*"))
	for _, process := range processes {
		if len(found) == 3 || ctx.Err() != nil {
			break
		}
		files, _ := filepath.Glob(filepath.Join(process, "fd/*"))
		if slices.ContainsFunc(append(files, process+"/cwd", process+"/root"), func(file string) bool {
			var st unix.Statx_t // without asking a file server, which may be away
			err := unix.Statx(unix.AT_FDCWD, file, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
			return err == nil && st.Dev_major == fs.major && st.Dev_minor == fs.minor
		}) {
			found = append(found, h.describe(filepath.Base(process))+", which has its working directory or an open file there")
		}
	}
	return found
}

// describe names a process for people: "process 4711 (cadvisor, of container 0123456789ab)".
func (h *Host) describe(pid string) string {
	p, running := h.process(pid)
	if !running {
		return "process " + pid
	}
	return User{Container: h.containerOf(p.pid), PID: p.pid, Command: p.command}.words()
}
