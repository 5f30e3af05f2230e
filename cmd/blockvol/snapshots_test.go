package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
)

var snapshotAnswers = map[string]string{
	admin.Root + "volumes/db": `{"name": "db", "id": "vol-0abc"}`,
	admin.Root + "snapshots": fmt.Sprintf(`{"snapshots": [
		{"id": "snap-1", "volume": "db", "disk": "vol-0abc", "size_bytes": 1073741824, "created_at": %q, "state": "complete", "reason": "by hand"},
		{"id": "snap-2", "volume": "old", "disk": "vol-2", "size_bytes": 2147483648, "state": "creating", "detail": "42%%"}]}`, time.Now().Add(-2*time.Hour).Format(time.RFC3339)),
	admin.Root + "garbage?removed=false": `{"snapshots": []}`,
	admin.Root + "garbage?removed=true":  `{"snapshots": [{"id": "snap-3", "volume": "gone", "size_bytes": 1073741824, "state": "complete", "useless": "its volume does not exist any more"}]}`,
	admin.Root + "jobs":                  `{"id": "123456789", "kind": "snapshot", "volume": "db", "state": "done", "message": "as it is", "made": "snap-9"}`,
}

func TestSnapshotsAreShown(t *testing.T) {
	assert.Equal(t, "SNAPSHOT   VOLUME   SIZE   AGE       STATE           TAKEN\n"+
		"snap-1     db       1GiB   2 hours   complete        by hand\n"+
		"snap-2     old      2GiB             creating: 42%\n", asked(t, snapshotAnswers, "snapshot", "ls"))
	assert.Equal(t, "snap-1\nsnap-2\n", asked(t, snapshotAnswers, "snapshot", "ls", "--quiet"))
	assert.Equal(t, "There is nothing to delete\n", asked(t, snapshotAnswers, "gc"))
	assert.Equal(t, "snap-9\n", asked(t, snapshotAnswers, "snapshot", "create", "db", "--quiet"))
	assert.Equal(t, "db: as it is\n", asked(t, snapshotAnswers, "snapshot", "create", "db"))
}

func TestAllShowsTheLastSnapshotsAndThoseOfRemovedVolumes(t *testing.T) {
	answers := map[string]string{
		admin.Root + "volumes":   `{"volumes": [{"name": "db", "id": "vol-0abc", "size_bytes": 1073741824, "status": {"state": "detached"}}]}`,
		admin.Root + "snapshots": snapshotAnswers[admin.Root+"snapshots"],
		admin.Root + "orphans":   `{"disks": []}`,
	}
	assert.Equal(t, "NAME   SIZE   STATE      LAST SNAPSHOT\ndb     1GiB   detached   2 hours\n\n"+
		"SNAPSHOT   VOLUME   SIZE   STATE\nsnap-2     old      2GiB   creating: 42%\n", asked(t, answers, "ls", "--all"))
	assert.Equal(t, "NAME   SIZE   STATE\ndb     1GiB   detached\n", asked(t, answers, "ls"))
	assert.Contains(t, asked(t, answers, "ls", "--all", "--json"), `"snapshots": [`)
	assert.NotContains(t, asked(t, answers, "ls", "--json"), `"snapshots"`)
	answers[admin.Root+"snapshots"] = `{"error": {"code": "invalid", "message": "this provider has no snapshots"}}`
	assert.Equal(t, "NAME   SIZE   STATE\ndb     1GiB   detached\n", asked(t, answers, "ls", "--all"))
}

func TestAllShowsDisksThatAreNoVolumesAndWhatTheirSnapshotsBelongTo(t *testing.T) {
	answers := map[string]string{
		admin.Root + "volumes": `{"volumes": [{"name": "db", "id": "vol-1", "size_bytes": 1073741824, "status": {"state": "detached"}}]}`,
		admin.Root + "snapshots": `{"snapshots": [
			{"id": "snap-1", "volume": "db", "disk": "vol-0", "size_bytes": 1073741824, "state": "complete"},
			{"id": "snap-2", "volume": "old", "disk": "vol-2", "size_bytes": 1073741824, "state": "complete"},
			{"id": "snap-3", "volume": "gone", "disk": "vol-3", "size_bytes": 1073741824, "state": "complete"}]}`,
		admin.Root + "orphans": `{"disks": [
			{"id": "vol-2", "volume": "old", "kind": "kept", "size_bytes": 1073741824},
			{"id": "vol-4", "kind": "unclaimed", "size_bytes": 1073741824},
			{"id": "vol-5", "kind": "unreadable", "detail": "pieces are missing"}]}`,
	}
	assert.Equal(t, `NAME   SIZE   STATE
db     1GiB   detached

DISK    WAS VOLUME   SIZE   KIND         NOTE
vol-2   old          1GiB   kept         comes back with: blockvol adopt vol-2 old
vol-4                1GiB   unclaimed    of which cluster it was is not known; adopt it with: blockvol adopt vol-4 NAME
vol-5                       unreadable   pieces are missing

SNAPSHOT   VOLUME   SIZE   STATE      NOTE
snap-1     db       1GiB   complete   of a disk that does not exist any more: a new volume has its name
snap-2     old      1GiB   complete   of disk vol-2, which is no volume
snap-3     gone     1GiB   complete
`, asked(t, answers, "ls", "--all"))
	assert.Contains(t, asked(t, answers, "ls", "--all", "--json"), `"disks": [`)
	assert.Equal(t, "db\n", asked(t, answers, "ls", "--all", "--quiet"))
	answers[admin.Root+"orphans"] = `{"error": {"code": "invalid", "message": "this provider cannot"}}`
	assert.NotContains(t, asked(t, answers, "ls", "--all"), "DISK")
	answers[admin.Root+"orphans"] = `{"error": {"code": "unavailable", "message": "the cloud is away"}}`
	_, _, err := ask(t, answers, "ls", "--all")
	require.ErrorIs(t, err, volume.Unavailable)
}

