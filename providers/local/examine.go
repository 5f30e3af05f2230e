package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

var _ providers.Examiner = (*Provider)(nil)

// Examine checks the directory of the images and the kernel's loop devices. It changes nothing.
func (p *Provider) Examine(ctx context.Context) []providers.Finding {
	return append(p.examineLoops(), p.examineImages(ctx)...)
}

func (p *Provider) examineLoops() []providers.Finding {
	control := filepath.Join(p.dev, "loop-control")
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return []providers.Finding{{
			Severity: providers.Problem, Check: "loop", Code: "loop-devices-missing",
			Message: fmt.Sprintf("there are no loop devices, on which images are attached: %v", err),
			Remedy:  "load the kernel's module on the host with modprobe loop, and let the host load it at boot; a managed plugin must see the host's /dev",
		}}
	}
	f.Close()
	devices, err := p.loops()
	if err != nil {
		return []providers.Finding{{
			Severity: providers.Problem, Check: "loop", Code: "loop-devices-unreadable", Message: err.Error(), Remedy: "make the host's /sys visible to blockvol",
		}}
	}
	for image, all := range devices {
		if len(all) > 1 {
			if _, err := os.Stat(filepath.Join(p.dir, "disks", image)); err == nil {
				return []providers.Finding{{
					Severity: providers.Problem, Check: "loop", Code: "loop-device-twice",
					Message: fmt.Sprintf("several loop devices have an image named %s, so none of them is used: %v", image, all),
					Remedy:  "find out with losetup --list which of them is not blockvol's, and detach that with losetup --detach",
				}}
			}
		}
	}
	return []providers.Finding{providers.Passed("loop", "the kernel has loop devices")}
}

func (p *Provider) examineImages(ctx context.Context) []providers.Finding {
	problem := func(code, message, remedy string) []providers.Finding {
		return []providers.Finding{{Severity: providers.Problem, Check: "images", Code: code, Message: message, Remedy: remedy}}
	}
	if _, err := p.disks.ids(ready); err != nil {
		return problem("images-unreadable", fmt.Sprintf("the directory of the images cannot be read: %v", err), "mount the file system of "+p.dir+" again, and restart blockvol")
	}
	if err := unix.Access(p.dir, unix.W_OK); err != nil {
		return problem("images-read-only", fmt.Sprintf("the directory of the images, %s, cannot be written: %v", p.dir, err), "look for errors of its disk in the kernel's log (dmesg), and mount its file system for writing again")
	}
	free, err := p.freeSpace()
	if err != nil {
		return problem("images-unreadable", err.Error(), "mount the file system of "+p.dir+" again, and restart blockvol")
	}
	warning := func(code, message, remedy string) []providers.Finding {
		return []providers.Finding{{Severity: providers.Warning, Check: "images", Code: code, Message: message, Remedy: remedy}}
	}
	if free <= 0 {
		return problem("images-full", fmt.Sprintf("the file system of %s is full: containers get I/O errors when they write", p.dir), "enlarge that file system, or remove what else is in it")
	}
	promised, err := p.promisedNow(ctx)
	switch {
	case errors.Is(err, providers.ErrBusy):
		return warning("images-locked", err.Error(), "see which process holds the lock in /proc/locks")
	case err != nil:
		return warning("images-unreadable", err.Error(), "look at the files in "+p.dir)
	case promised > free && !p.overcommit:
		return warning("images-overcommitted",
			fmt.Sprintf("volumes may still write %s, and %s are free in %s: when it is full, their containers get I/O errors", bytesize(promised), bytesize(max(0, free)), p.dir),
			"enlarge the file system of "+p.dir+", or remove what else is in it")
	}
	return []providers.Finding{providers.Passed("images", fmt.Sprintf("%s are free in %s, and volumes may still write %s", bytesize(free), p.dir, bytesize(promised)))}
}

// promisedNow is promised under the lock. Without a lock there has never been a volume.
func (p *Provider) promisedNow(ctx context.Context) (int64, error) {
	if _, err := os.Stat(filepath.Join(p.dir, "lock")); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	unlock, err := p.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	return p.promised()
}
