package tree

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoTool is the error if the machine's cp is not the one of GNU coreutils, which others are not like in what they leave out.
var ErrNoTool = errors.New("cp of GNU coreutils is not installed on this machine")

// killAfter is how long a program may take after SIGTERM before it is killed.
const killAfter = 10 * time.Second

// cp copies a directory with all that belongs to it. What cannot be copied is an error.
func cp(ctx context.Context, source, target string) error {
	path, err := exec.LookPath("cp")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoTool, err)
	}
	if out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("coreutils")) {
		return fmt.Errorf("%w: %s is another one", ErrNoTool, path)
	}
	cmd := exec.CommandContext(ctx, path, "--recursive", "--no-dereference", "--preserve=mode,ownership,timestamps,links,xattr", "--sparse=auto", "--no-target-directory", "--", source, target)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	var said strings.Builder
	cmd.Stderr = &said
	if err := runToEnd(cmd); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("the copy was stopped: %w", context.Cause(ctx))
		}
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return fmt.Errorf("the copy failed: %w: %s", err, strings.Join(lines[:min(len(lines), 3)], "; "))
	}
	return nil
}

// runToEnd runs a program that the kernel kills if this process dies.
func runToEnd(cmd *exec.Cmd) error {
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// The kernel sends Pdeathsig when the thread that forked ends, so this thread must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// message is a line that Serve writes for Apart.
type message struct {
	Progress *Progress `json:"progress,omitempty"`
	Size     *Size     `json:"size,omitempty"` // it is done
	Kind     string    `json:"kind,omitempty"` // of the error
	Error    string    `json:"error,omitempty"`
}

var kinds = map[string]error{"not-empty": ErrNotEmpty, "no-space": ErrNoSpace, "differs": ErrDiffers, "no-tool": ErrNoTool}

// failure is an error of the other process.
type failure struct {
	kind error
	text string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.kind }

// Apart is Copy in a process of its own, which mounts both directories for itself alone: the kernel shows it as a user of the target's
// file system, as long as it lives. That process is this program with args, source and target, and must call Serve.
func Apart(ctx context.Context, source, target string, progress func(Progress), args ...string) (Size, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(args, source, target)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setsid: true} // not for the terminal's Ctrl-C: ctx ends it
	out, in := io.Pipe()
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = in, &said
	ended := make(chan error, 1)
	go func() {
		err := runToEnd(cmd)
		ended <- err
		_ = in.Close() // never fails
	}()
	var last message
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			last = message{Error: "the copy cannot be followed: " + err.Error()}
			continue
		}
		if m.Progress != nil {
			progress(*m.Progress)
			continue
		}
		last = m
	}
	err := <-ended
	switch {
	case last.Size != nil && err == nil:
		return *last.Size, nil
	case last.Error != "":
		return Size{}, &failure{kinds[last.Kind], last.Error}
	case ctx.Err() != nil:
		return Size{}, context.Cause(ctx)
	}
	return Size{}, fmt.Errorf("the process that copies has failed: %w: %s", err, strings.TrimSpace(said.String()))
}

// Serve is the other process of Apart.
func Serve(ctx context.Context, source, target string, out io.Writer) error {
	lines := json.NewEncoder(out)
	var size Size
	err := isolate(source, target)
	if err == nil {
		size, err = Copy(ctx, source, target, func(p Progress) { _ = lines.Encode(message{Progress: &p}) }) // who has gone away kills this process
	}
	if err == nil {
		return lines.Encode(message{Size: &size})
	}
	m := message{Error: err.Error()}
	for kind, is := range kinds {
		if errors.Is(err, is) {
			m.Kind = kind
		}
	}
	return lines.Encode(m)
}

// isolate mounts the directories over themselves in this process's own namespace: the source so that nothing can change it.
func isolate(source, target string) error {
	for _, m := range []struct {
		dir   string
		flags uintptr
	}{{source, unix.MS_BIND}, {source, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY}, {target, unix.MS_BIND}} {
		if err := unix.Mount(m.dir, m.dir, "", m.flags, ""); err != nil {
			return &os.PathError{Op: "mount", Path: m.dir, Err: err}
		}
	}
	return nil
}
