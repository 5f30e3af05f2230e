package metrics

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout is how long the kernel and the state directory may take to answer.
const readyTimeout = 5 * time.Second

var errNoAnswer = fmt.Errorf("the kernel or the state directory has not answered within %s", readyTimeout)

func (m *Metrics) routes() *http.ServeMux {
	mux := http.NewServeMux()
	// A name that came from another program may not be as Prometheus wants it: the rest is told.
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(m.gather), promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := m.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	return mux
}

// ServeHTTP answers /metrics, /healthz and /readyz.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

// Before answers what ServeHTTP does, and leaves every other path to next.
func (m *Metrics) Before(next http.Handler) http.Handler {
	mux := m.routes()
	mux.Handle("/", next)
	return mux
}

// ready returns why no volume can be mounted now, or nil. One check at a time: the last may hang.
func (m *Metrics) ready(ctx context.Context) error {
	node, why := m.served()
	if why != nil {
		return why
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	select {
	case m.checking <- struct{}{}:
	case <-ctx.Done():
		return errNoAnswer
	}
	answer := make(chan error, 1)
	go func() {
		answer <- node.Ready(ctx)
		<-m.checking
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return errNoAnswer
	}
}

// Listen serves on a TCP address until ctx ends. It returns once it listens. What it is asked there it answers anybody.
func (m *Metrics) Listen(ctx context.Context, address string) error {
	_, err := m.listen(ctx, address)
	return err
}

func (m *Metrics) listen(ctx context.Context, address string) (net.Addr, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: m, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 5 * time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	return l.Addr(), nil
}
