package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

// errProblems is how doctor ends if it has found any.
var errProblems = errors.New("problems were found")

func (o *operator) doctorCommand() *cobra.Command {
	cmd := o.commandWithoutPlugin("doctor", "Check this node and its cloud, and say what is wrong and what to do", cobra.NoArgs, func([]string) error {
		report, err := o.examine()
		if err != nil {
			return err
		}
		if printed, err := o.print(report); printed && err != nil {
			return err
		}
		switch {
		case o.json:
		case o.quiet:
			for _, f := range report.Findings {
				if f.Code != "" {
					fmt.Fprintln(o.out, strings.TrimSpace(f.Code+" "+f.Volume))
				}
			}
		default:
			o.show(report)
		}
		if n := report.Count("problem"); n > 0 {
			return fmt.Errorf("%w: %d", errProblems, n)
		}
		return nil
	})
	cmd.Long = cmd.Short + `: settings, credentials and permissions, the metadata service, the clock, the kernel and its programs, directories, the
journal, and whether the kernel, the journal and the cloud agree on the volumes. It changes nothing, and also works when the plugin serves no
volumes because something is wrong. It takes some seconds; something that seems wrong is looked at again after 10 s.`
	return cmd
}

// examine asks the plugin. That there is none to ask is an error, and a finding for those who want JSON.
func (o *operator) examine() (report admin.Report, err error) {
	if o.client, err = o.connect(); err == nil {
		report, err = o.client.Doctor(o.ctx)
	}
	err = o.explain(err)
	if err != nil && o.json && errors.Is(err, volume.Unavailable) {
		f := admin.Finding{Severity: "problem", Check: "plugin", Code: "plugin-unreachable", Message: err.Error()}
		if e, is := errors.AsType[*volume.Error](err); is {
			f.Message, f.Remedy = e.Cause.Error(), e.Advice
		}
		if _, err := o.print(admin.Report{Findings: []admin.Finding{f}}); err != nil {
			return report, err
		}
	}
	return report, err
}

// explain adds to the error of a plugin that does not answer where to look.
func (o *operator) explain(err error) error {
	e, is := errors.AsType[*volume.Error](err)
	if !is || !errors.Is(err, admin.ErrNone) {
		return err
	}
	if _, missing := os.Stat(o.runtime); errors.Is(missing, fs.ErrNotExist) {
		return volume.Fail(volume.Unavailable, fmt.Sprintf("no engine runs on this machine: there is no directory %s", o.runtime),
			"start Docker (systemctl start docker), or name its runtime directory with --engine-runtime")
	}
	const look = "docker plugin ls shows whether the plugin is installed and enabled, and Docker's log (journalctl --unit docker) why it does not run"
	return &volume.Error{Code: e.Code, Cause: e.Cause, Advice: strings.TrimPrefix(e.Advice+"; "+look, "; ")}
}

// show writes a report for people: what is wrong with its remedy, and what is not wrong in a line each.
func (o *operator) show(r admin.Report) {
	about := fmt.Sprintf("blockvol %s, %s; provider %s, cluster %s", r.Version, r.State, r.Provider, r.Cluster)
	if r.Node != "" {
		about += ", node " + r.Node
	}
	fmt.Fprintln(o.out, about)
	fmt.Fprintln(o.out)
	width := widthOf(o.out)
	for _, f := range r.Findings {
		if f.Code == "" {
			continue
		}
		title := strings.ToUpper(f.Severity) + "  " + f.Code
		if f.Volume != "" {
			title += "  volume " + f.Volume
		}
		fmt.Fprintln(o.out, title)
		writeWrapped(o.out, "  ", f.Message, width)
		if f.Remedy != "" {
			writeWrapped(o.out, "  → ", f.Remedy, width)
		}
		fmt.Fprintln(o.out)
	}
	for _, f := range r.Findings {
		if f.Code == "" {
			writeWrapped(o.out, fmt.Sprintf("ok  %-13s", f.Check), f.Message, width)
		}
	}
	fmt.Fprintf(o.out, "\n%s, %s, %d ok, in %.1f s\n", count(r.Count("problem"), "problem"), count(r.Count("warning"), "warning"), r.Count("ok"), r.Took)
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// widthOf is the width of a terminal; 0 if it is none, where lines are not broken.
func widthOf(w io.Writer) int {
	f, is := w.(*os.File)
	if !is {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// writeWrapped writes a text after a prefix, and further lines below the beginning of the text.
func writeWrapped(w io.Writer, prefix, text string, width int) {
	indent := len([]rune(prefix))
	line := prefix
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
			line += word
			continue
		case width > 0 && len([]rune(line))+1+len([]rune(word)) > width:
			fmt.Fprintln(w, line)
			line = strings.Repeat(" ", indent) + word
			continue
		}
		line += " " + word
	}
	fmt.Fprintln(w, line)
}
