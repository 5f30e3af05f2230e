package managed

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"weak"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestEqualMapsAreSharedAndOthersAreNot(t *testing.T) {
	same := func(a, b map[string]string) bool { return fmt.Sprintf("%p", a) == fmt.Sprintf("%p", b) }
	s := make(sharing)
	first := s.one(map[string]string{"fstype": "ext4", "layout": "data"})
	assert.True(t, same(first, s.one(map[string]string{"layout": "data", "fstype": "ext4"})))
	for _, other := range []map[string]string{
		{"fstype": "ext4"}, {"fstype": "xfs", "layout": "data"}, {"fstype": `ext4""layout""data`}, {"layout": "ext4", "fstype": "data"},
	} {
		assert.Equal(t, other, s.one(other))
		assert.False(t, same(first, s.one(other)))
	}
	assert.NotNil(t, s.one(map[string]string{}), "a Record is never nil")
	assert.Nil(t, s.one(nil))
}

func TestVolumesDoNotKeepTheCloudsOwnDescriptions(t *testing.T) {
	type native struct{ id string }
	var kept []weak.Pointer[native]
	describe := func(id string) *native {
		n := &native{id}
		kept = append(kept, weak.Make(n))
		return n
	}
	p := New(Cloud[*native]{
		Name: "X", Cluster: "main", IsID: func(string) bool { return true }, NamesAtOnce: 10,
		Show: func(n *native) Disk[*native] {
			return Disk[*native]{Volume: providers.Volume{ID: n.id, Name: n.id, Record: providers.Record{"fstype": "ext4"}}, Cluster: "main", Marked: true, Native: n}
		},
		All: func(context.Context) ([]*native, error) { return []*native{describe("a"), describe("b")}, nil },
		Named: func(_ context.Context, names []string) (map[string][]*native, error) {
			return map[string][]*native{names[0]: {describe(names[0])}}, nil
		},
	})
	volumes, err := p.List(t.Context())
	require.NoError(t, err)
	require.Len(t, volumes, 2)
	found, err := p.Find(t.Context(), "c")
	require.NoError(t, err)
	runtime.GC()
	for _, n := range kept {
		assert.Nil(t, n.Value())
	}
	runtime.KeepAlive(volumes)
	runtime.KeepAlive(found)
}
