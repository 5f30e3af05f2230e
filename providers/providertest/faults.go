package providertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// change is one call that changes the cloud, with what must hold after it has succeeded, however often it was tried.
type change struct {
	name    string
	call    func(context.Context, providers.Provider) error
	settled func(providers.Provider)
}

// changes sets a world up for each changing call of the contract.
func (w *world) changes(p providers.Provider) []change {
	free, marked, freed, doomed := w.create(p, "free"), w.create(p, "marked"), w.create(p, "freed"), w.create(p, "doomed")
	kept, adopted := w.create(p, "kept"), w.create(p, "adopted")
	require.NoError(w.t, p.Forget(w.ctx, adopted.ID))
	w.attach(p, freed)
	node := w.id(p)
	all := []change{
		{"create", func(ctx context.Context, p providers.Provider) error {
			_, err := p.Create(ctx, providers.Spec{Name: "new", Size: w.Size, Record: providers.Record{"layout": "data"}})
			return err
		}, func(p providers.Provider) {
			v := w.find(p, "new")
			assert.Equal(w.t, providers.Record{"layout": "data"}, v.Record)
			require.NoError(w.t, p.Delete(w.ctx, v.ID))
			w.missing(p, "new") // there was only one
		}},
		{
			"attach", func(ctx context.Context, p providers.Provider) error { return Attach(ctx, p, free.ID) },
			func(p providers.Provider) {
				require.True(w.t, w.until(p, "free", providers.Attached).HeldBy(node))
				if w.Device != nil {
					w.Device(w.t, "a", w.find(p, "free"))
				}
				w.detach(p, free)
			},
		},
		{
			"detach", func(ctx context.Context, p providers.Provider) error { return p.Detach(ctx, freed.ID, node, false) },
			func(p providers.Provider) {
				w.until(p, "freed", providers.Detached)
				b := w.on("b")
				w.attach(b, freed)
				w.detach(b, freed)
			},
		},
		{
			"mark", func(ctx context.Context, p providers.Provider) error { return p.Mark(ctx, marked.ID, "layout", "data") },
			func(p providers.Provider) {
				assert.Equal(w.t, providers.Record{"layout": "data"}, w.find(p, "marked").Record)
			},
		},
		{
			"delete", func(ctx context.Context, p providers.Provider) error { return p.Delete(ctx, doomed.ID) },
			func(p providers.Provider) { w.missing(p, "doomed") },
		},
		{
			"forget", func(ctx context.Context, p providers.Provider) error { return p.Forget(ctx, kept.ID) },
			func(p providers.Provider) {
				w.missing(p, "kept")
				v, err := p.Adopt(w.ctx, kept.ID, providers.Spec{Name: "kept"})
				require.NoError(w.t, err)
				assert.Equal(w.t, kept.ID, v.ID)
			},
		},
		{"adopt", func(ctx context.Context, p providers.Provider) error {
			_, err := p.Adopt(ctx, adopted.ID, providers.Spec{Name: "adopted"})
			return err
		}, func(p providers.Provider) { assert.Equal(w.t, adopted.ID, w.find(p, "adopted").ID) }},
	}
	if s, ok := p.(providers.Snapshotter); ok {
		var snap *providers.Snapshot
		all = append(all, change{"snapshot", func(ctx context.Context, p providers.Provider) (err error) {
			snap, err = p.(providers.Snapshotter).Snapshot(ctx, marked.ID, providers.SnapshotSpec{Description: "one"})
			return err
		}, func(p providers.Provider) {
			again, err := p.(providers.Snapshotter).Snapshot(w.ctx, marked.ID, providers.SnapshotSpec{Description: "one"})
			require.NoError(w.t, err)
			assert.Equal(w.t, snap.ID, again.ID)
		}})
		source, err := s.Snapshot(w.ctx, free.ID, providers.SnapshotSpec{Description: "source"})
		require.NoError(w.t, err)
		all = append(all, change{"create from a snapshot", func(ctx context.Context, p providers.Provider) error {
			_, err := p.Create(ctx, providers.Spec{Name: "copy", Snapshot: source.ID})
			return err
		}, func(p providers.Provider) { assert.Equal(w.t, source.ID, w.find(p, "copy").Snapshot) }})
	}
	if _, ok := p.(providers.Modifier); ok {
		all = append(all, change{"modify", func(ctx context.Context, p providers.Provider) error {
			_, err := p.(providers.Modifier).Modify(ctx, marked.ID, providers.Change{Size: 2 * w.Size})
			return err
		}, func(p providers.Provider) { assert.Equal(w.t, 2*w.Size, w.find(p, "marked").Size) }})
	}
	return all
}

