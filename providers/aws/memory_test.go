package aws

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

func TestMemoryOfVolumesAndNodesOfThePastIsFreed(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		held := w.create(p, "held")
		w.attach(p, held)
		for i := range 50 {
			w.create(p, strconv.Itoa(i))
			p.memory.see(fmt.Sprintf("i-%017x", i), false, time.Now())
		}
		_, err := p.List(t.Context())
		require.NoError(t, err)
		require.Len(t, p.memory.ours, 51)

		time.Sleep(24 * time.Hour)
		w.cloud.ResetCalls()
		require.NoError(t, p.Detach(t.Context(), held.ID, node, false))
		assert.Equal(t, map[string]int{"DetachVolume": 1}, w.cloud.Calls(), "what this instance holds is known without a read")
		assert.LessOrEqual(t, len(p.memory.ours), 1)
		assert.Zero(t, len(p.memory.there)+len(p.memory.absent))
	})
}

// A map that was large stays large in memory, however few entries are left.
func TestPruneFreesTheMemoryOfALargeMap(t *testing.T) {
	m := make(map[int][64]byte)
	for i := range 10_000 {
		m[i] = [64]byte{}
	}
	large := m
	prune(&m, func(i int, _ [64]byte) bool { return i > 0 })
	assert.Len(t, m, 1)
	m[-1] = [64]byte{}
	assert.NotContains(t, large, -1, "it is another map")
}
