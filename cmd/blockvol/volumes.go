package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/providers"
)

func (o *operator) lsCommand() *cobra.Command {
	everything := false
	cmd := o.command("ls", "List the volumes of the cluster", cobra.NoArgs, func([]string) error {
		all, err := o.client.Volumes(o.ctx)
		if err != nil {
			return err
		}
		var snapshots []admin.Snapshot
		var orphans []admin.Orphan
		if everything {
			if snapshots, err = o.client.Snapshots(o.ctx, ""); err != nil && !errors.Is(err, volume.Invalid) { // which a cloud without them says
				return err
			}
			if orphans, err = o.client.Orphans(o.ctx); err != nil && !errors.Is(err, volume.Invalid) {
				return err
			}
		}
		if printed, err := o.print(struct {
			admin.Volumes
			Snapshots []admin.Snapshot `json:"snapshots,omitempty"`
			Disks     []admin.Orphan   `json:"disks,omitempty"`
		}{admin.Volumes{Volumes: all}, snapshots, orphans}); printed {
			return err
		}
		if o.quiet {
			for _, v := range all {
				fmt.Fprintln(o.out, v.Name)
			}
			return nil
		}
		return o.listVolumes(all, snapshots, orphans)
	})
	cmd.Aliases = []string{"list"}
	cmd.Flags().BoolVar(&everything, "all", false, "also show when the last snapshot of each volume was taken, the cluster's disks that are not volumes, and their snapshots")
	return cmd
}

func (o *operator) listVolumes(all []admin.Volume, snapshots []admin.Snapshot, orphans []admin.Orphan) error {
	if len(all) == 0 {
		fmt.Fprintln(o.out, "There are no volumes")
	} else if err := o.tableOfVolumes(all, snapshots); err != nil {
		return err
	}
	if len(orphans) > 0 {
		fmt.Fprintln(o.out)
		if err := o.listOrphans(orphans); err != nil {
			return err
		}
	}
	others := slices.DeleteFunc(snapshots, func(s admin.Snapshot) bool {
		return slices.ContainsFunc(all, func(v admin.Volume) bool { return v.ID == s.Disk })
	})
	if len(others) == 0 {
		return nil
	}
	fmt.Fprintln(o.out)
	return o.tableOfSnapshots(others, "NOTE", func(s admin.Snapshot) string {
		switch {
		case slices.ContainsFunc(orphans, func(d admin.Orphan) bool { return d.ID == s.Disk }):
			return "of disk " + s.Disk + ", which is no volume"
		case slices.ContainsFunc(all, func(v admin.Volume) bool { return v.Name == s.Volume }):
			return "of a disk that does not exist any more: a new volume has its name"
		}
		return ""
	})
}

func (o *operator) tableOfVolumes(all []admin.Volume, snapshots []admin.Snapshot) error {
	last := make(map[string]string) // by disk: the age of its last complete snapshot; the list begins with the oldest
	for _, s := range snapshots {
		if s.CreatedAt != nil && s.State == "complete" {
			last[s.Disk] = ago(*s.CreatedAt)
		}
	}
	rows := make([][]string, len(all))
	for i, v := range all {
		rows[i] = []string{v.Name, volume.FormatSize(v.Size), text(v, "used"), text(v, "state"), text(v, "node"), text(v, "type"), text(v, "zone"), text(v, "fstype"), age(v), mounted(v), last[v.ID], note(v)}
	}
	return o.table([]string{"NAME", "SIZE", "USED", "STATE", "NODE", "TYPE", "ZONE", "FILE SYSTEM", "AGE", "MOUNTED", "LAST SNAPSHOT", "NOTE"}, rows)
}

