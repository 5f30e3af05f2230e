package mount

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
)

// Users tells who would still have the volume's file system mounted on this machine after Unstage, and after Unbind of the targets:
// the containers and processes that have it in a mount namespace, each container once. Copies of the staged mount and of those at
// the targets, which the kernel makes when it copies the whole tree around them, do not count: they disappear with their directories,
// and Busy finds a process that works in one. If the file system is not mounted at all, whatever else uses its device counts.
//
// The volume is in use if Users returns any. If it cannot be found out whether it is, there is one that is not known: if Config.Proc
// hides processes, or the device is busy though no mount shows it. A process in a PID namespace beside that of Config.Proc is not
// seen, so Config.Proc must be the whole machine's.
//
// Concurrent calls share one pass over the mount tables, which begins after each of the calls.
func (h *Host) Users(ctx context.Context, disk Device, targets ...string) (Users, error) {
	top, err := h.topOf(disk)
	if err != nil {
		return nil, err
	}
	q := query{disk: diskOf(disk), top: diskOf(top), targets: strings.Join(h.canonicalTargets(targets), "\x00")}
	all, err := h.mounts.get(ctx, q)
	if err != nil {
		return nil, err
	}
	unknown := Users{{}}
	switch of := all.of[q]; {
	case of != nil && of.used:
		return h.identify(of.others), nil
	case !all.complete:
		return unknown, nil
	case of != nil && (len(of.ours) > 0 || len(of.others) > 0):
		return nil, nil
	}
	release, free := h.claims.forProbe(disk.number().String())
	if !free {
		return unknown, nil
	}
	defer release()
	busy, err := isBusy(top)
	if err == nil && busy {
		return unknown, nil
	}
	return nil, err
}

// query asks for the mounts of a volume's file system.
type query struct {
	disk, top diskID
	targets   string // as in mount tables, separated by NUL
}

// diskID is how mount tables name a device.
type diskID struct {
	devno
	name string
}

func diskOf(dev Device) diskID { return diskID{dev.number(), dev.Name} }

// mounts are those of some volumes' file systems on this machine.
type mounts struct {
	complete bool // no process was hidden
	of       map[query]*volumeMounts
}

// volumeMounts are the mounts of one volume's file system.
type volumeMounts struct {
	ours   map[int]bool // the IDs of the mounts that Unstage and Unbind unmount
	used   bool         // there is a mount that is neither ours nor a copy of ours
	others []otherMount // that are not ours; of copies of ours a few
}

// otherMount is a mount in one mount table.
type otherMount struct {
	in     *readers
	path   string
	isCopy bool // of one of ours
}

// readers are the processes whose mount tables are the same one, by their PIDs.
type readers struct {
	pids []string
	own  bool // this process is one of them

	once   sync.Once
	oldest process // of them; set by once
}

// collector collects the mounts of some volumes from mount tables.
type collector struct {
	mounts
	numbers   map[devno][]query
	texts     map[string]bool    // the keys of numbers, as in mount tables: a table without any of them is not taken apart
	names     map[string][]query // by the devices' names, for btrfs, whose mounts have numbers of their own
	published location
	targets   map[query][]location
}

// location is a directory: its file system, and its path in that. It is the same in every mount namespace.
type location struct {
	number devno
	path   string
}

