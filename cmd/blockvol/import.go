package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/sys/mountinfo"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount/tree"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/engine"
)

// copyCommand is the hidden command in which an import copies.
const copyCommand = "copy-tree"

func (o *operator) importCommand() *cobra.Command {
	var source, host string
	cmd := o.command("import VOLUME --from-volume LOCALVOLUME", "Fill an empty volume with the contents of a volume of Docker's driver local", cobra.ExactArgs(1), func(args []string) error {
		if source == "" {
			return fmt.Errorf("%w: name the volume to copy from with --from-volume", errUsage)
		}
		return o.importFrom(args[0], source, host)
	})
	cmd.Long = cmd.Short + ". The volume must exist and be empty. No container may use either of them meanwhile. " +
		"Owners, modes, times, extended attributes, hard links and holes are kept, and the copy is compared with the source before it appears. " +
		"The source is not changed. If the command is interrupted or killed, run it again."
	f := cmd.Flags()
	f.StringVar(&source, "from-volume", "", "the volume of Docker's driver local")
	f.StringVar(&host, "docker-host", os.Getenv("DOCKER_HOST"), "the engine's socket (default: DOCKER_HOST, or "+engine.DefaultHost+")")
	return cmd
}

func (o *operator) importFrom(name, source, host string) (err error) {
	docker, err := engine.New(host)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	path, err := o.localVolume(docker, source)
	if err != nil {
		return err
	}
	if _, err := o.client.Volume(o.ctx, name); err != nil {
		return err
	}
	id := admin.NewID()
	target, err := o.hold(name, id)
	if err != nil {
		return err
	}
	defer func() {
		// Also after an interrupt. If it fails, the plugin sees by itself that nothing uses the volume any more.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), time.Minute)
		defer cancel()
		if dropped := o.client.Drop(ctx, name, id); err == nil {
			err = dropped
		}
	}()
	if is, err := mountinfo.Mounted(target); err != nil || !is {
		return volume.Fail(volume.Unavailable, fmt.Sprintf("the volume is mounted at %s, but this command does not see that, as in a container or a shell with mounts of its own; nothing was copied", target),
			"run it with the mounts that the engine has: nsenter --target $(pidof dockerd) --mount blockvol import …")
	}
	show, end := o.copyProgress(name)
	size, err := tree.Apart(o.ctx, path, target, show, copyCommand)
	end()
	if err != nil {
		return o.importError(name, source, err)
	}
	if err := o.unused(docker, source); err != nil {
		return volume.Also(err, name+" holds what it had before; what is written to it now is not copied")
	}
	if printed, err := o.print(size); printed || o.quiet {
		return err
	}
	fmt.Fprintf(o.out, "%s: holds what local volume %s does, %d files of %s, compared. Keep the local volume until what uses the new one has run; then: docker volume rm %s\n",
		name, source, size.Files, units.BytesSize(float64(size.Bytes)), source)
	return nil
}

// localVolume returns where the source is, once it is clear that it can be copied.
func (o *operator) localVolume(docker *engine.Client, source string) (path string, err error) {
	v, err := docker.Volume(o.ctx, source)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return "", volume.Fail(volume.NotFound, fmt.Sprintf("the engine has no volume %q", source), "see docker volume ls")
	case err != nil:
		return "", &volume.Error{Code: volume.Unavailable, Cause: err}
	case v.Driver != "local":
		return "", volume.Fail(volume.Invalid, fmt.Sprintf("volume %q is of driver %s, and only those of driver local can be imported", source, v.Driver), "")
	case len(v.Options) > 0:
		return "", volume.Fail(volume.Invalid, fmt.Sprintf("volume %q has options, so it is mounted only while a container uses it", source), "copy it with a container that has both volumes")
	}
	return v.Mountpoint, o.unused(docker, source)
}

// unused refuses a source that a container uses.
func (o *operator) unused(docker *engine.Client, source string) error {
	running, err := docker.Users(o.ctx, source)
	if err != nil {
		return &volume.Error{Code: volume.Unavailable, Cause: err}
	}
	if len(running) > 0 {
		return volume.Fail(volume.InUse, fmt.Sprintf("local volume %q is used by %s", source, strings.Join(running, ", ")), "stop it first")
	}
	return nil
}

// hold has the plugin bring the volume up, however long that takes.
func (o *operator) hold(name, id string) (path string, err error) {
	for {
		path, err = o.client.Hold(o.ctx, name, id)
		if !errors.Is(err, volume.Unfinished) {
			return path, err
		}
		if !o.quiet {
			fmt.Fprintln(o.err, err)
		}
		if o.ctx.Err() != nil {
			return "", errInterrupted
		}
	}
}

func (o *operator) importError(name, source string, err error) error {
	const again = "run the command again: it starts over"
	code, advice := volume.Failed, again
	switch {
	case o.ctx.Err() != nil:
		return fmt.Errorf("%w: nothing of %s is in %s yet; %s", errInterrupted, source, name, again)
	case errors.Is(err, tree.ErrNotEmpty):
		code, advice = volume.Conflict, "import into a new volume"
	case errors.Is(err, tree.ErrNoSpace):
		code, advice = volume.NoSpace, "make the volume larger: blockvol resize "+name+" SIZE"
	case errors.Is(err, tree.ErrDiffers):
		code, advice = volume.Conflict, "see that nothing changes the source, and "+again
	case errors.Is(err, tree.ErrNoTool):
		code, advice = volume.Unavailable, "install coreutils"
	}
	return &volume.Error{Code: code, Volume: name, Cause: err, Advice: advice}
}

// copyProgress returns how to show it: by a bar on a terminal, by a line every ten seconds elsewhere.
func (o *operator) copyProgress(name string) (show func(tree.Progress), end func()) {
	if o.quiet {
		return func(tree.Progress) {}, func() {}
	}
	var phase tree.Phase
	if err, is := o.err.(*os.File); !is || !term.IsTerminal(int(err.Fd())) {
		var told time.Time
		return func(p tree.Progress) {
			if p.Phase != phase || time.Since(told) >= 10*time.Second {
				phase, told = p.Phase, time.Now()
				fmt.Fprintf(o.err, "%s: %s, %s of %s\n", name, p.Phase, units.BytesSize(float64(p.Done)), units.BytesSize(float64(p.Total)))
			}
		}, func() {}
	}
	var bar *progressbar.ProgressBar
	end = func() {
		if bar != nil {
			_ = bar.Finish()
		}
	}
	return func(p tree.Progress) {
		if p.Phase != phase {
			end()
			phase = p.Phase
			bar = progressbar.NewOptions64(p.Total, progressbar.OptionSetWriter(o.err), progressbar.OptionClearOnFinish(), progressbar.OptionShowBytes(true),
				progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetDescription(name+": "+string(phase)))
		}
		_ = bar.Set64(p.Done)
	}, end
}

// copyTreeCommand is where an import copies: a process of its own.
func copyTreeCommand() *cobra.Command {
	return &cobra.Command{
		Use: copyCommand + " SOURCE TARGET", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return tree.Serve(ctx, args[0], args[1], cmd.OutOrStdout())
		},
	}
}
