package main

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/internal/host"
)

// lockState locks the state directory for this process, until the returned file is closed or the process ends. proc is the
// host's /proc, which names the process that holds the lock.
func lockState(dir, proc string) (*os.File, error) {
	if err := makePrivate(dir); err != nil {
		return nil, fmt.Errorf("the state directory cannot be used: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the state directory cannot be used: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return lock, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another blockvol%s uses it; each engine needs a state directory of its own", lockHolder(lock, proc))
	}
	return nil, errors.Join(fmt.Errorf("state directory %s: %w", dir, err), lock.Close())
}

// lockHolder returns " (process 123)", or "" if the kernel does not say.
func lockHolder(lock *os.File, proc string) string {
	var stat unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &stat); err != nil {
		return ""
	}
	locks, err := os.Open(filepath.Join(proc, "locks"))
	if err != nil {
		return ""
	}
	defer func() { _ = locks.Close() }()
	// 1: FLOCK  ADVISORY  WRITE 3741 08:01:131090 0 EOF
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 5 && f[1] == "FLOCK" && strings.HasSuffix(f[5], fmt.Sprintf(":%d", stat.Ino)) {
			return fmt.Sprintf(" (process %s)", f[4])
		}
	}
	return ""
}

// makePrivate creates a directory that only root can enter, or closes an existing one to everybody else.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

var (
	nodeForm    = regexp.MustCompile(`^[A-Za-z0-9._-]{1,73}$`)
	notNodeForm = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
)

// nodeID returns this node's id for providers whose cloud does not name nodes. It is made once, from the host's name, and kept in
// the state directory, which must be locked.
func nodeID(dir string) (string, error) {
	file := filepath.Join(dir, "node")
	kept, err := os.ReadFile(file)
	if err == nil {
		id := strings.TrimSpace(string(kept))
		if !nodeForm.MatchString(id) {
			return "", fmt.Errorf("%s is damaged: it must hold this node's id, by which volumes are recorded as attached here; restore it, or remove it if this node has none", file)
		}
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("this node's id cannot be read: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("this node's id cannot be made: %w", err)
	}
	name = notNodeForm.ReplaceAllString(name, "-")
	unique := make([]byte, 4)
	_, _ = rand.Read(unique) // never fails
	id := name[:min(len(name), 64)] + "-" + hex.EncodeToString(unique)
	if err := host.ReplaceFile(file, file+".part", []byte(id+"\n"), nil); err != nil {
		return "", fmt.Errorf("this node's id cannot be kept: %w", err)
	}
	return id, nil
}
