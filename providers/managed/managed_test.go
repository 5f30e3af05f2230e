package managed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// tiny is a cloud of disks in memory, whose native description is a Disk.
type tiny struct {
	disks map[string]Disk[string]
	nodes map[string]providers.Life
	err   error // of any question about nodes

	mu sync.Mutex // guards disks
}

func (c *tiny) provider() *Provider[Disk[string]] {
	is := func(id string) bool { return id != "" }
	return New(Cloud[Disk[string]]{
		Name: "X", Machine: "server", StopWord: "power off", Cluster: "main", Unname: "the label", IsID: is, IsNode: is, NamesAtOnce: 10,
		CheckSpec: func(providers.Spec) error { return nil },
		Self:      func(context.Context) (providers.Node, error) { return providers.Node{ID: "7"}, c.err },
		Show: func(d Disk[string]) Disk[Disk[string]] {
			return Disk[Disk[string]]{Volume: d.Volume, Cluster: d.Cluster, Marked: d.Marked, Damaged: d.Damaged, Native: d}
		},
		Named: func(_ context.Context, names []string) (map[string][]Disk[string], error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			found := make(map[string][]Disk[string])
			for _, name := range names {
				for _, d := range c.disks {
					if d.Native == name {
						found[name] = append(found[name], d)
					}
				}
			}
			return found, nil
		},
		All: func(context.Context) (all []Disk[string], _ error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, d := range c.disks {
				all = append(all, d)
			}
			return all, nil
		},
		Get: func(_ context.Context, id string) (Disk[string], error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if d, is := c.disks[id]; is {
				return d, nil
			}
			return Disk[string]{}, providers.ErrNotFound
		},
		Status: func(_ context.Context, node string) (NodeStatus, error) {
			life, is := c.nodes[node]
			if !is && c.err == nil {
				return NodeStatus{}, providers.ErrNotFound
			}
			return NodeStatus{Word: fmt.Sprintf("%q", life), Life: life}, c.err
		},
	})
}

// put adds a volume that is looked up under the name.
func (c *tiny) put(id, name string, damaged error) {
	c.set(id, Disk[string]{Volume: providers.Volume{ID: id, Name: name}, Cluster: "main", Marked: true, Damaged: damaged, Native: name})
}

// set makes the disk what every later answer shows.
func (c *tiny) set(id string, d Disk[string]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.disks == nil {
		c.disks = make(map[string]Disk[string])
	}
	c.disks[id] = d
}

func TestANameWithTwoVolumesIsAmbiguous(t *testing.T) {
	c := &tiny{}
	p := c.provider()
	_, err := p.Find(t.Context(), "db")
	require.ErrorIs(t, err, providers.ErrNotFound)
	require.ErrorContains(t, err, `X has none named "db" in cluster "main"`)
	list, err := p.List(t.Context())
	require.NoError(t, err)
	assert.Empty(t, list)

	c.put("1", "db", nil)
	v, err := p.Find(t.Context(), "db")
	require.NoError(t, err)
	assert.Equal(t, "1", v.ID)
	c.put("2", "db", nil)
	_, err = p.Find(t.Context(), "db")
	require.ErrorIs(t, err, providers.ErrAmbiguous)
	require.ErrorContains(t, err, `"db" is the name of volume 1 and volume 2: find out which holds the data, and take the label from the others`)

	damaged := errors.New("damaged")
	c.put("4", "bad", damaged)
	c.put("5", "app", nil)
	c.put("6", "zeta", nil)
	_, err = p.Find(t.Context(), "bad")
	require.ErrorIs(t, err, damaged, "it is not missing")
	list, err = p.List(t.Context())
	for _, problem := range []error{damaged, providers.ErrAmbiguous} {
		require.ErrorIs(t, err, problem)
	}
	names := make([]string, 0, len(list))
	for _, v := range list {
		names = append(names, v.Name)
	}
	assert.Equal(t, []string{"app", "zeta"}, names)
	assert.True(t, slices.IsSorted(names))
}

func TestAVolumeThatIsNotOursIsNotThere(t *testing.T) {
	c := &tiny{}
	p := c.provider()
	c.put("1", "db", nil)
	other := c.disks["1"]
	other.Cluster = "other"
	c.disks["1"] = other
	_, err := p.Find(t.Context(), "db")
	require.ErrorIs(t, err, providers.ErrNotFound)
	list, err := p.List(t.Context())
	require.NoError(t, err)
	assert.Empty(t, list)
	require.ErrorIs(t, p.Forget(t.Context(), "1"), providers.ErrNotFound)
	require.NoError(t, p.Delete(t.Context(), "1"))
	_, err = p.Adopt(t.Context(), "1", providers.Spec{Name: "mine"})
	require.ErrorIs(t, err, providers.ErrInvalid)
	require.ErrorContains(t, err, `volume "db" of cluster "other"`)
	_, there := c.disks["1"]
	assert.True(t, there)
}

func TestAMissingNodeIsGoneOnlyIfThisNodeIsSeen(t *testing.T) {
	c := &tiny{nodes: map[string]providers.Life{}}
	p := c.provider()
	state, err := p.NodeState(t.Context(), "8")
	require.NoError(t, err)
	assert.Equal(t, providers.Unclear, state.Life)
	assert.Contains(t, state.Evidence, "neither server 8 nor this node 7")
	assert.Equal(t, "detach the volume in X", state.Remedy)

	c.nodes["7"] = providers.Running
	state, err = p.NodeState(t.Context(), "8")
	require.NoError(t, err)
	assert.Equal(t, providers.NodeState{Life: providers.Gone, Evidence: "X knows no server 8"}, state)
	state, err = p.NodeState(t.Context(), "7")
	require.NoError(t, err)
	assert.Equal(t, providers.NodeState{Life: providers.Running, Evidence: `X says that server 7 is "running"`, Remedy: "power off server 7 in X"}, state)

	c.err = errors.New("no answer")
	state, err = p.NodeState(t.Context(), "8")
	require.ErrorIs(t, err, c.err)
	assert.Empty(t, state.Life)
}

// The cloud does not show the node asked about, and then gives no answer about this one.
func TestAMissingNodeIsNotGoneIfNothingIsKnownOfThisOne(t *testing.T) {
	failure := errors.New("no answer")
	for _, of := range []string{"self", "status"} {
		p := (&tiny{nodes: map[string]providers.Life{}}).provider()
		if of == "self" {
			p.cloud.Self = func(context.Context) (providers.Node, error) { return providers.Node{}, failure }
		} else {
			status := p.cloud.Status
			p.cloud.Status = func(ctx context.Context, node string) (NodeStatus, error) {
				if node == "7" {
					return NodeStatus{}, failure
				}
				return status(ctx, node)
			}
		}
		state, err := p.NodeState(t.Context(), "8")
		require.ErrorIs(t, err, failure)
		assert.Empty(t, state.Life)
	}
}
