package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// KernelVariable is the environment variable for the directory in which FetchKernel caches kernels.
const KernelVariable = "BLOCKVOL_TEST_KERNEL"

// Kernel is a Linux kernel for machines. It has NVMe and ext4 built in, and virtio as modules.
type Kernel struct {
	Image   string // kernel image
	Modules string // lib/modules/<version>
}

// FetchKernel returns Debian's kernel for cloud machines. It is downloaded once and cached in the directory in KernelVariable,
// by default blockvol/kernel in the user's cache directory.
func FetchKernel(ctx context.Context) (Kernel, error) {
	dir := os.Getenv(KernelVariable)
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return Kernel{}, fmt.Errorf("no cache directory, set %s: %w", KernelVariable, err)
		}
		dir = filepath.Join(cache, "blockvol", "kernel")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Kernel{}, err
	}
	lock, err := os.Open(dir)
	if err != nil {
		return Kernel{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // concurrent callers wait
		return Kernel{}, err
	}
	tree := filepath.Join(dir, "tree")
	if _, err := os.Stat(tree); errors.Is(err, os.ErrNotExist) {
		err = fetchKernel(ctx, dir, tree)
		if err != nil {
			return Kernel{}, fmt.Errorf("fetching a kernel for virtual machines: %w", err)
		}
	} else if err != nil {
		return Kernel{}, err
	}
	images, _ := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	modules, _ := filepath.Glob(filepath.Join(tree, "lib", "modules", "*"))
	if len(images) != 1 || len(modules) != 1 {
		return Kernel{}, fmt.Errorf("%s is not a kernel with its modules: remove it to download one again", tree)
	}
	return Kernel{images[0], modules[0]}, nil
}

func fetchKernel(ctx context.Context, dir, tree string) error {
	work, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // leftovers are harmless
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	// The metapackage depends on the current kernel's package.
	depends, err := output(ctx, work, "apt-cache", "depends", "--important", "linux-image-cloud-amd64")
	if err != nil {
		return err
	}
	_, name, _ := strings.Cut(depends, "Depends: ")
	name, _, _ = strings.Cut(name, "\n")
	if name == "" {
		return errors.New("apt knows no package linux-image-cloud-amd64: use Debian and run apt-get update")
	}
	if _, err := output(ctx, work, "apt-get", "download", name); err != nil {
		return err
	}
	packages, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(packages) != 1 {
		return fmt.Errorf("apt-get download %s has left %d packages", name, len(packages))
	}
	unpacked := filepath.Join(work, "tree")
	if _, err := output(ctx, work, "dpkg", "-x", packages[0], unpacked); err != nil {
		return err
	}
	return os.Rename(unpacked, tree) // in one step
}

func output(ctx context.Context, dir, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
