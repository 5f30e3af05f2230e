package managed

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// shown is an answer about volume 1 to a question of this moment: attached to the node, or to none.
func shown(node string) Disk[Disk[string]] {
	d := Disk[Disk[string]]{Volume: providers.Volume{ID: "1", Name: "db"}, Cluster: "main", Asked: time.Now()}
	if node != "" {
		d.Attachment = providers.Attachment{Node: node, State: providers.Attached}
	}
	return d
}

func TestAnOldAnswerDoesNotEndADetachThatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&tiny{}).provider()
		p.cloud.DetachTime = time.Minute
		state := func(d Disk[Disk[string]]) providers.AttachState {
			d, err := p.settle(t.Context(), d, askLater)
			require.NoError(t, err)
			return d.Attachment.State
		}
		p.Begin("1", Operation{Node: "a"})
		time.Sleep(time.Second)
		assert.Equal(t, providers.Detaching, state(shown("a")))
		assert.Equal(t, providers.Attached, state(shown("b")), "another node's by now")
		p.Begin("1", Operation{Node: "a"})
		time.Sleep(time.Second)
		assert.Equal(t, providers.Detached, state(shown("")))
		assert.Equal(t, providers.Detaching, state(shown("a")), "an old answer")
		time.Sleep(providers.MaxStale)
		assert.Equal(t, providers.Attached, state(shown("a")), "it is attached again")

		p.Begin("1", Operation{Node: "a"})
		time.Sleep(time.Minute)
		assert.Equal(t, providers.Attached, state(shown("a")), "the detach has failed")
	})
}

func TestTheStateOfAnAttachIsAskedForIfNoAnswerShowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &tiny{}
		p := c.provider()
		asked, became, problem := 0, Running, ""
		p.cloud.AttachTime = 10 * time.Second
		p.cloud.OperationState = func(context.Context, string, string) (State, string, error) {
			asked++
			return became, problem, nil
		}
		settled := func(ask asking) Disk[Disk[string]] {
			d, err := p.settle(t.Context(), shown(""), ask)
			require.NoError(t, err)
			return d
		}
		p.Begin("1", Operation{ID: "7", Node: "a", Attach: true})
		time.Sleep(time.Second)
		assert.Equal(t, providers.Attachment{Node: "a", State: providers.Attaching}, settled(askLater).Attachment)
		assert.Zero(t, asked, "so soon it is taken to be under way")
		assert.Equal(t, providers.Attaching, settled(askAtOnce).Attachment.State)
		assert.Equal(t, 1, asked)
		time.Sleep(10 * time.Second)
		assert.Equal(t, providers.Attaching, settled(askNever).Attachment.State)
		assert.Equal(t, 1, asked)

		became, problem = Failed, "no more room"
		d := settled(askLater)
		assert.Equal(t, providers.Attachment{Node: "a", State: providers.AttachFailed, Problem: "no more room"}, d.Attachment)
		_, err := p.ensureDetached(t.Context(), d)
		require.NoError(t, err, "what has failed holds nothing")
		assert.Equal(t, 2, asked)
		assert.Equal(t, providers.AttachFailed, settled(askLater).Attachment.State)
		assert.Equal(t, 2, asked, "it is known")

		p.Begin("1", Operation{ID: "8", Node: "a", Attach: true})
		time.Sleep(10 * time.Second)
		c.put("1", "db", nil)
		became = Finished
		assert.Equal(t, providers.Detached, settled(askLater).Attachment.State, "as the next answer shows it")
		_, known := p.LastOperation("1")
		assert.False(t, known)
		held, err := p.heldBy(t.Context(), "1", "a")
		require.ErrorIs(t, err, errOld, "that answer may be older than the end of the attach")
		assert.Empty(t, held)
		time.Sleep(providers.MaxStale)
		held, err = p.heldBy(t.Context(), "1", "a")
		require.NoError(t, err)
		assert.Equal(t, providers.Detached, held)
	})
}

// A volume that is busy keeps no other change of its node waiting; a node that is busy does.
func TestOnlyABusyNodeIsWaitedForInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := (&tiny{}).provider()
		p.cloud.Queue = Queued
		for _, told := range []error{ErrVolumeBusy, errOld, Certain(providers.ErrBusy), providers.ErrHeld, nil} {
			calls, begin := 0, time.Now()
			err := p.inTurn(t.Context(), "a", func(context.Context) error { calls++; return told })
			require.ErrorIs(t, err, told)
			assert.Equal(t, 1, calls)
			assert.Zero(t, time.Since(begin))
		}
		calls := 0
		require.NoError(t, p.inTurn(t.Context(), "a", func(context.Context) error {
			if calls++; calls < 3 {
				return providers.ErrBusy
			}
			return nil
		}))
		assert.Equal(t, 3, calls)
	})
}

// What was created a moment ago is not missing because an answer does not show it yet, nor is it ours no more.
func TestAStaleAnswerDoesNotMakeAVolumeMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &tiny{}
		p := c.provider()
		p.memory.on = true
		p.named("db", "1")
		go func() {
			time.Sleep(5 * time.Second)
			c.put("1", "db", nil)
		}()
		v, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
		assert.Equal(t, "1", v.ID)
		c.mu.Lock()
		delete(c.disks, "1")
		c.mu.Unlock()
		begin := time.Now()
		_, err = p.Get(t.Context(), "1")
		require.ErrorIs(t, err, providers.ErrNotFound)
		assert.GreaterOrEqual(t, time.Since(begin), providers.MaxStale)
		begin = time.Now()
		_, err = p.Find(t.Context(), "db")
		require.ErrorIs(t, err, providers.ErrNotFound)
		assert.Zero(t, time.Since(begin), "that is known")
	})
}

// What this process has just given its name is not another's because an answer from before does not show the marks.
func TestAStaleAnswerDoesNotDisownAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &tiny{}
		p := c.provider()
		p.memory.on = true
		c.put("1", "db", nil)
		marked := c.disks["1"]
		bare := Disk[string]{Volume: providers.Volume{ID: "1"}}
		c.set("1", bare)
		p.named("db", "1")
		go func() {
			time.Sleep(5 * time.Second)
			c.set("1", marked)
		}()
		_, err := p.GetOurs(t.Context(), "1")
		require.NoError(t, err)
		c.set("1", bare)
		begin := time.Now()
		_, err = p.GetOurs(t.Context(), "1")
		require.ErrorIs(t, err, providers.ErrNotFound)
		assert.GreaterOrEqual(t, time.Since(begin), providers.MaxStale)
	})
}
