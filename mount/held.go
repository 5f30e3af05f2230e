package mount

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
			return fmt.Errorf("%w: device %s is still held on this node by %s: %w", ErrBusy, dev.Path, h.whoHolds(dev), context.Cause(ctx))
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

// InUse tells whether the device's file system would still be mounted somewhere on this machine after Unstage: in a
// container, or any other mount namespace. Copies of the published mount, as they come with a copy of the whole tree around
// it, do not count: they go with the published directory, and a process that works in one is found by Held. If there is
// neither, whatever else holds the device counts too.
//
// What cannot be told counts as use: processes that Config.Proc hides, a file system held by no mount that it shows.
// A process in another PID namespace than that of Config.Proc is not seen, so this must be the whole machine's.
//
// Calls that come together share one look at the machine, which begins after each of them.
func (h *Host) InUse(ctx context.Context, dev Device) (bool, error) {
	seen, err := h.mounts.get(ctx, diskOf(dev))
	if err != nil {
		return true, err
	}
	switch of := seen.of[diskOf(dev)]; {
	case of != nil && of.used, !seen.complete:
		return true, nil
	case of != nil && (of.ours || len(of.holders) > 0):
		return false, nil
	}
	return h.Held(dev)
}

// diskID is a device as mount tables have it.
type diskID struct {
	devno
	name string
}

func diskOf(dev Device) diskID { return diskID{devno{dev.Major, dev.Minor}, dev.Name} }

// mounts are those of some disks' file systems on this machine.
type mounts struct {
	complete bool // no process was hidden
	of       map[diskID]*usage
}

// usage is who has one file system mounted.
type usage struct {
	ours    bool     // something is mounted that Unstage unmounts
	used    bool     // and something that is neither that nor a copy of it
	holders []holder // of what is not ours, some of many
}

// holder is a process that sees a mount, and where.
type holder struct{ pid, at string }

// mountsOf looks at the mounts of all processes.
func (h *Host) mountsOf(devices map[diskID]bool) (*mounts, error) {
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	v := h.newView(devices, own)
	dir, err := os.Open(h.proc)
	if err != nil {
		return nil, fmt.Errorf("the processes of this node cannot be listed: %w", err)
	}
	defer dir.Close()
	pids, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("the processes of this node cannot be listed: %w", err)
	}
	// With hidepid, the processes of others are not listed; the first to be missed is the best protected.
	v.complete = slices.Contains(pids, "1")
	tables := tableReader{beginnings: map[uint64]bool{}, seed: maphash.MakeSeed()}
	for _, pid := range pids {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		table, err := tables.read(filepath.Join(h.proc, pid))
		if err != nil {
			v.complete = false
			continue
		}
		if !v.mentionedIn(table) {
			continue
		}
		found, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), nil)
		if err != nil {
			return nil, fmt.Errorf("the mount table of process %s cannot be understood: %w", pid, err)
		}
		v.take(pid, found)
	}
	return &v.mounts, nil
}

// tableReader reads the mount tables of processes, each but once. A table has the mounts of a namespace that can be reached from
// the process's root, and its first lines tell both: an id is of one mount on the machine, and a path is from the root.
type tableReader struct {
	beginnings map[uint64]bool
	seed       maphash.Seed
	table      bytes.Buffer
}

// beginning is as much of a table as has a few lines.
const beginning = 1 << 10

