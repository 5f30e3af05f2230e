package space

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
)

// cgroupOf names the control group of the engine in a directory, below the root of each hierarchy.
func cgroupOf(dir string) string { return "/" + filepath.Base(dir) }

// hierarchies are where the kernel's control groups are mounted: one place with version 2, several with version 1.
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

// makeCgroup makes the named group and a leaf below it for enterCgroup.
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
			// A cpuset of version 1 takes no process before it has these.
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

// enterCgroup moves this process to the leaf of the named group. Groups that the engine makes relative to its own, as it
// does for plugins, are then below the name too.
func enterCgroup(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, name, leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("moving to a control group of its own: %w", err)
		}
	}
	return nil
}

// leaf is where the engine itself runs; a group with groups below it takes no processes.
const leaf = "host"

// removeCgroup removes the named group and all below it. It fails while processes are in them.
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
