package providertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// moment is how long changes take in these statements, where they take any time.
const moment = 200 * time.Millisecond

func (w *world) fencer(node string) providers.Fencer {
	w.t.Helper()
	f, is := w.on(node).(providers.Fencer)
	if !is || w.Off == nil {
		w.t.Skip("the provider powers no nodes off, or the harness does not tell which are off")
	}
	return f
}

// whileBusy makes a call again as long as the cloud is busy.
func (w *world) whileBusy(call func(ctx context.Context, node string) error, node string) {
	w.t.Helper()
	for {
		err := call(w.ctx, node)
		if err == nil {
			return
		}
		require.ErrorIs(w.t, err, providers.ErrBusy)
		time.Sleep(5 * time.Millisecond)
	}
}

// live asks for a node's state until its life is as wanted. It must not be called stopped before its power is cut.
func (w *world) live(node string, want providers.Life) {
	w.t.Helper()
	id := w.id(w.on(node))
	for p := w.on("b"); ; time.Sleep(5 * time.Millisecond) {
		state, err := p.NodeState(w.ctx, id)
		require.NoError(w.t, err)
		if state.Life == providers.Stopped {
			require.True(w.t, w.Off(w.t, node), "it is called stopped while its power is on: %s", state.Evidence)
		}
		require.NotEqual(w.t, providers.Gone, state.Life, state.Evidence)
		if state.Life == want {
			return
		}
	}
}

// fencedIsStopped: with quick changes and slow ones, also if the cloud calls the node running until it is off, or its answers are old.
func fencedIsStopped(w *world) {
	b := w.fencer("b")
	for _, mode := range []string{"quick", "slow", "hidden", "old"} {
		w.t.Log(mode)
		node := mode + " node"
		a := w.on(node)
		id := w.id(a)
		v := w.attach(a, w.create(a, mode))
		switch {
		case mode == "slow":
			w.Pace(moment, moment)
		case mode == "hidden":
			w.HidePower(true)
		case mode == "old" && w.Lag != nil:
			time.Sleep(2 * providers.MaxStale) // else the node itself is not shown
			w.Lag(5 * time.Second)
		}
		for range 2 {
			w.whileBusy(b.PowerOff, id)
		}
		w.live(node, providers.Stopped)
		if w.Lag != nil {
			w.Lag(0)
			time.Sleep(2 * providers.MaxStale)
		}
		w.whileBusy(b.PowerOff, id) // it is off already

		p := w.on("b")
		if err := Attach(w.ctx, p, v.ID); err != nil { // a cloud may have let go by itself
			w.heldBy(err, v, id)
			require.NoError(w.t, p.Detach(w.ctx, v.ID, id, true))
			w.until(p, v.Name, providers.Detached)
			w.attach(p, v)
		}
		w.until(p, v.Name, providers.Attached)
		for range 2 {
			w.whileBusy(b.PowerOn, id)
		}
		w.live(node, providers.Running)
		w.whileBusy(b.PowerOn, id) // it runs already
		require.False(w.t, w.Off(w.t, node))
		require.False(w.t, w.Off(w.t, "b"), "the node that asks")
		w.heldBy(Attach(w.ctx, w.on(node), v.ID), v, w.id(p))
		w.detach(p, v)
		w.Pace(0, 0)
		w.HidePower(false)
	}
}

func busyIsFenced(w *world) {
	b := w.fencer("b")
	w.Pace(moment, moment)
	for _, attached := range []bool{false, true} {
		a := w.on("a")
		v := w.create(a, map[bool]string{false: "free", true: "held"}[attached])
		w.whileBusy(func(ctx context.Context, node string) error { return a.Attach(ctx, v.ID, node) }, w.id(a)) // it may have been started just now
		if attached {
			w.until(a, v.Name, providers.Attached)
			require.NoError(w.t, a.Detach(w.ctx, v.ID, w.id(a), false))
		}
		w.whileBusy(b.PowerOff, w.id(a))
		w.live("a", providers.Stopped)
		p := w.on("b")
		w.whileBusy(func(ctx context.Context, node string) error { return p.Detach(ctx, v.ID, node, true) }, w.id(a))
		w.until(w.on("b"), v.Name, providers.Detached)
		for range 2 {
			w.whileBusy(b.PowerOn, w.id(a))
		}
		err := b.PowerOff(w.ctx, w.id(a)) // while it starts
		require.True(w.t, err == nil || errors.Is(err, providers.ErrBusy), "%v", err)
		w.whileBusy(b.PowerOn, w.id(a))
		w.live("a", providers.Running)
	}
}

func fenceNeedsTheRight(w *world) {
	b := w.fencer("b")
	id := w.id(w.on("a"))
	allowed := b.ExamineFence(w.ctx)
	assert.Equal(w.t, providers.OK, allowed.Severity, allowed.Message)
	assert.Equal(w.t, "fence", allowed.Check)
	w.DenyPower(w.t, "b")
	for _, f := range []providers.Fencer{b, w.fencer("b")} {
		for _, call := range []func(context.Context, string) error{f.PowerOff, f.PowerOn} {
			err := call(w.ctx, id)
			require.ErrorIs(w.t, err, providers.ErrDenied)
			require.NotErrorIs(w.t, err, providers.ErrNotFound)
			Sentence(w.t, err, "docs/")
		}
		finding := f.ExamineFence(w.ctx)
		assert.Equal(w.t, "fence", finding.Check)
		if finding.Severity == providers.OK {
			assert.Contains(w.t, finding.Message, "cannot be tried without doing it")
			assert.Contains(w.t, finding.Message, "docs/")
		} else {
			assert.Equal(w.t, "permission-missing", finding.Code)
			assert.NotEmpty(w.t, finding.Remedy)
		}
	}
	for _, node := range []string{"a", "b"} {
		require.False(w.t, w.Off(w.t, node), "a trial is not carried out")
		w.live(node, providers.Running)
	}
	w.whileBusy(w.fencer("c").PowerOff, id)
	w.live("a", providers.Stopped)
}

