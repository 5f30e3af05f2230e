package mount

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// User is a container that has a volume's file system mounted, or a process that is in no container. All fields are zero if it is not
// known who it is.
type User struct {
	Container string // its id
	PID       int    // of the process, or of the container's first one, in Config.Proc; 0 if it has ended meanwhile
	Command   string // the name of the process
	Path      string // where it has the file system mounted
}

// String is a User in words: "container 0123456789ab", "process 4711 (postgres)".
func (u User) String() string {
	switch {
	case u.Container != "":
		return "container " + u.Container[:min(len(u.Container), 12)] // as Docker prints it
	case u.PID == 1:
		return "the host itself (at " + u.Path + ")"
	case u.PID != 0:
		return fmt.Sprintf("process %d (%s)", u.PID, u.Command)
	case u.Path != "":
		return "a process that has ended meanwhile"
	}
	return "something that cannot be identified"
}

// words name the process of a User: "process 4711 (cadvisor, of container 0123456789ab)".
func (u User) words() string {
	switch {
	case u.Container == "" && u.PID == 1:
		return "the host itself"
	case u.Container == "" || u.PID == 0:
		return u.String()
	}
	return fmt.Sprintf("process %d (%s, of %s)", u.PID, u.Command, User{Container: u.Container})
}

// Users are those of a volume.
type Users []User

// namedUsers is how many Users are named in a sentence.
const namedUsers = 3

// String is Users in words.
func (all Users) String() string {
	if len(all) == 0 {
		return "nothing"
	}
	var words []string
	for _, u := range all[:min(len(all), namedUsers)] {
		words = append(words, u.String())
	}
	if more := len(all) - namedUsers; more > 0 {
		words = append(words, fmt.Sprintf("%d more", more))
	}
	return strings.Join(words, " and ")
}

// identify returns who has the mounts that are not copies, each once, sorted.
func (h *Host) identify(others []otherMount) (all Users) {
	type seen struct {
		container string
		pid       int
	}
	found, began := map[seen]User{}, map[seen]uint64{}
	for _, m := range others {
		if m.isCopy {
			continue
		}
		u, at := h.userOf(m)
		who := seen{container: u.Container}
		if u.Container == "" {
			who.pid = u.PID
		}
		// Of the processes of a container that see different mounts, the oldest stands for it.
		if _, has := found[who]; !has || at < began[who] {
			found[who], began[who] = u, at
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b User) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.PID, b.PID))
	})
}

// userOf tells whose a mount is, and when that began: that of the oldest process that sees it. Others may have entered the container's
// namespace from outside, or left their own.
func (h *Host) userOf(m otherMount) (u User, began uint64) {
	p := h.oldest(m.in)
	return User{Container: p.container, PID: p.pid, Command: p.command, Path: m.path}, p.began
}

// process is a process as a user is described by it. It is zero if there is none any more.
type process struct {
	pid       int
	began     uint64 // in ticks since the machine's start
	command   string
	container string
}

// oldest returns the oldest process of those with one mount table. It looks once, since many volumes may be in one table.
func (h *Host) oldest(in *readers) process {
	in.once.Do(func() {
		for _, pid := range in.pids {
			if p, running := h.process(pid); running && (in.oldest.pid == 0 || p.began < in.oldest.began) {
				in.oldest = p
			}
		}
		if in.oldest.pid != 0 {
			in.oldest.container = h.containerOf(in.oldest.pid)
		}
	})
	return in.oldest
}

// process reads of a process what it runs and since when. Source: proc_pid_stat(5).
func (h *Host) process(pid string) (p process, running bool) {
	stat, err := os.ReadFile(filepath.Join(h.proc, pid, "stat"))
	if err != nil {
		return p, false
	}
	// The command may have anything in it, parentheses too.
	open, closed := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || closed < open {
		return p, false
	}
	fields := strings.Fields(string(stat[closed+1:]))
	if len(fields) < 20 {
		return p, false
	}
	p.command = string(stat[open+1 : closed])
	p.began, err = strconv.ParseUint(fields[19], 10, 64)
	if err == nil {
		p.pid, err = strconv.Atoi(pid)
	}
	return p, err == nil
}

func (h *Host) containerOf(pid int) string {
	// A process that has ended is in no container.
	cgroups, _ := os.ReadFile(filepath.Join(h.proc, strconv.Itoa(pid), "cgroup"))
	own, _ := os.ReadFile("/proc/self/cgroup") // if it cannot be read, no container is left out
	return containerOf(cgroups, own)
}

// containerID is that of an engine's container, in an element of a control group's path: "0123…", "docker-0123….scope".
var containerID = regexp.MustCompile(`(?:^|[^0-9a-f])([0-9a-f]{64})(?:$|[^0-9a-f])`)

// containerOf returns the container of a process, "" if there is none, by its /proc/PID/cgroup. That has a line for each hierarchy of
// version 1 and one for version 2, with the path of a group, as the engine's cgroup driver and its parent group make it. A container
// in a container is the outer one here, which this machine's engine knows. But the containers that this process itself is in, by
// own, have the engine in them, too.
func containerOf(cgroups, own []byte) string {
	for line := range bytes.Lines(cgroups) {
		_, path, _ := bytes.Cut(line, []byte(":/"))
		for element := range bytes.SplitSeq(bytes.TrimSpace(path), []byte("/")) {
			if id := containerID.FindSubmatch(element); id != nil && !bytes.Contains(own, id[1]) {
				return string(id[1])
			}
		}
	}
	return ""
}