// listOrphans shows disks that are no volumes.
func (o *operator) listOrphans(all []admin.Orphan) error {
	rows := make([][]string, len(all))
	for i, d := range all {
		size, note := "", d.Detail
		if d.Size > 0 {
			size = volume.FormatSize(d.Size)
		}
		switch providers.OrphanKind(d.Kind) {
		case providers.OrphanKept:
			note = fmt.Sprintf("comes back with: blockvol adopt %s %s", d.ID, cmp.Or(d.Volume, "NAME"))
		case providers.OrphanUnclaimed:
			note = fmt.Sprintf("of which cluster it was is not known; adopt it with: blockvol adopt %s %s", d.ID, cmp.Or(d.Volume, "NAME"))
		case providers.OrphanUnreadable, providers.OrphanAmbiguous, providers.OrphanUnfinished:
		}
		rows[i] = []string{d.ID, d.Volume, size, d.Zone, d.Node, ageOf(d.CreatedAt), d.Kind, note}
	}
	return o.table([]string{"DISK", "WAS VOLUME", "SIZE", "ZONE", "NODE", "AGE", "KIND", "NOTE"}, rows)
}

// text is a value of a volume's status for people, "" if it has none.
func text(v admin.Volume, key string) string {
	value, has := v.Status[key]
	n, isNumber := value.(float64)
	list, isList := value.([]any)
	switch {
	case !has:
		return ""
	case isList:
		words := make([]string, len(list))
		for i, item := range list {
			words[i] = fmt.Sprint(item)
		}
		return strings.Join(words, ", ")
	case !isNumber:
		return fmt.Sprint(value)
	case key == "used":
		if available, known := v.Status["available"].(float64); known && n+available > 0 {
			return fmt.Sprintf("%s (%.0f%%)", units.BytesSize(n), 100*n/(n+available))
		}
		return units.BytesSize(n)
	case key == "available":
		return units.BytesSize(n)
	}
	return strconv.FormatFloat(n, 'f', -1, 64) // a large one, too, without an exponent
}

func age(v admin.Volume) string { return ageOf(v.CreatedAt) }

func ageOf(created *time.Time) string {
	if created == nil {
		return ""
	}
	return ago(*created)
}

// ago is how long ago a time was.
func ago(at time.Time) string { return strings.ToLower(units.HumanDuration(time.Since(at))) }

// mounted is for how long the volume has been mounted on this node, "" if that is not known.
func mounted(v admin.Volume) string {
	since, err := time.Parse(time.RFC3339, text(v, "mounted-since"))
	if err != nil {
		return ""
	}
	return ago(since)
}

// note is what there is to know of a volume at the moment: what is being done with it and since when, and what is wrong.
func note(v admin.Volume) string {
	var notes []string
	if message := text(v, "message"); message != "" {
		if since, err := time.Parse(time.RFC3339, text(v, "since")); err == nil {
			message += fmt.Sprintf(" (for %s)", time.Since(since).Round(time.Second))
		}
		notes = append(notes, message)
	}
	if problem := text(v, "problem"); problem != "" {
		notes = append(notes, problem)
	}
	if fenced := text(v, "fenced"); wasLately(fenced) {
		notes = append(notes, "powered off for it: "+fenced)
	}
	if f, message := v.Failure, text(v, "message"); f != nil && (message == "" || !strings.HasPrefix(f.Error.Message, message)) { // which would say it twice
		notes = append(notes, fmt.Sprintf("%s failed %s ago: %s", f.What, strings.ToLower(units.HumanDuration(time.Since(f.At))), f.Error.Message))
	}
	return strings.Join(notes, "; ")
}

// wasLately tells whether the fence that a volume's status describes was in the last day.
func wasLately(fenced string) bool {
	_, rest, _ := strings.Cut(fenced, " at ")
	at, _, _ := strings.Cut(rest, ",")
	when, err := time.Parse(time.RFC3339, at)
	return err == nil && time.Since(when) < 24*time.Hour
}

func (o *operator) inspectCommand() *cobra.Command {
	return o.command("inspect VOLUME", "Show all that is known of a volume", cobra.ExactArgs(1), func(args []string) error {
		v, err := o.client.Volume(o.ctx, args[0])
		if err != nil {
			return err
		}
		if printed, err := o.print(v); printed {
			return err
		}
		w := tabwriter.NewWriter(o.out, 0, 0, 3, ' ', 0)
		fmt.Fprintf(w, "name\t%s\n", v.Name)
		if v.CreatedAt != nil {
			fmt.Fprintf(w, "created\t%s (%s ago)\n", v.CreatedAt.Format(time.RFC3339), age(v))
		}
		if v.Mountpoint != "" {
			fmt.Fprintf(w, "mountpoint\t%s\n", v.Mountpoint)
		}
		for _, key := range slices.Sorted(maps.Keys(v.Status)) {
			fmt.Fprintf(w, "%s\t%s\n", key, text(v, key))
		}
		if f := v.Failure; f != nil {
			fmt.Fprintf(w, "failed\t%s at %s: %s\n", f.What, f.At.Local().Format(time.DateTime), f.Error.Error())
		}
		return w.Flush()
	})
}

