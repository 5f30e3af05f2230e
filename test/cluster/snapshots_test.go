package cluster_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/violation"
)

// dueAt returns for when a schedule had a snapshot due.
func dueAt(t *testing.T, s cloud.Snapshot) time.Time {
	t.Helper()
	for key, value := range s.Tags {
		if text, is := strings.CutPrefix(value, "at "); is && strings.HasSuffix(key, "taken") {
			at, err := time.Parse(time.RFC3339, text)
			require.NoError(t, err)
			return at
		}
	}
	t.Fatalf("no schedule has taken %+v", s)
	return time.Time{}
}

// A node loses power ten seconds before a snapshot is due. The node that gets the volume takes it: each is taken once, and has what was
// acknowledged before.
func TestScheduledSnapshotsAreTakenThoughTheirNodeDies(t *testing.T) {
	long(t)
	const (
		every  = 2 * time.Minute
		wanted = 4
	)
	c := shared(t)
	spec := cluster.WriterSpec{Name: "kept", Driver: driverOf("stopped"), Options: []string{"snapshot-schedule=*/2 * * * *", "snapshot-keep=2"}}
	var w *cluster.Writer
	c.Place(c.Nodes[1], func() { w = c.StartWriters(spec)[0] }) // which is no manager
	var dead *cluster.Node
	seen := map[string]time.Time{}
	acknowledged := map[time.Time]uint64{} // by the time of the look
	for begin := time.Now(); len(seen) < wanted; time.Sleep(time.Second) {
		require.Less(t, time.Since(begin), (wanted+3)*every, "%v\n%s", seen, w.Story())
		last, _ := c.Ledger.Last(w.Name)
		acknowledged[time.Now()] = last
		for _, s := range c.Cloud.Snapshots() {
			if s.VolumeID != w.Volume().ID || s.State != cloud.SnapshotCompleted || !seen[s.ID].IsZero() {
				continue
			}
			seen[s.ID] = dueAt(t, s)
			holds, before := w.CheckSnapshot(s.ID), uint64(0)
			for at, n := range acknowledged {
				if at.Before(s.StartedAt) {
					before = max(before, n)
				}
			}
			require.Positive(t, before)
			t.Logf("%s was due at %s, taken %.1f s later, and has %d records; %d were acknowledged before", s.ID, seen[s.ID].Format(time.TimeOnly),
				s.StartedAt.Sub(seen[s.ID]).Seconds(), holds, before)
			assert.GreaterOrEqual(t, holds, before, violation.Textf("an acknowledged record is not in the snapshot"))
		}
		if left := every - time.Since(time.Now().Truncate(every)); dead == nil && len(seen) > 0 && left < 10*time.Second {
			dead = w.Node()
			dead.PowerOff()
			t.Logf("%s loses power", dead.Name)
		}
	}
	require.NotNil(t, dead)
	w.Await("it writes elsewhere", ledger.NotOn(dead.Name))
	due := slices.SortedFunc(maps.Values(seen), time.Time.Compare)
	for i, at := range due[1:] {
		assert.Equal(t, every, at.Sub(due[i]), "%v", due)
	}
	c.Eventually("two are kept", func() error {
		kept := slices.DeleteFunc(c.Cloud.Snapshots(), func(s cloud.Snapshot) bool { return s.VolumeID != w.Volume().ID || s.State != cloud.SnapshotCompleted })
		if len(kept) != 2 {
			return errors.New(w.Story())
		}
		return nil
	})
	dead.PowerOn()
	c.Settle()
	c.RemoveWriters(w)
	c.NothingLeft()
}