func (w *world) breakable(faults ...Fault) {
	if w.Break == nil {
		w.t.Skip("the harness breaks nothing")
	}
	for _, f := range faults {
		if !slices.Contains(w.faults(), f) {
			w.t.Skipf("the harness has no fault %q", f)
		}
	}
}

func (w *world) faults() []Fault {
	if w.Faults == nil {
		return []Fault{Refuse, LoseAnswer, Hang}
	}
	return w.Faults
}

// faultsPass: refused or unanswered, a call made again by the same process or the next one has the effect of one.
func faultsPass(w *world) {
	w.breakable(Refuse, LoseAnswer)
	for _, fault := range []Fault{Refuse, LoseAnswer} {
		for _, process := range []string{"same process", "next process"} {
			w.cluster = string(fault) + ", " + process
			p := w.on("a")
			for _, c := range w.changes(p) {
				mend := w.Break(w.t, "a", fault)
				require.Error(w.t, c.call(w.ctx, p), "%s: %s", w.cluster, c.name)
				mend()
				next := p
				if process == "next process" {
					next = w.on("a")
				}
				require.NoError(w.t, c.call(w.ctx, next), "%s: %s", w.cluster, c.name)
				c.settled(next)
			}
		}
	}
}

func brokenIsNotEmpty(w *world) {
	w.breakable(Refuse)
	p := w.on("a")
	v := w.create(p, "db")
	mend := w.Break(w.t, "a", Refuse)
	for _, p := range []providers.Provider{p, w.on("a")} {
		if _, err := p.Find(w.ctx, "db"); err != nil {
			assert.NotErrorIs(w.t, err, providers.ErrNotFound)
		}
		if list, err := p.List(w.ctx); err == nil {
			assert.Len(w.t, list, 1)
		}
		if err := Attach(w.ctx, p, v.ID); assert.Error(w.t, err) {
			assert.NotErrorIs(w.t, err, providers.ErrNotFound)
			assert.NotErrorIs(w.t, err, providers.ErrHeld)
		}
	}
	mend()
	w.attach(p, v)
	w.detach(p, v)
}

// strangersKnowNothing: by a 404 of a gateway or a proxy no node is gone, no volume is missing, and nothing is done.
func strangersKnowNothing(w *world) {
	if w.BreakCall == nil || w.NotFounds == nil {
		w.t.Skip("the harness breaks no single calls, or has no such fault")
	}
	a, b := w.on("a"), w.on("b")
	free, held := w.create(a, "free"), w.attach(b, w.create(b, "held"))
	holder := w.id(b)
	notGone := func(p providers.Provider, what string) {
		if state, err := p.NodeState(w.ctx, holder); err == nil {
			require.NotContains(w.t, []providers.Life{providers.Gone, providers.Stopped}, state.Life, what)
		}
	}
	for _, fault := range w.NotFounds {
		for process, p := range map[string]providers.Provider{"same process": a, "next process": w.on("a")} {
			what := fmt.Sprintf("%s, %s", fault, process)
			mend := w.Break(w.t, "a", fault)
			for range 2 {
				notGone(p, what)
			}
			_, findErr := p.Find(w.ctx, "free")
			for call, err := range map[string]error{
				"find": findErr, "delete": p.Delete(w.ctx, free.ID), "forget": p.Forget(w.ctx, free.ID),
				"detach": p.Detach(w.ctx, held.ID, holder, true), "attach": Attach(w.ctx, p, free.ID), "mark": p.Mark(w.ctx, free.ID, "layout", "data"),
			} {
				require.Error(w.t, err, "%s: %s", what, call)
				require.NotErrorIs(w.t, err, providers.ErrNotFound, "%s: %s", what, call)
			}
			mend()
		}

		// One among the cloud's own answers.
		for n, more := 1, true; more; n++ {
			met := w.BreakCall(w.t, "a", n, fault)
			notGone(w.on("a"), fmt.Sprintf("%s at call %d of NodeState", fault, n))
			more = met()
		}
		for n, more := 1, true; more; n++ {
			doomed := w.create(b, "doomed")
			met := w.BreakCall(w.t, "a", n, fault)
			err := w.on("a").Delete(w.ctx, doomed.ID)
			if more = met(); err != nil {
				assert.Equal(w.t, doomed.ID, w.find(b, "doomed").ID)
				require.NoError(w.t, b.Delete(w.ctx, doomed.ID))
			}
			w.missing(b, "doomed") // a deletion that is reported has been seen
		}
	}
	assert.Equal(w.t, held, w.find(b, "held"))
	assert.Equal(w.t, free, w.find(b, "free"))
	w.detach(b, held)
}