// read returns the mount table of a process, until the next read. It is empty if it was read before, and if the process has
// ended or is about to.
func (r *tableReader) read(process string) ([]byte, error) {
	f, err := os.Open(filepath.Join(process, "mountinfo"))
	if errors.Is(err, unix.EINVAL) { // its main thread has ended; others may go on
		err = fs.ErrNotExist
		threads, _ := filepath.Glob(filepath.Join(process, "task/*/mountinfo"))
		for i := 0; i < len(threads) && err != nil; i++ {
			f, err = os.Open(threads[i])
		}
	}
	if err == nil {
		defer f.Close()
		r.table.Reset()
		_, err = io.CopyN(&r.table, f, beginning)
		if err == nil || errors.Is(err, io.EOF) {
			sum := maphash.Bytes(r.seed, r.table.Bytes())
			if r.beginnings[sum] {
				return nil, nil
			}
			_, err = r.table.ReadFrom(f)
			r.beginnings[sum] = err == nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	return r.table.Bytes(), err
}

// view gathers the mounts of some devices' file systems.
type view struct {
	mounts
	numbers   map[string]diskID // by "major:minor", as it stands in mount tables
	names     map[string]diskID // by the kernel's name, for btrfs, whose mounts have numbers of their own
	ours      map[int]bool      // what Unstage unmounts, by mount ID
	published spot
}

// spot is a directory, by its file system and where in that it is: so it is the same in every namespace.
type spot struct{ number, path string }

func numberOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

func (h *Host) newView(devices map[diskID]bool, own []*mountinfo.Info) *view {
	v := &view{
		mounts:  mounts{of: make(map[diskID]*usage, len(devices))},
		numbers: make(map[string]diskID, len(devices)), names: make(map[string]diskID, 2*len(devices)), ours: map[int]bool{},
	}
	for d := range devices {
		v.of[d] = &usage{}
		v.numbers[fmt.Sprintf("%d:%d", d.major, d.minor)] = d
		v.names[d.name], v.names[cmp.Or(kernelName(d.devno), d.name)] = d, d
	}
	var around *mountinfo.Info // the mount that the published directory is in
	for _, m := range own {
		if within(m.Mountpoint, h.published) && (around == nil || len(m.Mountpoint) >= len(around.Mountpoint)) {
			around, v.published = m, spotOf(m, h.published)
		}
		dev, ok := v.deviceOf(m)
		if !ok {
			continue
		}
		if m.FSType == "btrfs" {
			v.numbers[numberOf(m)] = dev
		}
		if dir := filepath.Dir(m.Mountpoint); dir == h.published || dir == h.scratch {
			v.ours[m.ID], v.of[dev].ours = true, true
		}
	}
	v.take("self", own)
	return v
}

// spotOf returns where a path under a mount is.
func spotOf(m *mountinfo.Info, path string) spot {
	return spot{numberOf(m), filepath.Join(m.Root, strings.TrimPrefix(path, m.Mountpoint))}
}

// deviceOf returns the device whose file system a mount is of. The source of a btrfs is the kernel's path of its device, the
// same in every namespace.
func (v *view) deviceOf(m *mountinfo.Info) (diskID, bool) {
	dev, ok := v.numbers[numberOf(m)]
	if !ok && m.FSType == "btrfs" {
		dev, ok = v.names[filepath.Base(m.Source)]
	}
	return dev, ok
}

// take adds what a mount table has.
func (v *view) take(pid string, table []*mountinfo.Info) {
	byID, covered := make(map[int]*mountinfo.Info, len(table)), make(map[int]bool, len(table))
	for _, m := range table {
		byID[m.ID], covered[m.Parent] = m, true
	}
	for _, m := range table {
		dev, ok := v.deviceOf(m)
		if !ok || v.ours[m.ID] {
			continue
		}
		of := v.of[dev]
		if covered[m.ID] || !v.isCopy(m, byID[m.Parent]) {
			of.used = true
		}
		if len(of.holders) < 3 {
			of.holders = append(of.holders, holder{pid, m.Mountpoint})
		}
	}
}

// isCopy tells whether a mount is a copy of a published one: it is in the published directory, by whatever path that is seen.
// The kernel makes such copies with a copy of what is around, as a new namespace or a recursive bind mount. A container has its
// volume bound to a directory of its own.
func (v *view) isCopy(m, parent *mountinfo.Info) bool {
	if parent == nil || m.Root != "/" && m.Root != "/"+dataDir {
		return false
	}
	at := spotOf(parent, m.Mountpoint)
	at.path = filepath.Dir(at.path)
	return at == v.published
}

// mentionedIn tells, quickly and generously, whether a mount table may have one of the file systems.
func (v *view) mentionedIn(table []byte) bool {
	for line := range bytes.Lines(table) {
		fields := line
		for range 2 {
			_, fields, _ = bytes.Cut(fields, []byte(" "))
		}
		n, _, _ := bytes.Cut(fields, []byte(" "))
		if _, ok := v.numbers[string(n)]; ok {
			return true
		}
		if _, rest, ok := bytes.Cut(line, []byte(" - btrfs ")); ok {
			source, _, _ := bytes.Cut(rest, []byte(" "))
			if _, ok := v.names[string(source[bytes.LastIndexByte(source, '/')+1:])]; ok {
				return true
			}
		}
	}
	return false
}

// whoHolds names the processes that have the device's file system mounted, or work in it by a mount that is gone.
func (h *Host) whoHolds(dev Device) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // the caller's has ended
	defer cancel()
	var who []string
	if seen, err := h.mounts.get(ctx, diskOf(dev)); err == nil {
		for _, by := range seen.of[diskOf(dev)].holders {
			who = append(who, h.describe(by.pid)+", which has it mounted at "+by.at)
		}
	}
	if len(who) == 0 {
		who = h.workingIn(ctx, devno{dev.Major, dev.Minor})
	}
	if len(who) == 0 {
		return "a process or a program that does not show it"
	}
	return strings.Join(who, " and ") + "; stop it"
}

// workingIn names some processes whose root, directory or open files are on a file system. Those of other users and with more
// capabilities do not tell.
func (h *Host) workingIn(ctx context.Context, fs devno) (who []string) {
	processes, _ := filepath.Glob(filepath.Join(h.proc, "[0-9]*"))
	for _, process := range processes {
		if len(who) == 3 || ctx.Err() != nil {
			break
		}
		files, _ := filepath.Glob(filepath.Join(process, "fd/*"))
		if slices.ContainsFunc(append(files, process+"/cwd", process+"/root"), func(file string) bool {
			var st unix.Statx_t // as the kernel knows it: a file server may be away
			err := unix.Statx(unix.AT_FDCWD, file, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
			return err == nil && st.Dev_major == fs.major && st.Dev_minor == fs.minor
		}) {
			who = append(who, h.describe(filepath.Base(process))+", which works in it or has a file of it open")
		}
	}
	return who
}

var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// describe names a process for people: "process 4711 (cadvisor, of container 0123456789ab)".
func (h *Host) describe(pid string) string {
	command, _ := os.ReadFile(filepath.Join(h.proc, pid, "comm"))
	text := "process " + pid + " (" + strings.TrimSpace(string(command))
	cgroups, _ := os.ReadFile(filepath.Join(h.proc, pid, "cgroup"))
	if id := containerID.Find(cgroups); id != nil {
		text += ", of container " + string(id[:12])
	}
	return text + ")"
}
