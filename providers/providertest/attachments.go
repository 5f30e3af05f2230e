package providertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func attachIsExclusive(w *world) {
	a, b := w.on("a"), w.on("b")
	v := w.create(a, "db")
	held := w.attach(a, v)
	assert.Equal(w.t, held, w.find(b, "db"))
	require.NoError(w.t, Attach(w.ctx, a, v.ID))
	for range 2 {
		w.heldBy(Attach(w.ctx, b, v.ID), v, w.id(a))
	}
	assert.Equal(w.t, held, w.find(a, "db"))
	w.detach(a, v)
	w.attach(b, v)
	w.heldBy(Attach(w.ctx, a, v.ID), v, w.id(b))
	w.detach(b, v)
}

func attachNamesItsNode(w *world) {
	a, b := w.on("a"), w.on("b")
	v := w.create(a, "db")
	if err := a.Attach(w.ctx, v.ID, w.id(b)); err != nil { // disks of this machine alone
		require.ErrorIs(w.t, err, providers.ErrInvalid)
		require.False(w.t, w.find(a, "db").Held())
		w.attach(b, v)
	} else {
		require.True(w.t, w.until(b, "db", providers.Attached).HeldBy(w.id(b)))
		require.NoError(w.t, a.Attach(w.ctx, v.ID, w.id(b)))
	}
	w.heldBy(Attach(w.ctx, a, v.ID), v, w.id(b))
	require.Error(w.t, a.Attach(w.ctx, v.ID, "no such node"))
	require.True(w.t, w.find(a, "db").HeldBy(w.id(b)))
	w.detach(b, v)
	require.Error(w.t, a.Attach(w.ctx, v.ID, ""))
	require.False(w.t, w.find(a, "db").Held())
}

func attachAtOnce(w *world) {
	v := w.create(w.on("n0"), "db")
	const nodes = 4
	errs := make([]error, 2*nodes)
	var wg sync.WaitGroup
	for i := range errs {
		p := w.on(fmt.Sprintf("n%d", i%nodes))
		wg.Go(func() { errs[i] = Attach(w.ctx, p, v.ID) })
	}
	wg.Wait()
	winner := w.until(w.on("n0"), "db", providers.Attached).Attachment.Node
	for i, err := range errs {
		p := w.on(fmt.Sprintf("n%d", i%nodes))
		if w.id(p) != winner {
			require.Error(w.t, err)
			w.heldBy(Attach(w.ctx, p, v.ID), v, winner)
		} else if err != nil {
			require.ErrorIs(w.t, err, providers.ErrBusy)
		}
	}
	require.NoError(w.t, w.on("n0").Detach(w.ctx, v.ID, winner, false))
	w.until(w.on("n0"), "db", providers.Detached)
}

func detachIsIdempotent(w *world) {
	a, b := w.on("a"), w.on("b")
	v := w.create(a, "db")
	require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(a), false))
	w.attach(a, v)
	for _, force := range []bool{false, true} {
		require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(b), force))
		require.NoError(w.t, b.Detach(w.ctx, v.ID, w.id(b), force))
		require.True(w.t, w.find(b, "db").HeldBy(w.id(a)))
	}
	w.detach(a, v)
	w.detach(a, v)
	w.attach(b, v)
	require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(a), true), "a late repetition")
	require.True(w.t, w.find(a, "db").HeldBy(w.id(b)))

	// Any node can ask, if nothing is mounted.
	require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(b), false))
	w.until(a, "db", providers.Detached)
	require.NoError(w.t, a.Delete(w.ctx, v.ID))
	require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(a), false))
}

// What a node gave up a moment ago a read may still show there, while another node has it.
func oldAnswersAreKnown(w *world) {
	if w.Lag == nil {
		w.t.Skip("the cloud's answers are never old")
	}
	a, b := w.on("a"), w.on("b")
	v := w.create(a, "db")
	w.find(b, "db")
	for range 5 {
		w.attach(a, v)
		w.Lag(5 * time.Second)
		time.Sleep(10 * time.Second)
		require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(a), false))
		for Attach(w.ctx, b, v.ID) != nil {
			time.Sleep(50 * time.Millisecond)
			require.NoError(w.t, w.ctx.Err())
		}
		for range 10 {
			err := Attach(w.ctx, a, v.ID)
			require.True(w.t, errors.Is(err, providers.ErrHeld) || errors.Is(err, providers.ErrBusy), "%v", err)
			w.find(a, "db")
			require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(a), false))
			time.Sleep(500 * time.Millisecond)
		}
		w.Lag(0)
		require.True(w.t, w.find(a, "db").HeldBy(w.id(b)))
		w.detach(b, v)
	}
}

