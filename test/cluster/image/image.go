// Package image builds and caches the virtual machine image from which the nodes of a cluster start.
//
// The image has a root file system and a snapshot of a machine whose engine is ready. A machine starts from it in a second.
package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/test/cluster/agent"
	"github.com/blockvol/blockvol/test/cluster/qemu"
	"github.com/blockvol/blockvol/test/namespace"
)

// Image is the files that a machine starts from.
type Image struct {
	Kernel, Initrd string
	Root           string // qcow2 with the snapshot; each machine needs a copy
	dir            *os.File
}

// Snapshot is the name of the snapshot in Root.
const Snapshot = "ready"

// complete is the file that marks a complete image, since a build can be interrupted at any point.
const complete = "complete"

// sources are the files of this module from which the image is built, beside Debian packages.
var sources = []string{"test/cluster/image", "test/cluster/agent", "test/cluster/qemu/machine.go", "test/cluster/fakemongo"}

// Get returns the image for the current sources. It builds a missing one, which takes minutes; concurrent calls wait for it. The
// image is kept until Release, and afterwards until the sources change.
func Get(ctx context.Context, t namespace.T) (*Image, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	name, err := fingerprint(root)
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "blockvol", "cluster")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	locked, err := lock(cache, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer locked.Close()
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(filepath.Join(dir, complete)); errors.Is(err, fs.ErrNotExist) {
		if err := removeOld(cache); err != nil {
			return nil, err
		}
		t.Logf("building the machine image, which takes a few minutes: %s", dir)
		begin := time.Now()
		if err := build(ctx, t, root, dir); err != nil {
			return nil, fmt.Errorf("building the machine image: %w", err)
		}
		t.Logf("built in %v", time.Since(begin).Round(time.Second))
	}
	i := imageIn(dir)
	i.dir, err = lock(dir, unix.LOCK_SH)
	return i, err
}

func imageIn(dir string) *Image {
	return &Image{Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Root: filepath.Join(dir, "node.qcow2")}
}

// Release allows the image to be removed when the sources have changed.
func (i *Image) Release() { i.dir.Close() }

// Machine returns the configuration of a machine that starts from the image or from a machine's copy of it. What must be the same
// to restore the snapshot is the same for all machines.
func (i *Image) Machine(dir, root, snapshot, tap string) qemu.Config {
	return qemu.Config{
		Dir: dir, Kernel: i.Kernel, Initrd: i.Initrd, Append: "console=ttyS0 net.ifnames=0 panic=1 quiet",
		Root: root, Snapshot: snapshot, Memory: 1024, Tap: tap, Ports: 32,
	}
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// fingerprint returns a hash of the sources.
func fingerprint(root string) (string, error) {
	sum := sha256.New()
	for _, part := range sources {
		err := filepath.WalkDir(filepath.Join(root, part), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintf(sum, "\n%s\n", strings.TrimPrefix(path, root))
			_, err = io.Copy(sum, f)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

func lock(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

// removeOld removes the images that are not in use.
func removeOld(cache string) error {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		dir := filepath.Join(cache, entry.Name())
		f, err := lock(dir, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(dir)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// build builds an image in a directory that does not exist.
func build(ctx context.Context, t namespace.T, root, dir string) (err error) {
	work := dir + ".new" // removeOld has removed an earlier attempt
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "test/cluster/image/tree"), work)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("test/cluster/image/tree: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := os.Rename(work, dir); err != nil { // before snapshot: the paths in qcow2 are absolute
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := snapshot(ctx, t, dir); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, complete), nil, 0o600)
}

// snapshot boots a machine twice: once to import the container images, and once to save the snapshot.
func snapshot(ctx context.Context, t namespace.T, dir string) (err error) {
	work := namespace.Dir(t)
	s, err := namespace.New(work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	i := imageIn(dir)
	base := filepath.Join(dir, "base.qcow2")
	if err := createOverlay(ctx, filepath.Join(dir, "root.img"), "raw", base); err != nil {
		return err
	}
	err = i.boot(ctx, s, work, base, func(guest *agent.Client, _ *qemu.Machine) error {
		_, err := guest.Run(ctx, nil, "sh", "-ec", `
			for archive in /images/*.tar; do docker load --quiet --input "$archive"; done
			/etc/guest/stop
			rm -r /images /var/log/dockerd.log
			sync`)
		return err
	})
	if err != nil {
		return err
	}
	if err := createOverlay(ctx, base, "qcow2", i.Root); err != nil {
		return err
	}
	return i.boot(ctx, s, work, i.Root, func(guest *agent.Client, m *qemu.Machine) error {
		// Cached files would only make the snapshot larger.
		if _, err := guest.Run(ctx, nil, "sh", "-c", "sync && echo 3 >/proc/sys/vm/drop_caches"); err != nil {
			return err
		}
		return m.SaveSnapshot(Snapshot)
	})
}

func createOverlay(ctx context.Context, base, format, file string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", base, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img create: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// boot powers a machine on, calls do when its engine is ready, and powers it off.
func (i *Image) boot(ctx context.Context, s *namespace.Set, dir, root string, do func(*agent.Client, *qemu.Machine) error) error {
	m, err := qemu.Start(qemu.RunnerFunc(s.Enter), i.Machine(dir, root, "", ""))
	if err != nil {
		return err
	}
	defer m.PowerOff()
	guest, err := agent.Dial(m.Agent())
	if err != nil {
		return err
	}
	defer guest.Close() //nolint:errcheck // it ends with the machine
	ready := []string{"sh", "-c", "until docker version; do sleep 0.2; done"}
	err = guest.Await(ctx)
	if err == nil {
		_, err = guest.Run(ctx, nil, ready...)
	}
	if err == nil {
		err = do(guest, m)
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, m.Console())
	}
	return nil
}
