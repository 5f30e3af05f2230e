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

// KernelVariable names the environment variable with the directory where FetchKernel keeps kernels.
const KernelVariable = "BLOCKVOL_TEST_KERNEL"

// Kernel is a Linux to boot machines with. It has NVMe and ext4 built in; virtio comes as modules.
type Kernel struct {
	Image   string // the file to boot
	Modules string // lib/modules/<version>
}

// FetchKernel returns Debian's kernel for machines in clouds. What was fetched once is kept, and the network is not asked
// again: in the directory that KernelVariable names, or else in blockvol/kernel below the user's cache.
func FetchKernel(ctx context.Context) (Kernel, error) {
	dir := os.Getenv(KernelVariable)
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return Kernel{}, fmt.Errorf("no place to keep a kernel in, %s can name one: %w", KernelVariable, err)
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
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // one fetches for all
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
		return Kernel{}, fmt.Errorf("%s is not one kernel with its modules: remove it to fetch one anew", tree)
	}
	return Kernel{images[0], modules[0]}, nil
}

func fetchKernel(ctx context.Context, dir, tree string) error {
	work, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work) //nolint:errcheck // at worst something useless stays
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	// The package that everybody names depends on the one of the day.
	depends, err := output(ctx, work, "apt-cache", "depends", "--important", "linux-image-cloud-amd64")
	if err != nil {
		return err
	}
	_, name, _ := strings.Cut(depends, "Depends: ")
	name, _, _ = strings.Cut(name, "\n")
	if name == "" {
		return errors.New("apt knows no package linux-image-cloud-amd64: this wants Debian, and apt-get update")
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
	return os.Rename(unpacked, tree) // whole, or not at all
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
