package aws

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

func TestDetachNeedsNoRead(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		held := w.create(p, "held")
		w.attach(p, held)
		for i := range 50 {
			w.create(p, strconv.Itoa(i))
		}
		time.Sleep(24 * time.Hour)
		w.cloud.ResetCalls()
		require.NoError(t, p.Detach(t.Context(), held.ID, node, false))
		assert.Equal(t, map[string]int{"DetachVolume": 1}, w.cloud.Calls())
	})
}
