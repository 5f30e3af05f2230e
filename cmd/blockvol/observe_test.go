package main

import (
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/metrics"
	"github.com/blockvol/blockvol/providers"
)

func TestRequestsAndPhasesAreLoggedAtDebugLevelOnly(t *testing.T) {
	log, logged := logtest.NewNullLogger()
	o := observer{metrics.New("1.2.3"), admin.New(admin.About{}, host.Paths{}, log), log}
	o.Request(providers.Request{Cloud: "Nimbus"})
	o.Event(volume.PhaseEnded{Volume: "data", Phase: volume.Attaching, Took: time.Second})
	assert.Empty(t, logged.AllEntries())

	log.SetLevel(logrus.DebugLevel)
	o.Request(providers.Request{Cloud: "Nimbus", Method: "GET", Path: "/v1/volumes", Status: 200, Retries: 2, Took: 1500 * time.Millisecond})
	assert.Equal(t, "Asked Nimbus", logged.LastEntry().Message)
	assert.Equal(t, logrus.Fields{"method": "GET", "path": "/v1/volumes", "status": 200, "retries": 2, "took": 1500 * time.Millisecond}, logged.LastEntry().Data)
	o.Request(providers.Request{Cloud: "Nimbus", Method: "GET", Path: "/v1/volumes", Problem: "connection refused"})
	assert.Equal(t, "connection refused", logged.LastEntry().Data["error"])
	assert.NotContains(t, logged.LastEntry().Data, "status")
	o.Event(volume.PhaseEnded{Volume: "data", Phase: volume.Attaching, Took: time.Second})
	assert.Equal(t, logrus.Fields{"volume": "data", "phase": volume.Attaching, "took": time.Second}, logged.LastEntry().Data)
}
