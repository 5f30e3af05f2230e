// Package providertest is the contract of package providers as a suite of tests that any provider must pass, over its
// cloud or a simulation of it. The names of the subtests are the contract's sentences.
package providertest

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// Harness gives the suite a cloud to try.
type Harness struct {
	// New makes an empty account of the cloud. What it starts ends with t.
	New func(t *testing.T) *Cloud

	// Bubble runs each statement in a bubble of testing/synctest, where its waits cost nothing. New must open no sockets then.
	Bubble bool
}

// Cloud is one account. Functions that are nil are things that cannot be done to this cloud; the statements that need
// them are left out.
type Cloud struct {
	// Provider starts blockvol on a node, for a cluster: each call is a fresh process that knows nothing of the last
	// one, which may still be running. A node comes to be when it is first named. Words name nodes here; their ids are
	// what Provider.Node says.
	Provider func(t *testing.T, node, cluster string) providers.Provider

	// Size is what the suite's volumes have, in bytes: what the cloud sells without rounding.
	Size int64

	// Invalid are specifications, complete but for a name, that the cloud does not accept.
	Invalid []providers.Spec

	// Changes are what can be changed of a volume of Size, type and numbers by default; each is tried on one of its own.
	// InvalidChanges are those that the cloud does not accept of it.
	Changes, InvalidChanges []providers.Change

	// Device returns the path of the device of a volume attached to the node, when it has arrived.
	Device func(t *testing.T, node string, v *providers.Volume) string

	// Lag makes the cloud's answers up to so old from now on.
	Lag func(time.Duration)

	// Stop stops a node as a loss of power does; Remove destroys it. After that the node is not named again.
	Stop, Remove func(t *testing.T, node string)

	// SerialIsName is a cloud whose devices have the volume's name for a serial, so that a volume which is made anew under
	// the name of one deleted has that one's serial. Ids are never used again by any cloud.
	SerialIsName bool

	// SnapshotNeedsDetached is a cloud that cannot copy a volume in use, ModifyNeedsDetached one that cannot change it.
	SnapshotNeedsDetached, ModifyNeedsDetached bool

	// Break lets every call that the node makes to the cloud meet the fault, until mend is called. A cloud whose
	// provider reads without calls, as from a directory, may leave reads alone.
	Break func(t *testing.T, node string, fault Fault) (mend func())

	// BreakCall lets the n-th call that the node makes to the cloud from now on meet the fault, counted from 1, and no
	// other. What met returns tells whether it has come to that; afterwards nothing is broken.
	BreakCall func(t *testing.T, node string, n int, fault Fault) (met func() bool)

	// Faults are those that Break and BreakCall know; nil is Refuse, LoseAnswer and Hang.
	Faults []Fault

	// NotFounds are faults that Break and BreakCall know besides: an answer that something is not found, which is not the
	// cloud's own, and no effect.
	NotFounds []Fault

	// Off tells whether a node's machine is without power, whatever the cloud says of it. The statements about providers.Fencer need
	// it, and what follows, except Calls.
	Off func(t *testing.T, node string) bool

	// Pace makes attaching, detaching, and powering nodes off and on take so long from now on.
	Pace func(attachments, power time.Duration)

	// HidePower lets the cloud show a node as running while it is being powered off.
	HidePower func(hide bool)

	// DenyPower takes the right to power nodes off and on from a node's credentials.
	DenyPower func(t *testing.T, node string)

	// Calls counts the calls that the node has made to the cloud.
	Calls func(t *testing.T, node string) int

	// ShowsRemoved is a cloud that still describes a node that was removed, and calls it so.
	ShowsRemoved bool
}

// Fault is something that happens to calls.
type Fault string

// The faults of clouds.
const (
	Refuse     Fault = "refuse"      // an error, and no effect
	LoseAnswer Fault = "lose answer" // the effect, and an error instead of the answer
	Hang       Fault = "hang"        // no effect and no answer, until the call's context ends
	Throttle   Fault = "throttle"    // no effect, and the answer that the caller asks too much; providers wait that out
)