func TestCommandsForSnapshots(t *testing.T) {
	for _, c := range []struct {
		args   []string
		wanted []admin.Request
		says   string
		err    error
	}{
		{args: []string{"snapshot", "create", "db"}, wanted: []admin.Request{{Kind: admin.Copy, Volume: "db"}}},
		{args: []string{"clone", "db", "new"}, wanted: []admin.Request{{Kind: admin.Clone, Volume: "new", From: "db"}}},
		{args: []string{"snapshot", "restore", "snap-1", "new"}, wanted: []admin.Request{{Kind: admin.Restore, Volume: "new", Snapshot: "snap-1"}}},
		{args: []string{"snapshot", "restore", "snap-1", "db"}, err: volume.Conflict},
		{args: []string{"snapshot", "restore", "snap-1", "db", "--replace"}, err: errInterrupted, says: "Volume db becomes what snapshot snap-1 shows (its own); its disk vol-0abc is kept as volume db.before-vol0abc"},
		{
			args: []string{"snapshot", "restore", "snap-1", "db", "--replace", "--yes"}, wanted: []admin.Request{{Kind: admin.Restore, Volume: "db", Snapshot: "snap-1", Disk: "vol-0abc"}},
		},
		{args: []string{"snapshot", "restore", "snap-2", "db", "--replace"}, err: errInterrupted, says: `of another disk, vol-2, which was volume "old"`},
		{args: []string{"snapshot", "restore", "snap-7", "db", "--replace", "--yes"}, err: volume.NotFound},
		{args: []string{"snapshot", "restore", "snap-1", "new", "--replace", "--yes"}, err: volume.NotFound},
		{args: []string{"snapshot", "rm", "snap-1", "snap-2"}, err: errInterrupted, says: "Deleted for good: snap-1 of db, snap-2 of old. Continue?"},
		{args: []string{"snapshot", "rm", "snap-1", "snap-2", "--yes"}, wanted: []admin.Request{{Kind: admin.DeleteSnapshot, Snapshot: "snap-1"}, {Kind: admin.DeleteSnapshot, Snapshot: "snap-2"}}},
		{args: []string{"snapshot", "rm", "snap-1", "snap-7", "--yes"}, err: volume.NotFound},
		{args: []string{"gc", "--removed"}, err: errInterrupted, says: "its volume does not exist any more"},
		{args: []string{"gc", "--removed", "--yes"}, wanted: []admin.Request{{Kind: admin.DeleteSnapshot, Snapshot: "snap-3"}}},
		{args: []string{"modify", "db", "--snapshot-schedule", "none"}, wanted: []admin.Request{{Kind: admin.Modify, Volume: "db", SnapshotSchedule: "none"}}},
		{args: []string{"modify", "db", "--snapshot-keep", "3d"}, err: errInterrupted, says: "only 3d are kept"},
		{
			args:   []string{"modify", "db", "--snapshot-schedule", "@daily", "--snapshot-keep", "3d", "--yes"},
			wanted: []admin.Request{{Kind: admin.Modify, Volume: "db", SnapshotSchedule: "@daily", SnapshotKeep: "3d"}},
		},
		{args: []string{"snapshot", "create"}, err: errUsage},
	} {
		out, wanted, err := ask(t, snapshotAnswers, c.args...)
		assert.Equal(t, c.wanted, wanted, "%q", c.args)
		if c.err == nil {
			require.NoError(t, err, "%q", c.args)
		} else {
			require.ErrorIs(t, err, c.err, "%q", c.args)
		}
		assert.Contains(t, out, c.says, "%q", c.args)
	}
}

func TestSnapshotAloneIsNoCommand(t *testing.T) {
	for _, args := range [][]string{{"snapshot"}, {"snapshot", "take", "db"}, {"snapshot", "--all"}} {
		root := command()
		root.SetArgs(args)
		require.ErrorIs(t, root.Execute(), errUsage, "%q", args)
	}
}
