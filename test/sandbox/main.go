// Command sandbox runs a command with a private Docker engine: `sandbox scripts/demo`. The command finds the engine's
// address in DOCKER_HOST, and the directories for its plugin in BLOCKVOL_STATE and BLOCKVOL_VOLUMES. When the command
// ends, or this one is killed, all is gone.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"

	"github.com/blockvol/blockvol/test/engine"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: sandbox COMMAND [ARGUMENT]...")
		os.Exit(2)
	}
	os.Exit(sandbox(os.Args[1:]))
}

func sandbox(args []string) (status int) {
	// A Ctrl-C reaches the command too, which decides; this one stays to clean up. (Ignored, they would be so for the
	// command as well.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	run := &run{}
	defer func() {
		if stopped := recover(); stopped != nil && stopped != any(run) {
			panic(stopped)
		}
		run.cleanUp()
		if run.failed {
			status = 1
		}
	}()
	e := engine.Start(run)
	e.Busybox()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "DOCKER_CONTEXT=", "BLOCKVOL_STATE="+e.State,
		"BLOCKVOL_VOLUMES="+e.Volumes)
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(1, exit.ExitCode())
	case err != nil:
		run.Fatalf("%v", err)
	}
	return 0
}

// run stands in for a test.
type run struct {
	failed   bool
	cleanups []func()
}

func (r *run) Helper()                         {}
func (r *run) Failed() bool                    { return r.failed }
func (r *run) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (r *run) Cleanup(f func())                { r.cleanups = append(r.cleanups, f) }

func (r *run) Fatalf(format string, args ...any) {
	r.Logf(format, args...)
	r.failed = true
	panic(r)
}

func (r *run) cleanUp() {
	for _, cleanup := range slices.Backward(r.cleanups) {
		cleanup()
	}
}
