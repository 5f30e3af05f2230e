package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

func (o *operator) snapshotCreateCommand() *cobra.Command {
	cmd := o.command("create VOLUME", "Take a snapshot of a volume, also in use", cobra.ExactArgs(1), func(args []string) error {
		return o.do(admin.Request{Kind: admin.Copy, Volume: args[0]})
	})
	cmd.Long = cmd.Short + ". If it is mounted on this node, its file system is frozen for the instant of the snapshot, a second at most: writes wait " +
		"for that time. Otherwise the snapshot is as a disk after a power failure. --quiet prints the snapshot's id."
	return cmd
}

func (o *operator) snapshotLsCommand() *cobra.Command {
	cmd := o.command("ls [VOLUME]", "List the snapshots of the cluster, the oldest first", cobra.MaximumNArgs(1), func(args []string) error {
		all, err := o.client.Snapshots(o.ctx, strings.Join(args, ""))
		if err != nil {
			return err
		}
		return o.listSnapshots(all)
	})
	cmd.Aliases = []string{"list"}
	return cmd
}

func (o *operator) listSnapshots(all []admin.Snapshot) error {
	if printed, err := o.print(admin.Snapshots{Snapshots: all}); printed {
		return err
	}
	if o.quiet {
		for _, s := range all {
			fmt.Fprintln(o.out, s.ID)
		}
		return nil
	}
	return o.tableOfSnapshots(all, "OF NO USE", func(s admin.Snapshot) string { return s.Useless })
}

// tableOfSnapshots shows snapshots with a last column of its own.
func (o *operator) tableOfSnapshots(all []admin.Snapshot, last string, note func(admin.Snapshot) string) error {
	rows := make([][]string, len(all))
	for i, s := range all {
		state := s.State
		if s.Detail != "" {
			state += ": " + s.Detail
		}
		rows[i] = []string{s.ID, s.Volume, volume.FormatSize(s.Size), ageOf(s.CreatedAt), state, s.Reason, note(s)}
	}
	header := []string{"SNAPSHOT", "VOLUME", "SIZE", "AGE", "STATE", "TAKEN", last}
	if len(rows) == 0 {
		header = header[:len(header)-1]
	}
	return o.table(header, rows)
}

// find returns the snapshots of these ids.
func (o *operator) find(ids ...string) ([]admin.Snapshot, error) {
	all, err := o.client.Snapshots(o.ctx, "")
	if err != nil {
		return nil, err
	}
	found := make([]admin.Snapshot, len(ids))
	for n, id := range ids {
		i := slices.IndexFunc(all, func(s admin.Snapshot) bool { return s.ID == id })
		if i < 0 {
			return nil, volume.Fail(volume.NotFound, fmt.Sprintf("the cluster has no snapshot %s", id), "see which there are with: blockvol snapshot ls")
		}
		found[n] = all[i]
	}
	return found, nil
}

func (o *operator) snapshotRestoreCommand() *cobra.Command {
	replace := false
	cmd := o.command("restore SNAPSHOT VOLUME", "Make a new volume from a snapshot, or replace the disk of an unused volume by it", cobra.ExactArgs(2), func(args []string) error {
		r := admin.Request{Kind: admin.Restore, Snapshot: args[0], Volume: args[1]}
		v, err := o.client.Volume(o.ctx, r.Volume)
		switch {
		case err != nil && !errors.Is(err, volume.NotFound):
			return err
		case err == nil && !replace:
			return volume.Fail(volume.Conflict, fmt.Sprintf("there is a volume %q", r.Volume), "choose a new name, or replace its disk with --replace")
		case !replace:
			return o.do(r)
		case err != nil:
			return err
		}
		found, err := o.find(r.Snapshot)
		if err != nil {
			return err
		}
		s := found[0]
		of := "its own"
		if s.Disk != v.ID {
			of = fmt.Sprintf("of another disk, %s, which was volume %q", s.Disk, s.Volume)
		}
		what := fmt.Sprintf("Volume %s becomes what snapshot %s shows (%s); its disk %s is kept as volume %s", v.Name, s.ID, of, v.ID, driver.KeptAs(v.Name, v.ID))
		if err := o.confirm(what); err != nil {
			return err
		}
		r.Disk = v.ID
		return o.do(r)
	})
	cmd.Long = cmd.Short + ". With --replace, a disk made from the snapshot takes the place of the volume's. Nothing may use the volume; stop its services first, so that none " +
		"is started meanwhile. The old disk stays as a volume of its own until you remove that."
	cmd.Flags().BoolVar(&replace, "replace", false, "replace the disk of an existing volume, and keep the old disk as another volume")
	o.asks(cmd)
	return cmd
}

func (o *operator) snapshotRmCommand() *cobra.Command {
	cmd := o.command("rm SNAPSHOT...", "Delete snapshots", cobra.MinimumNArgs(1), func(args []string) error {
		found, err := o.find(args...)
		if err != nil {
			return err
		}
		what := make([]string, len(found))
		for i, s := range found {
			what[i] = s.ID
			if s.Volume != "" {
				what[i] += " of " + s.Volume
			}
		}
		if err := o.confirm("Deleted for good: " + strings.Join(what, ", ")); err != nil {
			return err
		}
		return o.deleteSnapshots(args)
	})
	o.asks(cmd)
	return cmd
}

func (o *operator) deleteSnapshots(ids []string) error {
	for _, id := range ids {
		if err := o.do(admin.Request{Kind: admin.DeleteSnapshot, Snapshot: id}); err != nil {
			return err
		}
	}
	return nil
}

func (o *operator) cloneCommand() *cobra.Command {
	cmd := o.command("clone SOURCE VOLUME", "Make a new volume that is a copy of another, also of one in use", cobra.ExactArgs(2), func(args []string) error {
		return o.do(admin.Request{Kind: admin.Clone, From: args[0], Volume: args[1]})
	})
	cmd.Long = cmd.Short + ". The same without this command: docker volume create --driver blockvol --opt from=SOURCE VOLUME"
	return cmd
}

func (o *operator) gcCommand() *cobra.Command {
	removed := false
	cmd := o.command("gc", "Delete snapshots that nobody needs", cobra.NoArgs, func([]string) error {
		all, err := o.client.Garbage(o.ctx, removed)
		if err != nil {
			return err
		}
		if len(all) == 0 {
			if printed, err := o.print(admin.Snapshots{Snapshots: all}); printed || o.quiet {
				return err
			}
			fmt.Fprintln(o.out, "There is nothing to delete")
			return nil
		}
		if !o.json && !o.quiet {
			if err := o.listSnapshots(all); err != nil {
				return err
			}
		}
		if err := o.confirm(fmt.Sprintf("%d snapshots are deleted for good", len(all))); err != nil {
			return err
		}
		ids := make([]string, len(all))
		for i, s := range all {
			ids[i] = s.ID
		}
		return o.deleteSnapshots(ids)
	})
	cmd.Long = cmd.Short + ": those that have failed, those left over from a copy of a volume, and those that have expired by their schedules. Snapshots that were taken by hand, or " +
		"before a volume was removed, are never deleted."
	cmd.Flags().BoolVar(&removed, "removed", false, "also delete the scheduled snapshots of disks that do not exist any more")
	o.asks(cmd)
	return cmd
}
