package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

// operator is one use of the command line by a person or a script.
type operator struct {
	socket      string
	runtime     string
	json, quiet bool
	yes         bool

	ctx    context.Context // ends with an interrupt
	client *admin.Client
	out    io.Writer // what was asked for
	err    io.Writer // progress and questions
	in     io.Reader
}

// The exit codes, as docs/cli.md lists them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitRefused     = 4 // for now: held, in use, busy
	exitUnavailable = 5 // blockvol or the cloud does not answer
	exitProblems    = 6 // doctor has found problems
	exitInterrupted = 130
)

var (
	errUsage       = errors.New("wrong use of the command")
	errNotAsked    = errors.New("nothing was done, since there is no terminal to ask on")
	errInterrupted = errors.New("interrupted")
)

func exitCode(err error) int {
	isAny := func(kinds ...error) bool {
		return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
	}
	switch {
	case isAny(errInterrupted):
		return exitInterrupted
	case isAny(errUsage, errNotAsked, volume.Invalid):
		return exitUsage
	case isAny(volume.NotFound):
		return exitNotFound
	case isAny(volume.Held, volume.InUse, volume.Busy, volume.Conflict):
		return exitRefused
	case isAny(errProblems):
		return exitProblems
	case isAny(volume.Unavailable, volume.Unsure, volume.Unfinished):
		return exitUnavailable
	}
	return exitFailed
}

// command makes a command for operators from what it does.
func (o *operator) command(use, short string, args cobra.PositionalArgs, do func(args []string) error) *cobra.Command {
	return o.commandWithoutPlugin(use, short, args, func(a []string) (err error) {
		if o.client, err = o.connect(); err != nil {
			return err
		}
		return do(a)
	})
}

