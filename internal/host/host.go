// Package host knows which boot of the machine this is, and writes files that a crash leaves whole.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// BootID returns the kernel's identity of this boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("the kernel does not tell which boot this is: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// ReplaceFile makes data the content of the file, durably: after a crash the old or the new content is there, whole, and perhaps the
// part, in which the content is written first. The part is in the same directory.
//
// before may be nil. It is called before each change on disk ("write" of the part, "rename" of the file), and its error ends the call.
func ReplaceFile(path, part string, data []byte, before func(op, path string) error) error {
	if before == nil {
		before = func(string, string) error { return nil }
	}
	if err := before("write", part); err != nil {
		return err
	}
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) { // what a crash has left, or whatever it is
		return err
	}
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = before("rename", path)
	}
	if err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes what was created, renamed and removed in a directory durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