// Run checks every statement of the contract.
func Run(t *testing.T, h Harness) {
	statements := []struct {
		name  string
		check func(*world)
	}{
		{"a node knows itself", nodeKnowsItself},
		{"supported options are known words, sorted", supportsKnownWords},
		{"create returns the volume that is there", createIsIdempotent},
		{"nodes that create one name at once get one volume", createAtOnce},
		{"a volume that was never made is not found", findSaysNo},
		{"names are exact", namesAreExact},
		{"a list holds every volume once, by name", listIsComplete},
		{"sizes are at least what was asked for", sizesRoundUp},
		{"what the cloud does not accept is refused before anything is made", invalidIsRefused},
		{"ids and serials are never used again", idsAreUnique},
		{"records are kept whole", recordsAreWhole},
		{"marks made at once are all kept", marksAtOnce},
		{"answers belong to the caller", answersAreCopies},
		{"one node holds a volume", attachIsExclusive},
		{"of nodes that attach at once one wins", attachAtOnce},
		{"a volume is attached to the node that is named, or nothing is done", attachNamesItsNode},
		{"detach comes twice and touches no other node", detachIsIdempotent},
		{"an old answer makes no attach succeed and detaches nothing", oldAnswersAreKnown},
		{"a new process finds its volumes attached", attachmentsOutliveProcesses},
		{"bytes follow the volume from node to node", bytesFollow},
		{"delete refuses a held volume and may come twice", deleteIsCareful},
		{"forget keeps the disk for adopt", forgetAndAdopt},
		{"a disk that is no volume any more is listed by the cluster that it was of", orphansAreListed},
		{"adopt takes only what is free", adoptRefuses},
		{"other clusters do not exist", clustersAreApart},
		{"a cancelled call does nothing", cancelledDoesNothing},
		{"a snapshot is a copy with its record", snapshotIsACopy},
		{"the operator's tags of a volume are told", tagsAreTold},
		{"a snapshot of a held volume is whole or refused", snapshotInUse},
		{"modify enlarges and never shrinks", modifyEnlarges},
		{"modify changes the kind of disk, or refuses whole", modifyChangesTheKind},
		{"modify reaches the device in use", modifyReachesTheDevice},
		{"a disk that is attached takes a place of its node", slotsAreCounted},
		{"a running node is never evidence for takeover", runningIsNoEvidence},
		{"stopped and removed nodes are told", stoppedIsTold},
		{"a node is stopped when its power is cut, and not before", fencedIsStopped},
		{"a node that is busy can be powered off a little later", busyIsFenced},
		{"without the right no node is powered off, and a sentence says so", fenceNeedsTheRight},
		{"only another node that is there is powered off", fenceKnowsNodes},
		{"a request to power a node off or on is sent once", fenceIsSentOnce},
		{"a cancelled call powers nothing off or on", cancelledPowersNothing},
		{"a 404 that is not the cloud's own says nothing", strangersKnowNothing},
		{"credentials that do not see this node are no evidence", blindIsNoEvidence},
		{"a call that failed can be made again", faultsPass},
		{"a broken cloud is not an empty one", brokenIsNotEmpty},
		{"a hanging call ends with its context", hangEnds},
		{"a throttled call waits and succeeds", throttlesPass},
		{"a fault at any single call passes", singleFaultsPass},
		{"many callers at once see one writer", manyCallers},
	}
	for _, s := range statements {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // each has a cloud of its own, and mostly waits for it
			check := func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
				defer cancel()
				s.check(&world{t: t, ctx: ctx, cluster: "main", Cloud: h.New(t)})
			}
			if h.Bubble {
				synctest.Test(t, check)
			} else {
				check(t)
			}
		})
	}
}

// world is the cloud that one statement is tried on.
type world struct {
	*Cloud
	t       *testing.T
	cluster string
	ctx     context.Context //nolint:containedctx // the statement's own
}

func (w *world) on(node string) providers.Provider {
	w.t.Helper()
	return w.Provider(w.t, node, w.cluster)
}

