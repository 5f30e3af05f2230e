package main

import (
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers"
)

// logObserver writes what it is told of into the log, at debug level.
type logObserver struct{ log *logrus.Logger }

// Phase implements volume.Observer.
func (o logObserver) Phase(name string, phase volume.Phase, took time.Duration) {
	o.log.WithFields(logrus.Fields{"volume": name, "phase": phase, "took": took.Round(time.Millisecond)}).Debug("Phase ended")
}

// Request is a providers.Observer.
func (o logObserver) Request(r providers.Request) {
	fields := logrus.Fields{"method": r.Method, "path": r.Path, "took": r.Took.Round(time.Millisecond), "retries": r.Retries}
	if r.Status != 0 {
		fields["status"] = r.Status
	}
	if r.Problem != "" {
		fields["error"] = r.Problem
	}
	o.log.WithFields(fields).Debug("Asked " + r.Cloud)
}
