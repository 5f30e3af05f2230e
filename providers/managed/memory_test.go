package managed

import (
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestMemoryIsFreedAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := memory{on: true}
		for i := range 50 {
			m.create(strconv.Itoa(i), fmt.Sprintf("vol-%d", i))
			m.missing(fmt.Sprintf("i-%d", i), false, time.Now())
			m.mark(fmt.Sprintf("vol-%d", i), "layout", "data")
		}
		ours, there := m.known("vol-7")
		assert.Equal(t, time.Now(), ours)
		assert.Equal(t, time.Now(), there)
		assert.Len(t, m.ours, 50)
		time.Sleep(24 * time.Hour)
		m.known("vol-7")
		assert.Zero(t, len(m.ours)+len(m.there)+len(m.absent)+len(m.created)+len(m.entries))
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
