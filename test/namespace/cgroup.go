package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
)

// cgroupOf returns the control group of the set that uses dir, relative to the root of each hierarchy.
func cgroupOf(dir string) string { return "/" + filepath.Base(dir) }

// hierarchies returns the mountpoints of control groups: one for version 2, several for version 1.
func hierarchies() ([]string, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2", false
	})
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs, nil
}

// makeCgroup makes the group and a leaf in it for enterCgroup.
func makeCgroup(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		group := filepath.Join(dir, name)
		for _, made := range []string{group, filepath.Join(group, leaf)} {
			if err := os.Mkdir(made, 0o755); err != nil {
				return err
			}
			// A version 1 cpuset accepts no process before these are set.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(filepath.Dir(made), file))
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err := errors.Join(err, os.WriteFile(filepath.Join(made, file), value, 0o644)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// enterCgroup moves this process to the leaf of the group. Groups that an engine makes relative to its own, as for plugins, are
// then in the group too.
func enterCgroup(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, name, leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("joining the control group: %w", err)
		}
	}
	return nil
}

// leaf is the group of the engine itself: a group that contains groups accepts no processes.
const leaf = "host"

// removeCgroup removes the group and all groups in it. It fails while they have processes.
func removeCgroup(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		err = errors.Join(err, removeGroup(filepath.Join(dir, name)))
	}
	return err
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if entry.IsDir() {
			err = errors.Join(err, removeGroup(filepath.Join(dir, entry.Name())))
		}
	}
	return errors.Join(err, os.Remove(dir))
}