func attachmentsOutliveProcesses(w *world) {
	a := w.on("a")
	v := w.attach(a, w.create(a, "db"))
	again := w.on("a")
	assert.Equal(w.t, v, w.find(again, "db"))
	require.NoError(w.t, Attach(w.ctx, again, v.ID))
	w.heldBy(Attach(w.ctx, w.on("b"), v.ID), v, w.id(again))
	w.detach(w.on("a"), v)
}

func bytesFollow(w *world) {
	if w.Device == nil {
		w.t.Skip("the harness shows no devices")
	}
	a, b := w.on("a"), w.on("b")
	v, other := w.create(a, "db"), w.create(a, "other")
	w.put(a, "a", v, "first")
	w.put(b, "b", other, "other")
	require.Equal(w.t, "first", w.get(b, "b", v, v.Size, 5))
	w.put(b, "b", v, "after")
	assert.Equal(w.t, "after", w.get(w.on("a"), "a", v, v.Size, 5))
	assert.Equal(w.t, "other", w.get(a, "a", other, other.Size, 5))
	require.NoError(w.t, a.Delete(w.ctx, v.ID))
	v = w.create(a, "db")
	assert.Equal(w.t, string(make([]byte, 5)), w.get(a, "a", v, v.Size, 5), "a new disk shows nothing of an old one")
}

func cancelledDoesNothing(w *world) {
	a := w.on("a")
	free, held := w.create(a, "free"), w.create(a, "held")
	w.attach(a, held)
	forgotten := w.create(a, "forgotten")
	require.NoError(w.t, a.Forget(w.ctx, forgotten.ID))
	before, err := a.List(w.ctx)
	require.NoError(w.t, err)

	holder := w.id(a)
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	fresh := w.on("a") // which has nothing in memory to answer from
	calls := map[string]func() error{
		"Find":      func() error { _, err := fresh.Find(ctx, "free"); return err },
		"List":      func() error { _, err := fresh.List(ctx); return err },
		"NodeState": func() error { _, err := fresh.NodeState(ctx, "b"); return err },
		"Create":    func() error { _, err := fresh.Create(ctx, providers.Spec{Name: "new", Size: w.Size}); return err },
		"Adopt":     func() error { _, err := fresh.Adopt(ctx, forgotten.ID, providers.Spec{Name: "new"}); return err },
		"Forget":    func() error { return fresh.Forget(ctx, free.ID) },
		"Delete":    func() error { return fresh.Delete(ctx, free.ID) },
		"Attach":    func() error { return Attach(ctx, fresh, free.ID) },
		"Detach":    func() error { return fresh.Detach(ctx, held.ID, holder, false) },
		"Mark":      func() error { return fresh.Mark(ctx, free.ID, "layout", "root") },
	}
	if s, ok := fresh.(providers.Snapshotter); ok {
		calls["Snapshot"] = func() error { _, err := s.Snapshot(ctx, free.ID, providers.SnapshotSpec{Description: "x"}); return err }
		calls["FindSnapshot"] = func() error { _, err := s.FindSnapshot(ctx, "x"); return err }
		calls["ListSnapshots"] = func() error { _, err := s.ListSnapshots(ctx); return err }
		calls["DeleteSnapshot"] = func() error { return s.DeleteSnapshot(ctx, "x") }
	}
	if m, ok := fresh.(providers.Modifier); ok {
		calls["Modify"] = func() error { _, err := m.Modify(ctx, free.ID, providers.Change{Size: 2 * w.Size}); return err }
	}
	for name, call := range calls {
		require.ErrorIs(w.t, call(), context.Canceled, name)
	}
	after, err := a.List(w.ctx)
	require.NoError(w.t, err)
	assert.Equal(w.t, before, after)
	w.detach(a, held)
}

