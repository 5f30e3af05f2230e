package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Held tells whether anything in this machine's kernel holds the device: a file system mounted in whichever mount
// namespace, visible to this process or not, also of a device that was pulled; swap, device-mapper, md or another
// program's exclusive open; or a call of this Host that works on it. Detach only what is not held.
func (h *Host) Held(dev Device) (bool, error) {
	release, free := h.claims.forLook(dev)
	if !free {
		return true, nil
	}
	defer release()
	return h.kernelHolds(dev)
}

// Activity returns what the kernel has counted of the device's reads and writes so far. Two answers differ if there was any
// between them. Source: Linux, Documentation/block/stat.rst.
func (h *Host) Activity(dev Device) (string, error) {
	counts, err := os.ReadFile(filepath.Join(kernelSysfs, "block", kernelNameOf(dev), "stat"))
	if err != nil {
		return "", fmt.Errorf("%w: what device %s does cannot be told: %w", ErrNoDevice, dev.Path, err)
	}
	return string(counts), nil
}

// WaitFree returns when nothing holds the device any more (see Held), or with ErrBusy when ctx ends. The kernel gives no
// sign of it, so it looks: often at first, since the last unmount mostly frees a device at once, then each second.
func (h *Host) WaitFree(ctx context.Context, dev Device) error {
	wait := 5 * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		held, err := h.Held(dev)
		if err != nil || !held {
			return err
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: device %s is still held on this node, by a mount that some process has or by another program: %w", ErrBusy, dev.Path, context.Cause(ctx))
		}
		wait = min(2*wait, time.Second)
		timer.Reset(wait)
	}
}

func (h *Host) kernelHolds(dev Device) (bool, error) {
	name := kernelNameOf(dev)
	// Each file system type that shows its mounts has them by device name; btrfs, by the id of the file system.
	for _, pattern := range []string{"fs/*/" + name, "fs/btrfs/*/devices/" + name} {
		found, err := filepath.Glob(filepath.Join(kernelSysfs, pattern))
		if err != nil {
			return true, fmt.Errorf("what holds device %s cannot be told: %w", dev.Path, err)
		}
		if len(found) > 0 {
			return true, nil
		}
	}
	// Whoever holds a block device for himself has it open exclusively, so that a second such open fails.
	err := tryExclusive(dev.Path)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return false, nil // pulled, and sysfs shows no file system on it
	}
	return true, fmt.Errorf("what holds device %s cannot be told: %w", dev.Path, err)
}

// InUse tells whether the device's file system would still be mounted somewhere on this machine after Unpublish: in a
// container, or any other mount namespace. Copies of the published mount to which its unmounting propagates do not count.
// If nothing of ours is mounted, any mount counts, and so does whatever else holds the device.
//
// What cannot be told counts as use: processes that Config.Proc hides, a file system held by no mount that it shows.
// A process in another PID namespace than that of Config.Proc is not seen, so this must be the whole machine's.
func (h *Host) InUse(ctx context.Context, dev Device) (bool, error) {
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return true, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	v := newView(dev, own)
	v.takeOurs(h)
	complete, err := h.readNamespaces(ctx, v)
	if err != nil {
		return true, err
	}
	switch {
	case v.remains(), !complete:
		return true, nil
	case len(v.ours) > 0:
		return false, nil
	}
	return h.Held(dev)
}

// view is every mount of one device's file system on this machine, with the mounts around it.
type view struct {
	dev        Device
	name       string                    // the kernel's
	anonymous  map[devno]bool            // numbers of the device's btrfs
	ours       map[int]*mountinfo.Info   // what Unpublish would unmount, by mount ID; an ID is of one mount on the machine
	own        map[int]*mountinfo.Info   // our namespace
	namespaces []map[int]*mountinfo.Info // those that have the file system, by mount ID
}

func newView(dev Device, own []*mountinfo.Info) *view {
	v := &view{
		dev: dev, name: kernelNameOf(dev), anonymous: map[devno]bool{},
		ours: map[int]*mountinfo.Info{}, own: byID(own),
	}
	v.namespaces = append(v.namespaces, v.own)
	return v
}

func byID(mounts []*mountinfo.Info) map[int]*mountinfo.Info {
	m := make(map[int]*mountinfo.Info, len(mounts))
	for _, i := range mounts {
		m[i.ID] = i
	}
	return m
}

func (v *view) takeOurs(h *Host) {
	for id, m := range v.own {
		if !v.has(m) {
			continue
		}
		if m.FSType == "btrfs" {
			v.anonymous[devno{uint32(m.Major), uint32(m.Minor)}] = true
		}
		if filepath.Dir(m.Mountpoint) == h.published || filepath.Dir(m.Mountpoint) == h.staging {
			v.ours[id] = m
		}
	}
}

// has tells whether a mount, of whichever namespace, is of the device's file system. The source of a btrfs is the
// kernel's path of its device, the same in every namespace.
func (v *view) has(m *mountinfo.Info) bool {
	n := devno{uint32(m.Major), uint32(m.Minor)}
	if m.FSType != "btrfs" {
		return n == devno{v.dev.Major, v.dev.Minor}
	}
	base := filepath.Base(m.Source)
	return v.anonymous[n] || base == v.name || base == v.dev.Name
}