// blindIsNoEvidence: a cloud that no longer shows this very node, as to the credentials of another account, project or region,
// says nothing by not showing others.
func blindIsNoEvidence(w *world) {
	if w.Remove == nil || w.ShowsRemoved {
		w.t.Skip("the harness hides no nodes")
	}
	blind, gone := w.on("blind"), w.id(w.on("gone"))
	w.id(blind)
	w.Remove(w.t, "gone")
	w.Remove(w.t, "blind")
	state, err := blind.NodeState(w.ctx, gone)
	require.NoError(w.t, err)
	assert.Equal(w.t, providers.Unclear, state.Life)
	assert.NotEmpty(w.t, state.Evidence)
}

func hangEnds(w *world) {
	w.breakable(Hang)
	p := w.on("a")
	for _, c := range w.changes(p) {
		mend := w.Break(w.t, "a", Hang)
		ctx, cancel := context.WithTimeout(w.ctx, 50*time.Millisecond)
		require.ErrorIs(w.t, c.call(ctx, p), context.DeadlineExceeded, c.name)
		cancel()
		mend()
		require.NoError(w.t, c.call(w.ctx, p), c.name)
		c.settled(p)
	}
}

// throttlesPass: calls that the cloud refuses for a while, because there are too many, do not fail for that.
func throttlesPass(w *world) {
	w.breakable(Throttle)
	p := w.on("a")
	changes := w.changes(p)
	mend := w.Break(w.t, "a", Throttle)

	// Only a context ends the waiting, and nothing is guessed then.
	ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
	defer cancel()
	_, err := w.on("a").Find(ctx, "no such volume")
	require.Error(w.t, err)
	require.NotErrorIs(w.t, err, providers.ErrNotFound)

	var calls sync.WaitGroup
	for _, c := range changes {
		calls.Go(func() { assert.NoError(w.t, c.call(w.ctx, p), c.name) })
	}
	calls.Go(func() {
		_, err := w.on("a").Find(w.ctx, "no such volume")
		assert.ErrorIs(w.t, err, providers.ErrNotFound)
	})
	calls.Go(func() {
		_, err := w.on("a").List(w.ctx)
		assert.NoError(w.t, err)
	})
	time.Sleep(500 * time.Millisecond) // the cloud has had enough for a while
	mend()
	calls.Wait()
	for _, c := range changes {
		c.settled(p)
	}
}

// singleFaultsPass: whichever one of the calls that make a change meets a fault, the change is done or can be done again.
func singleFaultsPass(w *world) {
	if w.BreakCall == nil {
		w.t.Skip("the harness breaks no single calls")
	}
	for _, fault := range w.faults() {
		const tooMany = 50
		done := map[string]bool{} // changes that make fewer calls
		for n := 1; ; n++ {
			require.Less(w.t, n, tooMany, "%s: the calls have no end", fault)
			w.cluster = fmt.Sprintf("%s at %d", fault, n)
			p := w.on("a")
			changes := w.changes(p)
			for i, c := range changes {
				if done[c.name] { // unbroken, so that nothing is left attached
					require.NoError(w.t, c.call(w.ctx, p), c.name)
					c.settled(p)
					continue
				}
				done[c.name] = w.survives(p, c, fault, n, (n+i)%2 == 0)
			}
			if len(done) == len(changes) && !slices.Contains(slices.Collect(maps.Values(done)), false) {
				break
			}
		}
	}
}

// survives makes the change while the n-th of its calls to the cloud meets the fault, and again if that has failed. It tells
// whether the change is complete with fewer calls.
func (w *world) survives(p providers.Provider, c change, fault Fault, n int, restarted bool) (fewer bool) {
	w.t.Helper()
	what := fmt.Sprintf("%s at call %d of %s", fault, n, c.name)
	ctx, cancel := w.ctx, context.CancelFunc(func() {})
	if fault == Hang {
		ctx, cancel = context.WithTimeout(w.ctx, 100*time.Millisecond)
	}
	met := w.BreakCall(w.t, "a", n, fault)
	err := c.call(ctx, p)
	cancel()
	came := met()
	for _, verdict := range []error{providers.ErrNotFound, providers.ErrInvalid, providers.ErrHeld} {
		require.NotErrorIs(w.t, err, verdict, "a fault is no answer: %s", what)
	}
	if fault == Throttle || !came && fault != Hang {
		require.NoError(w.t, err, what)
	}
	for try := range 4 { // the first repeats even what has succeeded
		if restarted {
			p = w.on("a")
		}
		if err = c.call(w.ctx, p); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond << try)
	}
	require.NoError(w.t, err, "again after %s", what)
	c.settled(p)
	return !came && !errors.Is(ctx.Err(), context.DeadlineExceeded)
}