func (w *world) id(p providers.Provider) string {
	w.t.Helper()
	n, err := p.Node(w.ctx)
	require.NoError(w.t, err)
	return n.ID
}

func (w *world) create(p providers.Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Create(w.ctx, providers.Spec{Name: name, Size: w.Size})
	require.NoError(w.t, err)
	require.Equal(w.t, name, v.Name)
	return v
}

func (w *world) find(p providers.Provider, name string) *providers.Volume {
	w.t.Helper()
	v, err := p.Find(w.ctx, name)
	require.NoError(w.t, err)
	require.Equal(w.t, name, v.Name)
	require.NotNil(w.t, v.Record)
	return v
}

func (w *world) missing(p providers.Provider, name string) {
	w.t.Helper()
	_, err := p.Find(w.ctx, name)
	require.ErrorIs(w.t, err, providers.ErrNotFound)
}

func (w *world) names(p providers.Provider) []string {
	w.t.Helper()
	list, err := p.List(w.ctx)
	require.NoError(w.t, err)
	names := make([]string, 0, len(list))
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

// until asks for the volume until its attachment is as wanted; the cloud may take its time.
func (w *world) until(p providers.Provider, name string, state providers.AttachState) *providers.Volume {
	w.t.Helper()
	for {
		v := w.find(p, name)
		if v.Attachment.State == state {
			return v
		}
		require.NotEqual(w.t, providers.AttachFailed, v.Attachment.State, v.Attachment.Problem)
		select {
		case <-time.After(5 * time.Millisecond):
		case <-w.ctx.Done():
			require.NoError(w.t, w.ctx.Err(), "volume %s is %q and not %q", v.ID, v.Attachment.State, state)
		}
	}
}

func (w *world) attach(p providers.Provider, v *providers.Volume) *providers.Volume {
	w.t.Helper()
	require.NoError(w.t, Attach(w.ctx, p, v.ID))
	v = w.until(p, v.Name, providers.Attached)
	require.True(w.t, v.HeldBy(w.id(p)))
	return v
}

func (w *world) detach(p providers.Provider, v *providers.Volume) {
	w.t.Helper()
	require.NoError(w.t, p.Detach(w.ctx, v.ID, w.id(p), false))
	w.until(p, v.Name, providers.Detached)
}

// heldBy asserts that err is the refusal that names the holder.
func (w *world) heldBy(err error, v *providers.Volume, node string) {
	w.t.Helper()
	require.ErrorIs(w.t, err, providers.ErrHeld)
	var held *providers.HeldError
	require.ErrorAs(w.t, err, &held)
	assert.Equal(w.t, v.ID, held.Volume)
	assert.Equal(w.t, node, held.Node)
}

// put writes text at the start of the volume's device and at its end.
func (w *world) put(p providers.Provider, node string, v *providers.Volume, text string) {
	w.t.Helper()
	v = w.attach(p, v)
	f, err := os.OpenFile(w.Device(w.t, node, v), os.O_RDWR, 0)
	require.NoError(w.t, err)
	defer f.Close()
	for _, at := range []int64{0, v.Size - 4096} {
		_, err = f.WriteAt([]byte(text), at)
		require.NoError(w.t, err)
	}
	require.NoError(w.t, f.Sync())
	require.NoError(w.t, f.Close())
	w.detach(p, v)
}

// get reads what put wrote on a volume of that size.
func (w *world) get(p providers.Provider, node string, v *providers.Volume, size int64, length int) string {
	w.t.Helper()
	v = w.attach(p, v)
	f, err := os.Open(w.Device(w.t, node, v))
	require.NoError(w.t, err)
	defer f.Close()
	first, last := make([]byte, length), make([]byte, length)
	_, err = f.ReadAt(first, 0)
	require.NoError(w.t, err)
	_, err = f.ReadAt(last, size-4096)
	require.NoError(w.t, err)
	require.Equal(w.t, string(first), string(last))
	require.NoError(w.t, f.Close())
	w.detach(p, v)
	return string(first)
}