// newCollector returns a collector that has no table yet. own is the one of this process.
func (h *Host) newCollector(queries map[query]bool, own []*mountinfo.Info) *collector {
	c := &collector{
		mounts:  mounts{of: make(map[query]*volumeMounts, len(queries))},
		numbers: make(map[devno][]query, len(queries)), texts: make(map[string]bool, len(queries)), names: make(map[string][]query, 2*len(queries)),
		published: locate(own, h.published), targets: map[query][]location{},
	}
	targets := map[query][]string{}
	for q := range queries {
		c.of[q] = &volumeMounts{ours: map[int]bool{}}
		c.addDevice(q, q.disk)
		if q.top != q.disk {
			c.addDevice(q, q.top)
		}
		if q.targets != "" {
			targets[q] = strings.Split(q.targets, "\x00")
		}
		for _, target := range targets[q] {
			parent := locate(own, filepath.Dir(target))
			c.targets[q] = append(c.targets[q], location{parent.number, filepath.Join(parent.path, filepath.Base(target))})
		}
	}
	for _, m := range own {
		queries := c.queriesOf(m)
		if m.FSType == "btrfs" && len(queries) > 0 {
			c.numbers[numberOf(m)] = queries
			c.texts[numberOf(m).String()] = true
		}
		dir := filepath.Dir(m.Mountpoint)
		for _, q := range queries {
			if dir == h.published || dir == h.scratch || slices.Contains(targets[q], m.Mountpoint) {
				c.of[q].ours[m.ID] = true
			}
		}
	}
	return c
}

func (c *collector) addDevice(q query, d diskID) {
	c.numbers[d.devno] = append(c.numbers[d.devno], q)
	c.texts[d.String()] = true
	c.names[d.name] = append(c.names[d.name], q)
	if name := kernelName(d.devno); name != "" && name != d.name {
		c.names[name] = append(c.names[name], q)
	}
}

// queriesOf returns the queries for the volume whose file system is mounted there. The source of a btrfs is the kernel's path of
// its device, which is the same in every namespace.
func (c *collector) queriesOf(m *mountinfo.Info) []query {
	queries, ok := c.numbers[numberOf(m)]
	if !ok && m.FSType == "btrfs" {
		queries = c.names[filepath.Base(m.Source)]
	}
	return queries
}

// addTable adds the mounts in a mount table.
func (c *collector) addTable(in *readers, table []*mountinfo.Info) {
	byID, covered := make(map[int]*mountinfo.Info, len(table)), make(map[int]bool, len(table))
	for _, m := range table {
		byID[m.ID], covered[m.Parent] = m, true
	}
	for _, m := range table {
		for _, q := range c.queriesOf(m) {
			of := c.of[q]
			if of.ours[m.ID] {
				continue
			}
			isCopy := !covered[m.ID] && c.isCopy(m, byID[m.Parent], q)
			of.used = of.used || !isCopy
			if !isCopy || len(of.others) < namedUsers {
				of.others = append(of.others, otherMount{in, m.Mountpoint, isCopy})
			}
		}
	}
}

// isCopy tells whether a mount is a copy of the staged one or of one at a target: it has the same location, by whatever path. The
// kernel makes such copies with a new mount namespace or a recursive bind mount. A container has its volume mounted at a
// directory of its own.
func (c *collector) isCopy(m, parent *mountinfo.Info, q query) bool {
	if parent == nil || m.Root != "/" && m.Root != "/"+dataDir {
		return false
	}
	at := locationIn(parent, m.Mountpoint)
	if slices.Contains(c.targets[q], at) {
		return true
	}
	at.path = filepath.Dir(at.path)
	return at == c.published
}

// locate returns the location of a directory, according to a mount table.
func locate(table []*mountinfo.Info, dir string) location {
	m := mountAround(table, dir)
	if m == nil {
		return location{}
	}
	return locationIn(m, dir)
}

// mountAround returns the mount that a path is in: of several at one place the last, which is on top. It is nil if there is none.
func mountAround(table []*mountinfo.Info, path string) (around *mountinfo.Info) {
	for _, m := range table {
		if within(m.Mountpoint, path) && (around == nil || len(m.Mountpoint) >= len(around.Mountpoint)) {
			around = m
		}
	}
	return around
}

// locationIn returns the location of a path under a mount.
func locationIn(m *mountinfo.Info, path string) location {
	return location{numberOf(m), filepath.Join(m.Root, strings.TrimPrefix(path, m.Mountpoint))}
}

func numberOf(m *mountinfo.Info) devno { return devno{uint32(m.Major), uint32(m.Minor)} }