// commandWithoutPlugin is command for one that also does something if there is no plugin to call.
func (o *operator) commandWithoutPlugin(use, short string, args cobra.PositionalArgs, do func(args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, a []string) error {
			if err := args(cmd, a); err != nil {
				return wrongUse(cmd, err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, a []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			o.ctx, o.out, o.err, o.in = ctx, cmd.OutOrStdout(), cmd.ErrOrStderr(), cmd.InOrStdin()
			return do(a)
		},
	}
}

func wrongUse(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w: %w; see %s --help", errUsage, err, cmd.CommandPath())
}

func (o *operator) connect() (*admin.Client, error) {
	if o.socket != "" {
		return admin.NewClient(o.socket), nil
	}
	return admin.Find(o.ctx, o.runtime)
}

// addOperatorCommands adds what operators call to the root command.
func addOperatorCommands(root *cobra.Command) {
	o := &operator{}
	all := []*cobra.Command{
		o.lsCommand(), o.inspectCommand(), o.statusCommand(), o.doctorCommand(), o.resizeCommand(), o.modifyCommand(), o.releaseCommand(), o.adoptCommand(), o.retainCommand(), o.forgetCommand(), o.rmCommand(),
		o.cloneCommand(), o.importCommand(), o.gcCommand(), o.eventsCommand(), o.jobsCommand(), o.waitCommand(),
	}
	root.AddCommand(all...)
	snapshot := &cobra.Command{
		Use: "snapshot", Short: "Take, list, restore and delete snapshots",
		Args: func(cmd *cobra.Command, _ []string) error {
			return wrongUse(cmd, errors.New("say what to do with snapshots"))
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	snapshot.SetFlagErrorFunc(wrongUse)
	ofSnapshots := []*cobra.Command{o.snapshotCreateCommand(), o.snapshotLsCommand(), o.snapshotRestoreCommand(), o.snapshotRmCommand()}
	snapshot.AddCommand(ofSnapshots...)
	root.AddCommand(snapshot)
	for _, cmd := range append(all, ofSnapshots...) {
		f := cmd.Flags()
		f.StringVar(&o.socket, "socket", os.Getenv("BLOCKVOL_SOCKET"), "the plugin's socket (default: found by itself, or BLOCKVOL_SOCKET)")
		f.StringVar(&o.runtime, "engine-runtime", cmp.Or(os.Getenv("BLOCKVOL_ENGINE_RUNTIME"), "/run/docker"), "the engine's runtime directory (its exec-root), where the socket is looked for")
		f.BoolVar(&o.json, "json", false, "print JSON, as docs/api.md describes it")
		f.BoolVarP(&o.quiet, "quiet", "q", false, "print names only, and no progress")
		cmd.SetFlagErrorFunc(wrongUse)
	}
}

// print writes a value as JSON if that was asked for, and returns whether it was.
func (o *operator) print(value any) (bool, error) {
	if !o.json {
		return false, nil
	}
	e := json.NewEncoder(o.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return true, e.Encode(value)
}

// table writes rows in columns. Columns in which no row has anything are left out.
func (o *operator) table(header []string, rows [][]string) error {
	used := make([]bool, len(header))
	for column := range header {
		used[column] = len(rows) == 0 || slices.ContainsFunc(rows, func(row []string) bool { return row[column] != "" })
	}
	var aligned strings.Builder
	w := tabwriter.NewWriter(&aligned, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		for column, cell := range row {
			if used[column] {
				fmt.Fprintf(w, "%s\t", cell)
			}
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(aligned.String()) {
		if _, err := fmt.Fprintln(o.out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// confirm asks whether to do what cannot be undone.
func (o *operator) confirm(what string) error {
	if o.yes {
		return nil
	}
	if in, is := o.in.(*os.File); is && !term.IsTerminal(int(in.Fd())) {
		return fmt.Errorf("%w: %s; give --yes to do it without being asked", errNotAsked, what)
	}
	fmt.Fprintf(o.err, "%s. Continue? [y/N] ", what)
	answer, _ := bufio.NewReader(o.in).ReadString('\n') // the end of the input is no
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return fmt.Errorf("%w: nothing was done", errInterrupted)
	}
	return nil
}

// do starts a job and follows it to its end.
func (o *operator) do(r admin.Request) error {
	r.ID = admin.NewID()
	job, err := o.client.Start(o.ctx, r)
	if err != nil {
		return err
	}
	return o.follow(job)
}

// follow shows a job's progress until it ends.
func (o *operator) follow(job admin.Job) error {
	show, end := o.progress()
	show(job)
	job, err := o.client.Await(o.ctx, job, show)
	end()
	if err != nil {
		if o.ctx.Err() != nil {
			err = errInterrupted
		}
		return fmt.Errorf("%w: the plugin goes on with the job; see what becomes of it with: blockvol wait %s", err, job.ID)
	}
	if printed, err := o.print(job); printed && err != nil {
		return err
	}
	if job.State == admin.Failed {
		return job.Error
	}
	switch {
	case o.json:
	case o.quiet && job.Made != "":
		fmt.Fprintln(o.out, job.Made)
	case !o.quiet:
		say(o.out, job)
	}
	return nil
}

// say tells where a job stands.
func say(to io.Writer, job admin.Job) {
	message := job.Message
	if job.Volume != "" {
		message = job.Volume + ": " + message
	}
	fmt.Fprintln(to, message)
}

// progress returns how to show it: by a line that changes on a terminal, by a line for each change elsewhere.
func (o *operator) progress() (show func(admin.Job), end func()) {
	if o.quiet {
		return func(admin.Job) {}, func() {}
	}
	if err, is := o.err.(*os.File); !is || !term.IsTerminal(int(err.Fd())) {
		last := ""
		return func(j admin.Job) {
			if j.State == admin.Running && j.Message != "" && j.Message != last {
				last = j.Message
				say(o.err, j)
			}
		}, func() {}
	}
	bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(o.err), progressbar.OptionClearOnFinish(), progressbar.OptionSpinnerType(14),
		progressbar.OptionSetElapsedTime(true), progressbar.OptionThrottle(100*time.Millisecond))
	return func(j admin.Job) { bar.Describe(j.Volume + ": " + j.Message) }, func() { _ = bar.Finish() }
}
