// Package metrics tells Prometheus what this node does with volumes, and others whether it can.
//
// A scrape reads memory only: it waits for neither the cloud, nor the kernel, nor a call.
//
// Labels have few values: calls without ids, codes, phases, and the names of the volumes that this node has.
package metrics

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
)

// Node is what serves the volumes of this node; driver.Driver does.
type Node interface {
	Here() []driver.Here
	Identified() bool
	Ready(ctx context.Context) error
}

// Metrics counts what it is told of. Its methods may be called from any number of goroutines.
type Metrics struct {
	registry  *prometheus.Registry
	handler   http.Handler
	requests  *prometheus.CounterVec
	took      *prometheus.HistogramVec
	throttles *prometheus.CounterVec
	retries   *prometheus.CounterVec
	calls     *prometheus.HistogramVec
	failures  *prometheus.CounterVec
	phases    *prometheus.HistogramVec
	takeovers prometheus.Counter
	fences    prometheus.Counter
	findings  *prometheus.CounterVec

	checking chan struct{} // full while readiness is checked

	mu   sync.Mutex
	node Node  // nil until there is one
	why  error // why there is none
}

// seconds are the buckets of durations: of a request to a cloud as well as of an attach that takes minutes.
var seconds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}

// New returns Metrics of a program of that version that does not serve volumes yet.
func New(version string) *Metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "blockvol_" + name, Help: help}, labels)
	}
	durations := func(name, help, label string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "blockvol_" + name, Help: help, Buckets: seconds}, []string{label})
	}
	m := &Metrics{
		registry:  prometheus.NewRegistry(),
		requests:  counters("api_requests_total", "Requests to the cloud's API, repetitions not counted, by call and the status of the last answer; code \"none\" if there was no answer.", "request", "code"),
		took:      durations("api_request_duration_seconds", "Time of requests to the cloud's API, by call, with their repetitions and the wait for a throttling cloud.", "request"),
		throttles: counters("api_request_throttles_total", "Answers of the cloud that it is asked too much, by call.", "request"),
		retries:   counters("api_request_retries_total", "Requests that were sent to the cloud again, by call.", "request"),
		calls:     durations("operation_duration_seconds", "Time until a call was answered: Docker's create, mount, unmount, remove; an operator's, which are in docs/monitoring.md.", "operation"),
		failures:  counters("operation_errors_total", "Calls that were answered with an error, by its code; unfinished: the work goes on.", "operation", "code"),
		phases:    durations("phase_duration_seconds", "Time of the phases of volumes. An attach is attaching and waiting-for-device; fsck is checking.", "phase"),
		takeovers: prometheus.NewCounter(prometheus.CounterOpts{Name: "blockvol_takeovers_total", Help: "Volumes that this node has taken from a node that still held them."}),
		fences:    prometheus.NewCounter(prometheus.CounterOpts{Name: "blockvol_fences_total", Help: "Nodes that this one has had powered off, to take their volumes."}),
		findings:  counters("reconcile_findings_total", "What reconciliation has found that nobody had told blockvol about.", "finding"),
		checking:  make(chan struct{}, 1),
		why:       errors.New("blockvol has just started"),
	}
	for _, f := range volume.Findings() {
		m.findings.WithLabelValues(string(f))
	}
	// A rate does not see the step of a series that begins with 1: those of Docker's calls begin with 0.
	for _, op := range []volume.Op{volume.Create, volume.Mount, volume.Unmount, volume.Remove} {
		for _, code := range volume.Codes() {
			m.failures.WithLabelValues(string(op), string(code))
		}
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "blockvol_build_info", Help: "The version of blockvol.", ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(m.requests, m.took, m.throttles, m.retries, m.calls, m.failures, m.phases, m.takeovers, m.fences, m.findings, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = m.routes()
	return m
}

// Serve tells what serves volumes from now on.
func (m *Metrics) Serve(node Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node, m.why = node, nil
}

// Broken tells why no volumes can be served.
func (m *Metrics) Broken(why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.why = why
}

func (m *Metrics) served() (Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node, m.why
}

// Request is a providers.Observer.
func (m *Metrics) Request(r driver.Request) {
	code, call := "none", r.Call()
	if r.Status != 0 {
		code = strconv.Itoa(r.Status)
	}
	m.requests.WithLabelValues(call, code).Inc()
	m.took.WithLabelValues(call).Observe(r.Took.Seconds())
	m.throttles.WithLabelValues(call).Add(float64(r.Throttled))
	m.retries.WithLabelValues(call).Add(float64(r.Retries))
}

// Event is a volume.Observer.
func (m *Metrics) Event(event volume.Event) {
	switch e := event.(type) {
	case volume.PhaseEnded:
		m.phases.WithLabelValues(string(e.Phase)).Observe(e.Took.Seconds())
	case volume.CallEnded:
		m.calls.WithLabelValues(string(e.Op)).Observe(e.Took.Seconds())
		if e.Err != nil {
			m.failures.WithLabelValues(string(e.Op), string(volume.CodeOf(e.Err))).Inc()
		}
	case volume.TakenOver:
		m.takeovers.Inc()
	case volume.Fenced:
		m.fences.Inc()
	case volume.Found:
		m.findings.WithLabelValues(string(e.Finding)).Inc()
	}
}
