package managed

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// copies is the snapshots of a tiny cloud, each of which is complete after a minute. A snapshot's native description is its id.
type copies struct {
	mu    sync.Mutex
	taken map[string][]string // by description
	begun time.Time
	other bool // another node takes the next one first
}

func (c *copies) snapshots(p *Provider[Disk[string]]) *Snapshots[Disk[string], string] {
	c.taken = make(map[string][]string)
	return NewSnapshots(p, SnapshotCloud[Disk[string], string]{
		MaxPause: time.Second,
		Show: func(id string) Snapshot[string] {
			c.mu.Lock()
			defer c.mu.Unlock()
			s := Snapshot[string]{Snapshot: providers.Snapshot{ID: id, State: providers.SnapshotComplete}}
			switch {
			case id == "failed":
				s.State, s.Detail = providers.SnapshotFailed, "no luck"
			case time.Since(c.begun) < time.Minute:
				s.State = providers.SnapshotCreating
			}
			return s
		},
		Taken: func(_ context.Context, _, description string) ([]string, error) {
			c.mu.Lock()
			all := slices.Clone(c.taken[description])
			c.mu.Unlock()
			time.Sleep(time.Second) // the way of the answer
			return all, nil
		},
		Take: func(_ context.Context, _ Disk[Disk[string]], description string) (string, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.begun = time.Now()
			id := fmt.Sprintf("%s-%d", description, len(c.taken[description]))
			c.taken[description] = append(c.taken[description], id)
			if c.other {
				return "", ErrTaken
			}
			return id, nil
		},
		Get: func(_ context.Context, id string) (string, error) { return id, nil },
	})
}

func TestADescriptionOfAVolumeIsOneSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		volumes := &tiny{}
		volumes.put("1", "db", nil)
		c := &copies{}
		s := c.snapshots(volumes.provider())
		c.taken["nightly"] = []string{"failed"}
		take := func(description, want string) {
			snapshot, err := s.Snapshot(t.Context(), "1", providers.SnapshotSpec{Description: description})
			if assert.NoError(t, err) {
				assert.Equal(t, want, snapshot.ID)
			}
		}
		begin := time.Now()
		var calls sync.WaitGroup
		for range 3 {
			calls.Go(func() { take("nightly", "nightly-1") })
		}
		calls.Go(func() { take("weekly", "weekly-0") })
		calls.Wait()
		assert.Less(t, time.Since(begin), 2*time.Minute, "one description does not wait for another")
		assert.Len(t, c.taken["nightly"], 2)
		c.other = true
		take("monthly", "monthly-0")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.other = false
		_, err := s.Snapshot(ctx, "1", providers.SnapshotSpec{Description: "yearly"})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "not complete yet")
		take("yearly", "yearly-0")
	})
}