func (o *operator) releaseCommand() *cobra.Command {
	cmd := o.command("release VOLUME", "Unmount and detach a volume that nothing on this node uses", cobra.ExactArgs(1), func(args []string) error {
		if err := o.client.Release(o.ctx, args[0]); err != nil {
			return err
		}
		if printed, err := o.print(struct{}{}); printed || o.quiet {
			return err
		}
		fmt.Fprintf(o.out, "%s: this node has nothing of it any more\n", args[0])
		if v, err := o.client.Volume(o.ctx, args[0]); err == nil && text(v, "node") != "" && text(v, "state") != "detaching" {
			fmt.Fprintf(o.out, "It is attached to node %s\n", text(v, "node"))
		}
		return nil
	})
	cmd.Long = cmd.Short + ", at once and not after the time for which it is kept for the next container."
	return cmd
}

func (o *operator) resizeCommand() *cobra.Command {
	cmd := o.command("resize VOLUME SIZE", "Make a volume and its file system larger, also in use", cobra.ExactArgs(2), func(args []string) error {
		size, err := volume.ParseSize(args[1])
		if err != nil {
			return fmt.Errorf("%w: the size %q %w", errUsage, args[1], err)
		}
		return o.modify(admin.Request{Kind: admin.Modify, Volume: args[0], Size: size})
	})
	o.asks(cmd)
	return cmd
}

func (o *operator) modifyCommand() *cobra.Command {
	r := admin.Request{Kind: admin.Modify}
	size := ""
	cmd := o.command("modify VOLUME", "Change the size, type or speed of a volume, also in use, or its schedule of snapshots", cobra.ExactArgs(1), func(args []string) (err error) {
		r.Volume = args[0]
		if size != "" {
			if r.Size, err = volume.ParseSize(size); err != nil {
				return fmt.Errorf("%w: the size %q %w", errUsage, size, err)
			}
		}
		return o.modify(r)
	})
	f := cmd.Flags()
	f.StringVar(&size, "size", "", "in GiB, or with a unit")
	f.StringVar(&r.Type, "type", "", "the type of disk, by the cloud's name for it")
	f.IntVar(&r.IOPS, "iops", 0, "per second")
	f.IntVar(&r.Throughput, "throughput", 0, "MiB per second")
	f.StringVar(&r.SnapshotSchedule, "snapshot-schedule", "", "when snapshots are taken, as the create option: @daily, or 30 3 * * *; none ends the schedule and keeps the snapshots")
	f.StringVar(&r.SnapshotKeep, "snapshot-keep", "", "which of the schedule's snapshots are kept, as the create option: 7, or 7d,4w,12m")
	o.asks(cmd)
	return cmd
}

// asks gives a command the flag --yes.
func (o *operator) asks(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask before what cannot be undone")
}

func (o *operator) modify(r admin.Request) error {
	v, err := o.client.Volume(o.ctx, r.Volume)
	if err != nil {
		return err
	}
	if r.Size > v.Size {
		if err := o.confirm(fmt.Sprintf("Volume %s (%s) grows from %s to %s and cannot be made smaller again", v.Name, v.ID, volume.FormatSize(v.Size), volume.FormatSize(r.Size))); err != nil {
			return err
		}
	}
	if r.SnapshotKeep != "" {
		if err := o.confirm(fmt.Sprintf("Of the snapshots that the schedule of volume %s (%s) has taken and takes, only %s are kept: others are deleted after the next", v.Name, v.ID, r.SnapshotKeep)); err != nil {
			return err
		}
	}
	return o.do(r)
}
