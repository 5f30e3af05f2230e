package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// measure counts what a tree consists of.
func measure(ctx context.Context, root string) (size Size, err error) {
	seen := map[uint64]bool{} // inodes with several names
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: path, Err: err}
		}
		size.Files++
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		size.Bytes += st.Blocks * 512
		return ctx.Err()
	})
	return size, err
}

// ignored are the attributes that belong to a file system and not to a file.
func ignored(name string) bool {
	return name == "security.selinux" || strings.HasPrefix(name, "system.") && !strings.HasPrefix(name, "system.posix_acl_")
}

// attributes are the extended attributes of a file, ACLs included.
func attributes(path string) (map[string][]byte, error) {
	list, err := grown(func(buffer []byte) (int, error) { return unix.Llistxattr(path, buffer) })
	if errors.Is(err, unix.EOPNOTSUPP) || len(list) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if ignored(string(name)) {
			continue
		}
		value, err := grown(func(buffer []byte) (int, error) { return unix.Lgetxattr(path, string(name), buffer) })
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		all[string(name)] = value
	}
	return all, nil
}

// grown reads what the kernel copies into a buffer that is large enough.
func grown(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buffer := make([]byte, n)
		n, err = read(buffer)
		if !errors.Is(err, unix.ERANGE) {
			return buffer[:max(0, n)], err
		}
	}
}

// likeDirectory gives a directory the owner, mode, attributes and times of another one.
func likeDirectory(source, target string) error {
	var st unix.Stat_t
	if err := unix.Lstat(source, &st); err != nil {
		return err
	}
	wanted, err := attributes(source)
	if err != nil {
		return err
	}
	if err := os.Lchown(target, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(target, st.Mode&^unix.S_IFMT); err != nil {
		return err
	}
	has, err := attributes(target)
	if err != nil {
		return err
	}
	for name := range has {
		if _, keep := wanted[name]; !keep {
			if err := unix.Lremovexattr(target, name); err != nil {
				return err
			}
		}
	}
	for name, value := range wanted {
		if err := unix.Lsetxattr(target, name, value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, target, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// sameAttributes tells how two sets of attributes differ, "" if they do not.
func sameAttributes(a, b map[string][]byte) string {
	var differ []string
	for name, value := range a {
		if other, has := b[name]; !has || !bytes.Equal(value, other) {
			differ = append(differ, name)
		}
	}
	for name := range b {
		if _, has := a[name]; !has {
			differ = append(differ, name)
		}
	}
	slices.Sort(differ)
	return strings.Join(differ, ", ")
}
