package cluster_test

import (
	"testing"
	"time"

	"github.com/blockvol/blockvol/test/cluster"
)

func TestStart(t *testing.T) {
	begin := time.Now()
	c := cluster.Start(t, cluster.Config{Dir: "../../build/plugin", Log: t.Logf})
	t.Logf("started in %v", time.Since(begin))
	t.Log(c.Nodes[0].Docker("node", "ls"))
}
