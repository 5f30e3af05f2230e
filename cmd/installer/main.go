// Command installer brings the plugin blockvol of this machine's engine to what a file of settings, secrets and its own version say,
// and keeps it there. It is the only program of the image blockvol-installer, which a Swarm runs on each node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

const usage = `usage: installer COMMAND [NAME=VALUE]...

  keep       install blockvol, or update it, and keep it installed until SIGTERM: what the service of a Swarm does
  install    the same once
  uninstall  remove blockvol and what was installed with it; volumes and their data stay
  healthy    succeeds while keep has blockvol installed

Settings are lines NAME=VALUE in /settings, or arguments. The lines of /run/secrets/blockvol-secrets become files that only root
and the plugin can read; REGISTRY_USERNAME and REGISTRY_PASSWORD there are for the registry that has the plugin`

// The exit codes, which 'docker service ps' shows. docs/install-swarm.md explains them.
const (
	codeOther     = 1
	codeSettings  = 2 // the settings cannot be read, or the plugin refuses them
	codeRegistry  = 3 // the plugin cannot be had from the registry
	codePrivilege = 4 // the plugin asks for more than it may have
	codeKept      = 5 // the former version, or the former settings, are in use again
	codeInUse     = 6 // volumes are in use, so nothing was removed
)

// failure is an error with an exit code of its own.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(code int, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

func main() {
	err := run(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "blockvol-installer:", err)
	code := codeOther
	if f, is := errors.AsType[*failure](err); is {
		code = f.code
	}
	os.Exit(code)
}

// marker is the file that exists while keep has blockvol installed.
const marker = "/installed"

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	switch command {
	case "healthy":
		_, err := os.Stat(marker)
		return err
	case "host":
		return onHost("/", os.Stdout)
	case "keep", "install", "uninstall":
	default:
		return errors.New(usage)
	}
	i, err := newInstaller(ctx, args)
	if err != nil {
		return err
	}
	switch command {
	case "uninstall":
		return i.uninstall(ctx)
	case "install":
		return i.apply(ctx)
	}
	return i.keep(ctx)
}
