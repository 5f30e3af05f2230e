package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

// Commands that decide what becomes of disks.

func (o *operator) adoptCommand() *cobra.Command {
	var from string
	cmd := o.command("adopt DISK VOLUME", "Make an existing disk of the cloud a volume, with its contents", cobra.ArbitraryArgs, func(args []string) error {
		switch {
		case from != "":
			return o.adoptFrom(from, args)
		case len(args) != 2:
			return fmt.Errorf("%w: give the id of a disk and a name for the volume, or --from", errUsage)
		}
		return o.do(admin.Request{Kind: admin.Adopt, Disk: args[0], Volume: args[1]})
	})
	cmd.Flags().StringVar(&from, "from", "", "list the disks of another plugin, by its name in docs/cli.md, and adopt those named, or all, under their names there")
	o.asks(cmd)
	cmd.Long = cmd.Short + ". DISK is its id in the cloud. It must be attached to nothing and belong to no cluster of blockvol; nothing on it is changed. " +
		"Removing the volume keeps the disk, unless it had another reclaim policy in an earlier life with blockvol."
	return cmd
}

// adoptFrom adopts the disks of another plugin: those with these ids or names, or all.
func (o *operator) adoptFrom(plugin string, wanted []string) error {
	all, err := o.client.PluginDisks(o.ctx, plugin)
	if err != nil {
		return err
	}
	var free []admin.PluginDisk
	rows := make([][]string, 0, len(all))
	for _, d := range all {
		if len(wanted) > 0 && !slices.Contains(wanted, d.ID) && !slices.Contains(wanted, d.Name) {
			continue
		}
		note := ""
		switch {
		case d.Node != "":
			note = "attached to " + d.Node + ": detach it first"
		case !d.Marked:
			note = "has only a name like that plugin's disks"
		}
		if d.Node == "" {
			free = append(free, d)
		}
		rows = append(rows, []string{d.ID, d.Name, volume.FormatSize(d.Size), d.Zone, ageOf(d.CreatedAt), note})
	}
	if o.json {
		_, err := o.print(admin.PluginDisks{Disks: all})
		return err
	}
	if len(rows) > 0 {
		if err := o.table([]string{"DISK", "VOLUME", "SIZE", "ZONE", "AGE", "NOTE"}, rows); err != nil {
			return err
		}
	}
	if len(free) == 0 {
		return volume.Fail(volume.NotFound, "there is no disk of "+plugin+" that could be adopted", "")
	}
	if err := o.confirm(fmt.Sprintf("Of these disks, %d can be adopted: each becomes a volume of this cluster, under the name shown. Nothing on it changes", len(free))); err != nil {
		return err
	}
	var failed []error
	for _, d := range free {
		if err := o.do(admin.Request{Kind: admin.Adopt, Disk: d.ID, Volume: d.Name, Plugin: plugin}); err != nil {
			if o.ctx.Err() != nil {
				return err
			}
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (o *operator) retainCommand() *cobra.Command {
	return o.command("retain VOLUME", "Keep the disk of a volume when the volume is removed", cobra.ExactArgs(1), func(args []string) error {
		if err := o.client.Retain(o.ctx, args[0]); err != nil {
			return err
		}
		if printed, err := o.print(struct{}{}); printed || o.quiet {
			return err
		}
		fmt.Fprintf(o.out, "%s: its disk is kept when it is removed\n", args[0])
		return nil
	})
}

func (o *operator) forgetCommand() *cobra.Command {
	cmd := o.command("forget VOLUME", "Remove a volume and keep its disk, for a later adopt", cobra.ExactArgs(1), func(args []string) error {
		v, err := o.client.Volume(o.ctx, args[0])
		if err != nil {
			return err
		}
		if err := o.do(admin.Request{Kind: admin.Forget, Volume: v.Name, Disk: v.ID}); err != nil {
			return err
		}
		o.tellKept(v)
		return nil
	})
	return cmd
}

// tellKept tells how the disk of a volume that was removed comes back.
func (o *operator) tellKept(v admin.Volume) {
	if !o.json && !o.quiet {
		fmt.Fprintf(o.out, "Its disk is kept, and comes back with: blockvol adopt %s %s\n", v.ID, v.Name)
	}
}

func (o *operator) rmCommand() *cobra.Command {
	cmd := o.command("rm VOLUME", "Remove a volume, and its disk as its reclaim policy says", cobra.ExactArgs(1), func(args []string) error {
		v, err := o.client.Volume(o.ctx, args[0])
		if err != nil {
			return err
		}
		if err := o.confirm(fmt.Sprintf("Volume %s (%s, %s) is removed. %s", v.Name, v.ID, volume.FormatSize(v.Size), reclaimed(v))); err != nil {
			return err
		}
		err = o.do(admin.Request{Kind: admin.Remove, Volume: v.Name, Disk: v.ID})
		if err == nil && volume.Reclaim(text(v, "reclaim")) == volume.ReclaimRetain {
			o.tellKept(v)
		}
		return err
	})
	o.asks(cmd)
	return cmd
}

// reclaimed says what becomes of the data of a volume that is removed.
func reclaimed(v admin.Volume) string {
	switch volume.Reclaim(text(v, "reclaim")) {
	case volume.ReclaimRetain:
		return "Its disk is kept"
	case volume.ReclaimSnapshot:
		return "A snapshot is taken, then its disk is deleted"
	case volume.ReclaimDelete:
	}
	return "Its disk is deleted with all data"
}
