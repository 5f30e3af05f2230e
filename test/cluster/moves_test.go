package cluster_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/test/cluster/ledger"
)

func TestAServiceMoves(t *testing.T) {
	c := shared(t)
	begin := time.Now()
	step := func(what string) { t.Logf("%6.1f s  %s", time.Since(begin).Seconds(), what) }
	w := c.StartWriter("diary", driverOf("stopped"))
	step("writes on " + w.Node().Name)
	from := w.Node()
	c.Availability(from, "drain")
	w.Await("it moves", ledger.NotOn(from.Name))
	step("moved to " + w.Node().Name)
	c.Availability(from, "active")
	assert.Len(t, w.Volume().Attachments, 1)
	w.Remove()
	step("removed")
	c.NothingLeft()
}