func runningIsNoEvidence(w *world) {
	a, b := w.on("a"), w.on("b")
	v := w.attach(a, w.create(a, "db"))
	for _, p := range []providers.Provider{a, b, w.on("b")} {
		state, err := p.NodeState(w.ctx, w.id(a))
		require.NoError(w.t, err)
		assert.Equal(w.t, providers.Running, state.Life)
		assert.NotEmpty(w.t, state.Evidence)
	}
	state, err := b.NodeState(w.ctx, "no-such-node")
	if err == nil {
		assert.Contains(w.t, []providers.Life{providers.Gone, providers.Unclear}, state.Life)
		assert.NotEmpty(w.t, state.Evidence)
	}
	w.detach(a, v)
}

func stoppedIsTold(w *world) {
	endings := []struct {
		node string
		end  func()
		want []providers.Life
	}{
		{"stops", func() { w.Stop(w.t, "stops") }, []providers.Life{providers.Stopped}},
		{"goes", func() { w.Remove(w.t, "goes") }, []providers.Life{providers.Gone}},
	}
	tried := false
	for _, e := range endings {
		if e.node == "stops" && w.Stop == nil || e.node == "goes" && w.Remove == nil {
			continue
		}
		tried = true
		doomed := w.on(e.node)
		id := w.id(doomed)
		v := w.attach(doomed, w.create(doomed, e.node))
		e.end()

		b := w.on("b")
		state, err := b.NodeState(w.ctx, id)
		require.NoError(w.t, err)
		assert.Contains(w.t, e.want, state.Life)
		assert.NotEmpty(w.t, state.Evidence)
		if err := Attach(w.ctx, b, v.ID); err != nil { // a cloud may have let go by itself
			w.heldBy(err, v, id)
			require.NoError(w.t, b.Detach(w.ctx, v.ID, id, true))
		} else {
			require.NoError(w.t, b.Detach(w.ctx, v.ID, w.id(b), false))
		}
		w.until(b, v.Name, providers.Detached)
		w.attach(b, v)
		w.detach(b, v)
	}
	if !tried {
		w.t.Skip("the harness cannot stop or remove nodes")
	}
}

// manyCallers attaches and detaches a few volumes on many nodes at random. What an Attach that succeeded says is
// compared with what all others were told.
func manyCallers(w *world) {
	const nodes, volumes, rounds = 4, 3, 25
	vols := make([]*providers.Volume, volumes)
	for i := range vols {
		vols[i] = w.create(w.on("n0"), fmt.Sprintf("v%d", i))
	}
	var (
		mu     sync.Mutex
		writer [volumes]int // node + 1
		wg     sync.WaitGroup
		took   int
	)
	for n := range nodes {
		p := w.on(fmt.Sprintf("n%d", n))
		id := w.id(p)
		rnd := rand.New(rand.NewPCG(1, uint64(n)))
		wg.Go(func() {
			for range rounds {
				i := rnd.IntN(volumes)
				err := Attach(w.ctx, p, vols[i].ID)
				if errors.Is(err, providers.ErrHeld) || errors.Is(err, providers.ErrBusy) {
					continue
				}
				if err != nil {
					w.t.Errorf("attach: %v", err)
					return
				}
				mu.Lock()
				took++
				assert.Zero(w.t, writer[i], "%s is held twice", vols[i].Name)
				writer[i] = n + 1
				mu.Unlock()

				v, err := p.Find(w.ctx, vols[i].Name)
				if assert.NoError(w.t, err) {
					assert.True(w.t, v.HeldBy(id))
				}
				if err := p.Delete(w.ctx, vols[i].ID); !errors.Is(err, providers.ErrHeld) {
					w.t.Errorf("delete in use: %v", err)
				}

				mu.Lock()
				writer[i] = 0
				mu.Unlock()
				for {
					if err = p.Detach(w.ctx, vols[i].ID, id, false); !errors.Is(err, providers.ErrBusy) || w.ctx.Err() != nil {
						break
					}
				}
				assert.NoError(w.t, err)
			}
		})
	}
	wg.Wait()
	assert.NotZero(w.t, took)
	for _, v := range vols {
		w.until(w.on("n0"), v.Name, providers.Detached)
		require.NoError(w.t, w.on("n1").Delete(w.ctx, v.ID))
	}
	assert.Empty(w.t, w.names(w.on("n2")))
}
