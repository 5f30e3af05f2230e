// Package docker speaks Docker's volume plugin protocol on a unix socket: routes, JSON and deadlines. What happens to a
// volume is the business of Volumes.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	stdlog "log"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/internal/host"
)

// Volumes is what stands behind the protocol. Its calls come from several goroutines at once; their contexts end at the
// deadline, and as soon as the engine has gone away.
type Volumes interface {
	Create(ctx context.Context, name string, options map[string]string) error
	Remove(ctx context.Context, name string) error
	// Mount and Unmount are told Docker's mount ID, never empty.
	Mount(ctx context.Context, name, id string) (mountpoint string, err error)
	Unmount(ctx context.Context, name, id string) error
	// Path returns "" for a volume that is not mounted on this node.
	Path(ctx context.Context, name string) (mountpoint string, err error)
	// Get returns volume.NotFound only where it is certain: an engine drops its record of the volume for it. Any
	// other error breaks the connection, and the engine keeps what it knows.
	Get(ctx context.Context, name string) (driver.Info, error)
	List(ctx context.Context) ([]driver.Info, error)
}

// The bounds of a call, unless Config says otherwise.
const (
	// DefaultTimeout leaves room below the 30 s after which an engine gives up calls to a plugin that was enabled by
	// `docker plugin enable`. The limits of others are 120 s for Create and Mount, 60 s for the rest.
	DefaultTimeout = 25 * time.Second
	// DefaultGrace leaves room below the 10 s between an engine's SIGTERM and SIGKILL.
	DefaultGrace = 5 * time.Second
)

// rollback is how long calls that were cancelled at the end of the grace may take to leave nothing half done.
const rollback = 2 * time.Second

// Config is what a Server needs.
type Config struct {
	Volumes   Volumes
	Published string        // the directory in which volumes are mounted, as Volumes names it
	Timeout   time.Duration // for each call; 0 is DefaultTimeout
	Grace     time.Duration // for calls in flight at the end of Serve; 0 is DefaultGrace
	Paths     host.Paths    // translates paths in answers for people
	Other     http.Handler  // for paths that are not Docker's; nil if there are none
	Log       logrus.FieldLogger
}

// Server answers an engine's calls.
type Server struct {
	volumes Volumes
	nowhere string
	timeout time.Duration
	grace   time.Duration
	paths   host.Paths
	other   http.Handler
	log     logrus.FieldLogger
}

// New makes a Server. It does nothing until Serve.
func New(cfg Config) *Server {
	s := &Server{
		volumes: cfg.Volumes,
		// An engine prefixes what List and Path say with a directory of its own, so an empty mountpoint would show as
		// the plugin's root file system. This one does not exist and is no volume's, since no volume's begins with a
		// dot: whoever copies from it is told so.
		nowhere: filepath.Join(cfg.Published, ".not-mounted"),
		timeout: cfg.Timeout,
		grace:   cfg.Grace,
		paths:   cfg.Paths,
		other:   cfg.Other,
		log:     cfg.Log,
	}
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	if s.grace == 0 {
		s.grace = DefaultGrace
	}
	return s
}

// Serve answers calls on l until ctx ends. Then it stops listening, lets the calls in flight finish within the grace,
// cancels those that have not, and waits a little for them. It returns nil if every call was answered.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	calls, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	// No idle timeout: an engine keeps its connections, and a call that met one being closed would be retried with an
	// empty body.
	server := &http.Server{
		Handler:           s.routes(),
		BaseContext:       func(net.Listener) context.Context { return calls },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          stdlog.New(lines{s.log}, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("cannot accept calls on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	err := shutdown(server, s.grace)
	if err != nil {
		cancel(errStopping)
		err = shutdown(server, rollback)
	}
	if err != nil {
		err = fmt.Errorf("calls were cut off unanswered: %w", errors.Join(err, server.Close()))
	}
	if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	return err
}

var errStopping = errors.New("the plugin is stopping")

func shutdown(server *http.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return server.Shutdown(ctx)
}

// lines gives what net/http has to say to the log.
type lines struct{ log logrus.FieldLogger }

func (l lines) Write(p []byte) (int, error) {
	l.log.Warn(strings.TrimSpace(string(p)))
	return len(p), nil
}
