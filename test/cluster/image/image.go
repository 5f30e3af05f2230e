// Package image makes what nodes of a cluster start from, once, and keeps it outside the work tree: a root file system and
// a snapshot of a machine whose engine has just become ready. A machine that starts from the snapshot is there in a second.
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
	"github.com/blockvol/blockvol/test/space"
)

// An Image is what machines start from.
type Image struct {
	Kernel, Initrd string
	Root           string // qcow2 to be copied for each machine, with the snapshot in it
	dir            *os.File
}

// Snapshot is the name of the snapshot in Root.
const Snapshot = "ready"

// whole is a file that an image has when all of it is made: a Ctrl-C may come at any moment before.
const whole = "whole"

// recipe is what the image is made of, besides Debian's packages, below the module's root.
var recipe = []string{"test/cluster/image", "test/cluster/agent", "test/cluster/qemu/machine.go", "test/cluster/mongostandin"}

// Get returns the image of the present recipe, which it makes first if need be; that takes minutes. Others that want it
// meanwhile wait. It stays until Release, and longer, unless the recipe changes.
func Get(ctx context.Context, t space.T) (*Image, error) {
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
	lock, err := lock(cache, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(filepath.Join(dir, whole)); errors.Is(err, fs.ErrNotExist) {
		if err := removeOld(cache); err != nil {
			return nil, err
		}
		t.Logf("making the machines' image, which takes some minutes once: %s", dir)
		begin := time.Now()
		if err := build(ctx, t, root, dir); err != nil {
			return nil, fmt.Errorf("making the machines' image: %w", err)
		}
		t.Logf("made it in %v", time.Since(begin).Round(time.Second))
	}
	i := at(dir)
	i.dir, err = lockShared(dir)
	return i, err
}

func at(dir string) *Image {
	return &Image{Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Root: filepath.Join(dir, "node.qcow2")}
}

// Release lets the image be removed when the recipe has changed.
func (i *Image) Release() { i.dir.Close() }

// Machine is the configuration of a machine that starts from the image, or of one that starts from what such a machine
// has left. What a snapshot must find again is the same for all.
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

// fingerprint tells recipes apart.
func fingerprint(root string) (string, error) {
	sum := sha256.New()
	for _, part := range recipe {
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

func lockShared(dir string) (*os.File, error) { return lock(dir, unix.LOCK_SH) }

// removeOld removes images that nobody uses.
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

// build makes an image in a directory that does not exist.
func build(ctx context.Context, t space.T, root, dir string) (err error) {
	work := dir + ".new" // removeOld has removed what an earlier attempt left
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "test/cluster/image/tree"), work)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("test/cluster/image/tree: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := os.Rename(work, dir); err != nil { // since the paths in qcow2 are absolute
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
	return os.WriteFile(filepath.Join(dir, whole), nil, 0o600)
}

// snapshot boots a machine twice: once to import the containers' images, and once to be restored from, fresh.
func snapshot(ctx context.Context, t space.T, dir string) (err error) {
	work := space.Dir(t)
	s, err := space.New(work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	i := at(dir)
	base := filepath.Join(dir, "base.qcow2")
	if err := overlay(ctx, filepath.Join(dir, "root.img"), "raw", base); err != nil {
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
	if err := overlay(ctx, base, "qcow2", i.Root); err != nil {
		return err
	}
	return i.boot(ctx, s, work, i.Root, func(guest *agent.Client, m *qemu.Machine) error {
		// What memory holds of files would only make the snapshot larger.
		if _, err := guest.Run(ctx, nil, "sh", "-c", "sync && echo 3 >/proc/sys/vm/drop_caches"); err != nil {
			return err
		}
		return m.SaveSnapshot(Snapshot)
	})
}

func overlay(ctx context.Context, base, format, file string) error {
	out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", base, file).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img create: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// boot powers a machine on, does something when its engine is ready, and powers it off.
func (i *Image) boot(ctx context.Context, s *space.Space, dir, root string, do func(*agent.Client, *qemu.Machine) error) error {
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
