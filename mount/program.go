package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// result is what a program returned.
type result struct {
	name           string
	code           int
	stdout, stderr string
}

// killAfter is how long a program may take after SIGTERM before it is killed.
const killAfter = 10 * time.Second

// run runs a program to its end and returns its exit code, whatever it is. Its environment has a PATH and the C locale only; it has
// no input and no terminal. The kernel kills it if this process dies, so that it does not meet the mkfs of the next one. When ctx ends
// it gets SIGTERM, and run returns when it has ended.
func run(ctx context.Context, name string, args ...string) (result, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return result{}, fmt.Errorf("%w: %s is not installed where blockvol runs (%w)", ErrNoTool, name, err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	// The kernel sends Pdeathsig when the thread that forked ends, so this thread must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	err = cmd.Run()
	res := result{name: name, stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return res, nil
	case ctx.Err() != nil:
		return res, fmt.Errorf("%s was stopped: %w", name, context.Cause(ctx))
	case errors.As(err, &exit) && exit.Exited():
		res.code = exit.ExitCode()
		return res, nil
	default: // could not be started, or was killed
		return res, fmt.Errorf("%s was killed or could not be started: %w", name, err)
	}
}

// message returns the beginning of the program's output, errors first, in one line for an error.
func (r result) message() string {
	const most = 300
	said := strings.Join(strings.Fields(r.stderr+" "+r.stdout), " ")
	if said == "" {
		return fmt.Sprintf("exit code %d", r.code)
	}
	if len(said) > most {
		said = strings.ToValidUTF8(said[:most], "") + "…"
	}
	return said
}
