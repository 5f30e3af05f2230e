package loop

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Devices are added to and removed from a tree by rename, so that a reader sees all of a device or nothing.

func (a *attachment) path() string { return filepath.Join(a.tree, "block", a.device) }

// aside returns the hidden directory in which the device's directory is built and removed.
func (a *attachment) aside() string { return filepath.Join(a.tree, "."+a.device) }

func (a *attachment) show(as Identity) error {
	file := filepath.Join(a.aside(), as.File)
	err := errors.Join(
		os.RemoveAll(a.aside()),
		os.MkdirAll(filepath.Join(a.aside(), "device"), 0o755),
		os.Symlink(filepath.Join("/sys", as.Subsystem), filepath.Join(a.aside(), "device/subsystem")),
		os.WriteFile(file, as.Content, 0o444),
		os.Symlink(filepath.Join("/sys/block", a.device, "dev"), filepath.Join(a.aside(), "dev")),
		os.Symlink(filepath.Join("/sys/block", a.device, "size"), filepath.Join(a.aside(), "size")),
	)
	if err == nil {
		err = os.Rename(a.aside(), a.path())
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(a.aside()))
	}
	return nil
}

func (a *attachment) hide() error {
	err := errors.Join(os.RemoveAll(a.aside()), os.Rename(a.path(), a.aside()), os.RemoveAll(a.aside()))
	if _, none := os.Stat(a.tree); errors.Is(none, fs.ErrNotExist) {
		return nil // the tree was removed with its instance
	}
	return err
}
