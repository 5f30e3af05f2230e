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
	"syscall"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/standin"
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
	var run standin.Test
	defer func() {
		if !run.End() {
			status = 1
		}
	}()
	run.Try(func() { status = inEngine(&run, args) })
	return status
}

// inEngine runs the command with an engine and returns its status.
func inEngine(run *standin.Test, args []string) (status int) {
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
