package loop

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Devices are added to and removed from a tree by rename, so that a reader sees all of a device or nothing.

func (a *attachment) path() string { return filepath.Join(a.tree, "block", a.device) }

// hidden returns the hidden directory in which the device's directory is built and removed.
func (a *attachment) hidden() string { return filepath.Join(a.tree, "."+a.device) }

func (a *attachment) show(as Identity) error {
	file := filepath.Join(a.hidden(), as.File)
	err := errors.Join(
		os.RemoveAll(a.hidden()),
		os.MkdirAll(filepath.Join(a.hidden(), "device"), 0o755),
		os.Symlink(filepath.Join("/sys", as.Subsystem), filepath.Join(a.hidden(), "device/subsystem")),
		os.WriteFile(file, as.Content, 0o444),
		os.Symlink(filepath.Join("/sys/block", a.device, "dev"), filepath.Join(a.hidden(), "dev")),
		os.Symlink(filepath.Join("/sys/block", a.device, "size"), filepath.Join(a.hidden(), "size")),
	)
	if err == nil {
		err = os.Rename(a.hidden(), a.path())
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(a.hidden()))
	}
	return nil
}

func (a *attachment) hide() error {
	err := errors.Join(os.RemoveAll(a.hidden()), os.Rename(a.path(), a.hidden()), os.RemoveAll(a.hidden()))
	if _, none := os.Stat(a.tree); errors.Is(none, fs.ErrNotExist) {
		return nil // the tree was removed with its instance
	}
	return err
}
