package main

import (
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/metrics"
	"github.com/blockvol/blockvol/providers"
)

// observer counts what it is told of, remembers it for operators, and writes phases and requests into the log, at debug level.
type observer struct {
	metrics   *metrics.Metrics
	operators *admin.Server
	log       *logrus.Logger
}

// Event is a volume.Observer.
func (o observer) Event(event volume.Event) {
	o.metrics.Event(event)
	o.operators.Event(event)
	if e, is := event.(volume.PhaseEnded); is {
		o.log.WithFields(logrus.Fields{"volume": e.Volume, "phase": e.Phase, "took": e.Took.Round(time.Millisecond)}).Debug("Phase ended")
	}
}

// Request is a providers.Observer.
func (o observer) Request(r providers.Request) {
	o.metrics.Request(r)
	fields := logrus.Fields{"method": r.Method, "path": r.Path, "took": r.Took.Round(time.Millisecond), "retries": r.Retries}
	if r.Status != 0 {
		fields["status"] = r.Status
	}
	if r.Problem != "" {
		fields["error"] = r.Problem
	}
	o.log.WithFields(fields).Debug("Asked " + r.Cloud)
}