func fenceKnowsNodes(w *world) {
	b := w.fencer("b")
	w.id(w.on("a"))
	for _, call := range []func(context.Context, string) error{b.PowerOff, b.PowerOn} {
		Sentence(w.t, call(w.ctx, w.id(w.on("b"))), "this node itself")
		require.ErrorIs(w.t, call(w.ctx, w.id(w.on("b"))), providers.ErrInvalid)
		for _, id := range []string{"", "no such node"} {
			Sentence(w.t, call(w.ctx, id), "is no id of")
			require.ErrorIs(w.t, call(w.ctx, id), providers.ErrNotFound)
		}
	}
	gone := w.id(w.on("goes"))
	w.Remove(w.t, "goes")
	for _, call := range []func(context.Context, string) error{b.PowerOff, b.PowerOn, w.fencer("b").PowerOff} {
		err := call(w.ctx, gone)
		for errors.Is(err, providers.ErrBusy) {
			time.Sleep(time.Second)
			err = call(w.ctx, gone)
		}
		require.ErrorIs(w.t, err, providers.ErrNotFound)
		Sentence(w.t, err, gone)
		require.NotContains(w.t, err.Error(), "volume")
	}
	for _, node := range []string{"a", "b"} {
		require.False(w.t, w.Off(w.t, node))
	}
}

// fenceIsSentOnce: a request whose answer is lost is not sent again by itself, since it could hit a node that runs again by then.
func fenceIsSentOnce(w *world) {
	b := w.fencer("b")
	if w.BreakCall == nil || w.Calls == nil || w.Lag == nil {
		w.t.Skip("the harness breaks no single calls, does not count them, or has clocks that cannot be turned")
	}
	id := w.id(w.on("a"))
	ask := func(fault Fault, call func(context.Context, string) error) {
		before := w.Calls(w.t, "b")
		met := w.BreakCall(w.t, "b", 1, fault)
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Minute)
		err := call(ctx, id)
		cancel()
		require.True(w.t, met(), "%s: %v", fault, err)
		if sent := w.Calls(w.t, "b") - before; fault != Refuse { // after a refusal the node's state is asked for
			require.Equal(w.t, 1, sent, "%s: %v", fault, err)
		}
		require.NotErrorIs(w.t, err, providers.ErrNotFound, fault)
	}
	for _, fault := range slices.DeleteFunc(slices.Concat(w.faults(), w.NotFounds), func(f Fault) bool { return f == Throttle }) {
		if !strings.Contains(string(fault), "404") {
			ask(fault, b.PowerOff)
			w.whileBusy(b.PowerOff, id)
			w.live("a", providers.Stopped)
			ask(fault, b.PowerOn)
			w.whileBusy(b.PowerOn, id)
			w.live("a", providers.Running)
			time.Sleep(70 * time.Second) // longer than any pause before a repetition
			require.False(w.t, w.Off(w.t, "a"), "%s: it was powered off again", fault)
			continue
		}
		mend := w.Break(w.t, "b", fault)
		for _, call := range []func(context.Context, string) error{b.PowerOff, b.PowerOn} {
			err := call(w.ctx, id)
			require.Error(w.t, err, fault)
			require.NotErrorIs(w.t, err, providers.ErrNotFound, fault)
		}
		mend()
	}

	w.whileBusy(b.PowerOff, id)
	w.live("a", providers.Stopped)
	mend := w.Break(w.t, "b", Throttle)
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	require.Error(w.t, b.PowerOn(ctx, id))
	cancel()
	before := w.Calls(w.t, "b")
	mend()
	time.Sleep(70 * time.Second)
	assert.Equal(w.t, before, w.Calls(w.t, "b"), "nothing is sent after its context has ended")
	assert.True(w.t, w.Off(w.t, "a"))
}

func cancelledPowersNothing(w *world) {
	id := w.id(w.on("a"))
	ctx, cancel := context.WithCancel(w.ctx)
	cancel()
	warm := w.fencer("b")
	require.Equal(w.t, providers.OK, warm.ExamineFence(w.ctx).Severity)
	for _, f := range []providers.Fencer{warm, w.fencer("b")} {
		before := w.Calls(w.t, "b")
		require.ErrorIs(w.t, f.PowerOff(ctx, id), context.Canceled)
		require.ErrorIs(w.t, f.PowerOn(ctx, id), context.Canceled)
		require.ErrorIs(w.t, f.PowerOff(ctx, "no such node"), context.Canceled)
		require.Equal(w.t, before, w.Calls(w.t, "b"), "nothing is sent")
	}
	w.live("a", providers.Running)
}
