// Command sandbox runs a command with a private Docker engine: `sandbox scripts/demo`.
//
// DOCKER_HOST is the engine's address. BLOCKVOL_STATE and BLOCKVOL_VOLUMES are directories for the plugin, BLOCKVOL_BIN is one for its
// command line. The engine and its data are removed when the command ends or sandbox is killed.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/standalone"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: sandbox COMMAND [ARGUMENT]...")
		os.Exit(2)
	}
	os.Exit(sandbox(os.Args[1:]))
}

func sandbox(args []string) (status int) {
	// The command gets a Ctrl-C too and decides. sandbox catches it, to clean up later. (The command would inherit an
	// ignored signal.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	var t standalone.T
	defer func() {
		if !t.End() {
			status = 1
		}
	}()
	t.Try(func() { status = runCommand(&t, args) })
	return status
}

// runCommand runs the command with an engine and returns its exit status.
func runCommand(t *standalone.T, args []string) (status int) {
	e := engine.Start(t)
	e.Busybox()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	bin := filepath.Join(e.Dir, "bin")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "BLOCKVOL_BIN="+bin, "DOCKER_HOST="+e.Host(), "DOCKER_CONTEXT=", "BLOCKVOL_STATE="+e.State,
		"BLOCKVOL_VOLUMES="+e.Volumes, "BLOCKVOL_ENGINE_RUNTIME="+e.Path("/run/docker"))
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(1, exit.ExitCode())
	case err != nil:
		t.Fatalf("%v", err)
	}
	return 0
}