// remains tells whether a mount would be left after ours are unmounted.
func (v *view) remains() bool {
	reached := v.reachedGroups()
	for _, ns := range v.namespaces {
		for _, m := range ns {
			if v.has(m) && v.ours[m.ID] == nil && !v.goesWithOurs(ns, m, reached) {
				return true
			}
		}
	}
	return false
}

// reachedGroups are the peer groups to which an unmount of ours propagates: that of the mount on which ours is, the slaves
// of it that are groups themselves, and so on.
func (v *view) reachedGroups() map[string]bool {
	reached := map[string]bool{}
	for _, m := range v.ours {
		if parent := v.own[m.Parent]; parent != nil {
			if shared, _ := propagation(parent); shared != "" {
				reached[shared] = true
			}
		}
	}
	for grown := true; grown; {
		grown = false
		for _, ns := range v.namespaces {
			for _, m := range ns {
				if shared, master := propagation(m); shared != "" && !reached[shared] && reached[master] {
					reached[shared], grown = true, true
				}
			}
		}
	}
	return reached
}

// goesWithOurs tells whether the kernel unmounts m when it unmounts ours: m is on a mount to which the unmount propagates,
// at the same place of it, and nothing is mounted on m (Linux, Documentation/filesystems/sharedsubtree.rst).
func (v *view) goesWithOurs(ns map[int]*mountinfo.Info, m *mountinfo.Info, reached map[string]bool) bool {
	parent := ns[m.Parent]
	if parent == nil {
		return false
	}
	if shared, master := propagation(parent); !reached[shared] && !reached[master] {
		return false
	}
	for _, child := range ns {
		if child.Parent == m.ID {
			return false
		}
	}
	for _, our := range v.ours {
		if on := v.own[our.Parent]; on != nil && on.Major == parent.Major && on.Minor == parent.Minor && place(on, our) == place(parent, m) {
			return true
		}
	}
	return false
}

// place returns where in the parent's file system a mount is.
func place(parent, m *mountinfo.Info) string {
	return filepath.Join(parent.Root, strings.TrimPrefix(m.Mountpoint, parent.Mountpoint))
}

// propagation reads the optional fields of a mount table's line: the group of peers that it is in, and the group that it
// receives from. Either is "" for none.
func propagation(m *mountinfo.Info) (shared, master string) {
	for field := range strings.FieldsSeq(m.Optional) {
		switch key, group, _ := strings.Cut(field, ":"); key {
		case "shared":
			shared = group
		case "master":
			master = group
		}
	}
	return shared, master
}

// readNamespaces adds the mount namespaces of all processes in which the file system is mounted. It is complete if no
// process is hidden.
func (h *Host) readNamespaces(ctx context.Context, v *view) (complete bool, err error) {
	dir, err := os.Open(h.proc)
	if err != nil {
		return false, fmt.Errorf("the processes of this node cannot be listed: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false, fmt.Errorf("the processes of this node cannot be listed: %w", err)
	}
	// With hidepid, the processes of others are not listed; the first to be missed is the best protected.
	complete = slices.Contains(names, "1")
	seen := map[string]bool{}
	for _, pid := range names {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		// Which namespace it is takes more privileges to know than what is mounted there; it only saves reading it again.
		ns, _ := os.Readlink(filepath.Join(h.proc, pid, "ns/mnt"))
		if seen[ns] {
			continue
		}
		table, err := os.ReadFile(filepath.Join(h.proc, pid, "mountinfo"))
		if errors.Is(err, unix.EINVAL) { // its main thread has ended; others may go on
			table, err = firstReadable(filepath.Join(h.proc, pid, "task/*/mountinfo"))
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue // it has ended, or is about to
		}
		if err != nil {
			complete = false
			continue
		}
		seen[ns] = ns != ""
		if !v.mentionedIn(table) {
			continue
		}
		mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), nil)
		if err != nil {
			return false, fmt.Errorf("the mount table of process %s cannot be understood: %w", pid, err)
		}
		v.namespaces = append(v.namespaces, byID(mounts))
	}
	return complete, nil
}

// mentionedIn tells, quickly and generously, whether a mount table may have the file system.
func (v *view) mentionedIn(table []byte) bool {
	if bytes.Contains(table, fmt.Appendf(nil, " %d:%d ", v.dev.Major, v.dev.Minor)) {
		return true
	}
	return bytes.Contains(table, []byte(" btrfs ")) && (bytes.Contains(table, []byte("/"+v.name)) || bytes.Contains(table, []byte("/"+v.dev.Name)) || len(v.anonymous) > 0)
}

func firstReadable(pattern string) (content []byte, err error) {
	err = fs.ErrNotExist
	files, _ := filepath.Glob(pattern)
	for _, file := range files {
		if content, err = os.ReadFile(file); err == nil {
			return content, nil
		}
	}
	return nil, err
}
