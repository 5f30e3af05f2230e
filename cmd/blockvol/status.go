package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

func (o *operator) statusCommand() *cobra.Command {
	return o.command("status", "Show this node: what it is, its volumes and its unfinished work", cobra.NoArgs, func([]string) error {
		s, err := o.client.Status(o.ctx)
		if err != nil {
			return err
		}
		if printed, err := o.print(s); printed {
			return err
		}
		w := tabwriter.NewWriter(o.out, 0, 0, 3, ' ', 0)
		for _, line := range [][2]string{
			{"state", s.State}, {"problem", s.Problem}, {"node", s.Node}, {"zone", s.Zone}, {"disks", disks(s)}, {"provider", s.Provider}, {"cluster", s.Cluster}, {"takeover", s.Takeover}, {"version", s.Version},
		} {
			if line[1] != "" {
				fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if len(s.Volumes) > 0 {
			fmt.Fprintln(o.out)
			rows := make([][]string, len(s.Volumes))
			for i, v := range s.Volumes {
				rows[i] = []string{v.Name, v.ID, size(v), text(v, "used"), text(v, "state"), text(v, "device"), text(v, "containers"), text(v, "used-by"), note(v)}
			}
			if err := o.table([]string{"VOLUME", "DISK", "SIZE", "USED", "STATE", "DEVICE", "CONTAINERS", "USED BY", "NOTE"}, rows); err != nil {
				return err
			}
		}
		if len(s.Jobs) > 0 {
			fmt.Fprintln(o.out)
			if err := o.listJobs(s.Jobs); err != nil {
				return err
			}
		}
		if len(s.Failures) > 0 {
			fmt.Fprintln(o.out)
			rows := make([][]string, len(s.Failures))
			for i, e := range s.Failures {
				rows[i] = []string{e.At.Local().Format(time.DateTime), e.Volume, e.What, e.Error.Error()}
			}
			return o.table([]string{"FAILED AT", "VOLUME", "CALL", "ERROR"}, rows)
		}
		return nil
	})
}

// disks are the places for disks of the node.
func disks(s admin.Status) string {
	switch d := s.Disks; {
	case d == nil && s.DisksUnknown == "":
		return ""
	case d == nil:
		return "how many it can have is not known: " + s.DisksUnknown
	case d.Free == nil:
		return fmt.Sprintf("%d, without a limit", d.Used)
	default:
		return fmt.Sprintf("%d of %d, it can have %d more", d.Used, d.Most, *d.Free)
	}
}

// size is that of a volume, "" if the cloud has not been asked since the plugin's start.
func size(v admin.Volume) string {
	if v.Size == 0 {
		return ""
	}
	return volume.FormatSize(v.Size)
}

func (o *operator) jobsCommand() *cobra.Command {
	return o.command("jobs", "List the long work of this node: what runs, and what has ended lately", cobra.NoArgs, func([]string) error {
		all, err := o.client.Jobs(o.ctx)
		if err != nil {
			return err
		}
		if printed, err := o.print(admin.Jobs{Jobs: all}); printed {
			return err
		}
		if o.quiet {
			for _, j := range all {
				fmt.Fprintln(o.out, j.ID)
			}
			return nil
		}
		return o.listJobs(all)
	})
}

func (o *operator) listJobs(all []admin.Job) error {
	rows := make([][]string, len(all))
	for i, j := range all {
		ended := time.Now()
		if j.Ended != nil {
			ended = *j.Ended
		}
		message := j.Message
		if j.Error != nil {
			message = j.Error.Error()
		}
		rows[i] = []string{j.ID, string(j.Kind), j.Volume, string(j.State), j.Began.Local().Format(time.DateTime), ended.Sub(j.Began).Round(100 * time.Millisecond).String(), message}
	}
	return o.table([]string{"JOB", "WHAT", "VOLUME", "STATE", "BEGAN", "TOOK", "MESSAGE"}, rows)
}

func (o *operator) waitCommand() *cobra.Command {
	return o.command("wait JOB", "Follow a job until it has ended", cobra.ExactArgs(1), func(args []string) error {
		job, err := o.client.Job(o.ctx, args[0], 0)
		if err != nil {
			return err
		}
		return o.follow(job)
	})
}
