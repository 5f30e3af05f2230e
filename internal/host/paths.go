package host

import (
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Paths translates paths of this process into those of the machine, for words that an operator reads: a managed plugin sees the
// host's directories at other places than the host.
type Paths struct{ replacer *strings.Replacer }

// NewPaths makes Paths for these directories. proc is the machine's /proc. A directory whose place on the machine cannot be told
// keeps its name, and so do all in a process that sees what the machine sees.
func NewPaths(proc string, dirs ...string) Paths {
	own, err := mountinfo.GetMounts(nil)
	init := filepath.Join(proc, "1")
	if err != nil || sameNamespace(init) {
		return Paths{}
	}
	table, err := os.Open(filepath.Join(init, "mountinfo"))
	if err != nil {
		return Paths{}
	}
	defer table.Close()
	machine, err := mountinfo.GetMountsFromReader(table, nil)
	if err != nil {
		return Paths{}
	}
	var pairs []string
	for _, dir := range dirs {
		if there := translate(dir, own, machine); there != "" {
			pairs = append(pairs, dir, there)
		}
	}
	return Paths{strings.NewReplacer(pairs...)}
}

func sameNamespace(process string) bool {
	own, err := os.Readlink("/proc/self/ns/mnt")
	other, otherErr := os.Readlink(filepath.Join(process, "ns/mnt"))
	return err == nil && otherErr == nil && own == other
}

// translate returns where the machine sees a directory, "" if that cannot be told: in the mount of the same file system that begins
// closest to the directory.
func translate(dir string, own, machine []*mountinfo.Info) string {
	around := longest(own, func(m *mountinfo.Info) string { return m.Mountpoint }, dir)
	if around == nil {
		return ""
	}
	path := filepath.Join(around.Root, strings.TrimPrefix(dir, around.Mountpoint)) // in the file system
	var same []*mountinfo.Info
	for _, m := range machine {
		if m.Major == around.Major && m.Minor == around.Minor {
			same = append(same, m)
		}
	}
	there := longest(same, func(m *mountinfo.Info) string { return m.Root }, path)
	if there == nil {
		return ""
	}
	return filepath.Join(there.Mountpoint, strings.TrimPrefix(path, there.Root))
}

// longest returns the mount of which place is path or the nearest directory above it; the last of several, which covers the others.
func longest(mounts []*mountinfo.Info, place func(*mountinfo.Info) string, path string) (found *mountinfo.Info) {
	for _, m := range mounts {
		p := place(m)
		above := p == "/" || path == p || strings.HasPrefix(path, p+"/")
		if above && (found == nil || len(p) >= len(place(found))) {
			found = m
		}
	}
	return found
}

// InAll translates the paths in the texts among values.
func (p Paths) InAll(values map[string]any) map[string]any {
	translated := maps.Clone(values)
	for key, value := range values {
		if text, is := value.(string); is {
			translated[key] = p.In(text)
		}
	}
	return translated
}

// In translates the paths in a text.
func (p Paths) In(text string) string {
	if p.replacer == nil {
		return text
	}
	return p.replacer.Replace(text)
}
