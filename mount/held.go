package mount

import (
	"bytes"
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

// Held tells whether anything in this machine's kernel holds the disk or its top: a file system mounted in whichever mount
// namespace, visible to this process or not, also of a device that was pulled; swap, device-mapper, md or another
// program's exclusive open; or a call of this Host that works on it. Detach only what is not held.
func (h *Host) Held(disk Device) (bool, error) {
	release, free := h.claims.forProbe(disk.number().String())
	if !free {
		return true, nil
	}
	defer release()
	top, err := h.topOf(disk)
	if err != nil {
		return true, err
	}
	held, err := h.kernelHolds(disk)
	if err != nil || held || top == disk {
		return held, err
	}
	return h.kernelHolds(top)
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
func (h *Host) WaitFree(ctx context.Context, disk Device) error {
	wait := 5 * time.Millisecond
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		held, err := h.Held(disk)
		if err != nil || !held {
			return err
		}
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: device %s is still held on this node by %s: %w", ErrBusy, disk.Path, h.whoHolds(disk), context.Cause(ctx))
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

// InUse tells whether the volume's file system would still be mounted somewhere on this machine after Unstage, and Unbind of
// the targets: in a container, or any other mount namespace. Copies of the staged mount and of those at the targets, as they
// come with a copy of the whole tree around them, do not count: they go with their directories, and a process that works in
// one is found by Held. If there is neither, whatever else holds the file system's device counts too.
//
// What cannot be told counts as use: processes that Config.Proc hides, a file system held by no mount that it shows.
// A process in another PID namespace than that of Config.Proc is not seen, so this must be the whole machine's.
//
// Calls that come together share one look at the machine, which begins after each of them.
func (h *Host) InUse(ctx context.Context, disk Device, targets ...string) (bool, error) {
	top, err := h.topOf(disk)
	if err != nil {
		return true, err
	}
	q := query{disk: diskOf(disk), top: diskOf(top), targets: strings.Join(h.canonicalTargets(targets), "\x00")}
	seen, err := h.mounts.get(ctx, q)
	if err != nil {
		return true, err
	}
	switch of := seen.of[q]; {
	case of != nil && of.used, !seen.complete:
		return true, nil
	case of != nil && (len(of.ours) > 0 || len(of.holders) > 0):
		return false, nil
	}
	release, free := h.claims.forProbe(disk.number().String())
	if !free {
		return true, nil
	}
	defer release()
	return h.kernelHolds(top)
}

// query asks for the mounts of a volume's file system.
type query struct {
	disk, top diskID
	targets   string // as mount tables have them, separated by NUL
}

// diskID is a device as mount tables have it.
type diskID struct {
	devno
	name string
}

func diskOf(dev Device) diskID { return diskID{dev.number(), dev.Name} }

// mounts are those of some volumes' file systems on this machine.
type mounts struct {
	complete bool // no process was hidden
	of       map[query]*usage
}

// usage is who has one file system mounted.
type usage struct {
	ours    map[int]bool // the mounts that Unstage and Unbind unmount, by id
	used    bool         // there is a mount that is neither one of these nor a copy of one
	holders []holder     // of what is not ours, some of many
}

// holder is a process that sees a mount, and where.
type holder struct{ pid, at string }

// mountsOf looks at the mounts of all processes.
func (h *Host) mountsOf(queries map[query]bool) (*mounts, error) {
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	v := h.newView(queries, own)
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

// view gathers the mounts of some volumes' file systems.
type view struct {
	mounts
	numbers   map[string][]query // by the devices' "major:minor", as it stands in mount tables
	names     map[string][]query // by the devices' names, for btrfs, whose mounts have numbers of their own
	published location
	targets   map[query][]location
}

// location is a directory, by its file system and where in that it is: so it is the same in every namespace.
type location struct{ number, path string }

func numberOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

func (h *Host) newView(queries map[query]bool, own []*mountinfo.Info) *view {
	v := &view{
		mounts:  mounts{of: make(map[query]*usage, len(queries))},
		numbers: make(map[string][]query, len(queries)), names: make(map[string][]query, 2*len(queries)),
		published: locate(own, h.published), targets: map[query][]location{},
	}
	targets := map[query][]string{}
	for q := range queries {
		v.of[q] = &usage{ours: map[int]bool{}}
		v.add(q, q.disk)
		if q.top != q.disk {
			v.add(q, q.top)
		}
		if q.targets != "" {
			targets[q] = strings.Split(q.targets, "\x00")
		}
		for _, target := range targets[q] {
			dir := locate(own, filepath.Dir(target))
			v.targets[q] = append(v.targets[q], location{dir.number, filepath.Join(dir.path, filepath.Base(target))})
		}
	}
	for _, m := range own {
		queries := v.queriesOf(m)
		if m.FSType == "btrfs" && len(queries) > 0 {
			v.numbers[numberOf(m)] = queries
		}
		dir := filepath.Dir(m.Mountpoint)
		for _, q := range queries {
			if dir == h.published || dir == h.scratch || slices.Contains(targets[q], m.Mountpoint) {
				v.of[q].ours[m.ID] = true
			}
		}
	}
	v.take("self", own)
	return v
}

func (v *view) add(q query, d diskID) {
	v.numbers[d.devno.String()] = append(v.numbers[d.devno.String()], q)
	v.names[d.name] = append(v.names[d.name], q)
	if name := kernelName(d.devno); name != "" && name != d.name {
		v.names[name] = append(v.names[name], q)
	}
}

// locate returns where a directory is, by a mount table.
func locate(table []*mountinfo.Info, dir string) location {
	var around *mountinfo.Info // the mount that the directory is in; the later one is on top of the earlier
	for _, m := range table {
		if within(m.Mountpoint, dir) && (around == nil || len(m.Mountpoint) >= len(around.Mountpoint)) {
			around = m
		}
	}
	if around == nil {
		return location{}
	}
	return locationIn(around, dir)
}

// locationIn returns where a path under a mount is.
func locationIn(m *mountinfo.Info, path string) location {
	return location{numberOf(m), filepath.Join(m.Root, strings.TrimPrefix(path, m.Mountpoint))}
}

// queriesOf returns the queries for the volume whose file system a mount is of. The source of a btrfs is the kernel's path of its
// device, the same in every namespace.
func (v *view) queriesOf(m *mountinfo.Info) []query {
	queries, ok := v.numbers[numberOf(m)]
	if !ok && m.FSType == "btrfs" {
		queries = v.names[filepath.Base(m.Source)]
	}
	return queries
}

// take adds what a mount table has.
func (v *view) take(pid string, table []*mountinfo.Info) {
	byID, covered := make(map[int]*mountinfo.Info, len(table)), make(map[int]bool, len(table))
	for _, m := range table {
		byID[m.ID], covered[m.Parent] = m, true
	}
	for _, m := range table {
		for _, q := range v.queriesOf(m) {
			of := v.of[q]
			if of.ours[m.ID] {
				continue
			}
			if covered[m.ID] || !v.isCopy(m, byID[m.Parent], q) {
				of.used = true
			}
			if len(of.holders) < 3 {
				of.holders = append(of.holders, holder{pid, m.Mountpoint})
			}
		}
	}
}

// isCopy tells whether a mount is a copy of the staged one or of one at a target: it is at the same place, by whatever path that is
// seen. The kernel makes such copies with a copy of what is around, as a new namespace or a recursive bind mount. A container has
// its volume bound to a directory of its own.
func (v *view) isCopy(m, parent *mountinfo.Info, q query) bool {
	if parent == nil || m.Root != "/" && m.Root != "/"+dataDir {
		return false
	}
	at := locationIn(parent, m.Mountpoint)
	if slices.Contains(v.targets[q], at) {
		return true
	}
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

// whoHolds names the processes that have the volume's file system mounted, or work in it by a mount that is gone.
func (h *Host) whoHolds(disk Device) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // the caller's has ended
	defer cancel()
	var who []string
	top, err := h.topOf(disk)
	if err != nil {
		top = disk
	}
	q := query{disk: diskOf(disk), top: diskOf(top)}
	if seen, err := h.mounts.get(ctx, q); err == nil {
		for _, by := range seen.of[q].holders {
			who = append(who, h.describe(by.pid)+", which has it mounted at "+by.at)
		}
	}
	if len(who) == 0 {
		who = h.workingIn(ctx, top.number())
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
	if pid == "self" {
		return "blockvol itself"
	}
	command, _ := os.ReadFile(filepath.Join(h.proc, pid, "comm"))
	text := "process " + pid + " (" + strings.TrimSpace(string(command))
	cgroups, _ := os.ReadFile(filepath.Join(h.proc, pid, "cgroup"))
	if id := containerID.Find(cgroups); id != nil {
		text += ", of container " + string(id[:12])
	}
	return text + ")"
}
