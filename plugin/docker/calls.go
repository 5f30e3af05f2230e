package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	protocol "github.com/docker/go-plugins-helpers/volume"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/volume"
)

// call is one of the protocol's calls.
type call struct {
	name  string
	needs fields
	do    func(s *Server, ctx context.Context, r request) (any, error)
}

// fields are those of a request without which a call makes no sense.
type fields struct{ name, id bool }

var calls = []call{
	{"Create", fields{name: true}, func(s *Server, ctx context.Context, r request) (any, error) {
		return struct{}{}, s.volumes.Create(ctx, r.Name, r.Options)
	}},
	{"Remove", fields{name: true}, func(s *Server, ctx context.Context, r request) (any, error) {
		return struct{}{}, s.volumes.Remove(ctx, r.Name)
	}},
	{"Mount", fields{name: true, id: true}, func(s *Server, ctx context.Context, r request) (any, error) {
		mountpoint, err := s.volumes.Mount(ctx, r.Name, r.ID)
		return protocol.MountResponse{Mountpoint: mountpoint}, err
	}},
	{"Unmount", fields{name: true, id: true}, func(s *Server, ctx context.Context, r request) (any, error) {
		return struct{}{}, s.volumes.Unmount(ctx, r.Name, r.ID)
	}},
	{"Path", fields{name: true}, func(s *Server, ctx context.Context, r request) (any, error) {
		mountpoint, err := s.volumes.Path(ctx, r.Name)
		return protocol.PathResponse{Mountpoint: s.somewhere(mountpoint)}, err
	}},
	{"Get", fields{name: true}, func(s *Server, ctx context.Context, r request) (any, error) {
		info, err := s.volumes.Get(ctx, r.Name)
		// An engine shows this mountpoint as it is, so it is the machine's, and an empty one may stay.
		v := &protocol.Volume{Name: info.Name, Mountpoint: s.paths.In(info.Mountpoint), Status: s.paths.InAll(info.Status)}
		if !info.CreatedAt.IsZero() {
			v.CreatedAt = info.CreatedAt.UTC().Format(time.RFC3339)
		}
		return protocol.GetResponse{Volume: v}, err
	}},
	{"List", fields{}, func(s *Server, ctx context.Context, _ request) (any, error) {
		infos, err := s.volumes.List(ctx)
		volumes := make([]*protocol.Volume, len(infos))
		for i, info := range infos {
			volumes[i] = &protocol.Volume{Name: info.Name, Mountpoint: s.somewhere(info.Mountpoint)}
		}
		return protocol.ListResponse{Volumes: volumes}, err
	}},
	{"Capabilities", fields{}, func(*Server, context.Context, request) (any, error) {
		// A volume's name means the same volume on every node.
		return protocol.CapabilitiesResponse{Capabilities: protocol.Capability{Scope: "global"}}, nil
	}},
}

func (s *Server) somewhere(mountpoint string) string {
	if mountpoint == "" {
		return s.nowhere
	}
	return mountpoint
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, []byte(`{"Implements":["VolumeDriver"]}`))
	})
	for _, c := range calls {
		mux.HandleFunc("POST /VolumeDriver."+c.name, func(w http.ResponseWriter, r *http.Request) { s.serve(c, w, r) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if s.other != nil && !strings.HasPrefix(r.URL.Path, "/VolumeDriver.") {
			s.other.ServeHTTP(w, r)
			return
		}
		write(w, http.StatusNotFound, problem(fmt.Errorf("blockvol knows no call %s %s", r.Method, r.URL.Path)))
	})
	return mux
}

// serve answers one call. It panics with http.ErrAbortHandler to break the connection.
func (s *Server) serve(c call, w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	log := s.log.WithField("call", c.name)
	ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
	defer cancel()

	req, err := s.read(w, r, c.needs)
	if req.Name != "" {
		log = log.WithField("volume", req.Name)
	}
	if len(req.Options) > 0 {
		log = log.WithField("options", slices.Sorted(maps.Keys(req.Options)))
	}
	var answer []byte
	if err == nil {
		answer, err = s.run(ctx, c, req, log)
	}
	log = log.WithField("took", time.Since(begin).Round(time.Microsecond))
	if err == nil {
		if c.name != "Capabilities" { // an engine asks before nearly every call
			log.Debug("Call answered")
		}
		write(w, http.StatusOK, answer)
		return
	}

	log = log.WithError(err)
	breaks := c.name == "Get" && !denies(err)
	switch {
	case errors.Is(err, volume.NotFound) && c.name == "Get", errors.Is(err, errEmptyBody) && breaks:
		// The first comes before every Create, the second is the echo of a break whose reason is in the log.
		log.Debug("Call failed")
	case breaks:
		log.Warn("Cannot tell whether the volume exists, connection broken so that the engine keeps what it knows")
	default:
		log.Warn("Call failed")
	}
	if breaks {
		panic(http.ErrAbortHandler)
	}
	write(w, http.StatusInternalServerError, problem(errors.New(s.paths.In(sentence(c.name, err).Error()))))
}

// sentence is an error as an engine shows it. What was asked for the engine says itself, but for the volume that is mounted.
func sentence(call string, err error) error {
	if e, is := err.(*volume.Error); is && call != "Mount" && call != "Unmount" { //nolint:errorlint // one that is wrapped is part of the cause
		return errors.New(e.Brief())
	}
	return err
}

// denies tells whether an engine may conclude from this error of Get that there is no such volume, as it will from any
// error that it is answered. That goes for the retries of a broken call too, which come with an empty body.
func denies(err error) bool {
	return errors.Is(err, volume.NotFound) || errors.Is(err, errBadRequest)
}

var errPanic = errors.New("this is a defect of blockvol, its log has the details")

// run carries out the call and encodes its answer, whole, because an engine that gets half an answer to Get takes it
// for "no such volume".
func (s *Server) run(ctx context.Context, c call, req request, log logrus.FieldLogger) (answer []byte, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			log.WithField("stack", string(debug.Stack())).Errorf("Panic: %v", cause)
			err = fmt.Errorf("%s failed: %w", c.name, errPanic)
		}
	}()
	result, err := c.do(s, ctx, req)
	if err == context.DeadlineExceeded { //nolint:errorlint // bare, it says nothing to anybody; wrapped, it is explained
		err = fmt.Errorf("%s did not finish within %s, try again: %w", c.name, s.timeout, err)
	}
	if errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errStopping) {
		err = volume.Stopping(err)
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(result)
}

func problem(err error) []byte {
	body, err := json.Marshal(protocol.NewErrorResponse(err.Error()))
	if err != nil {
		panic(err) // a string always has a JSON form
	}
	return body
}

func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // JSON for an engine, no page; one that has gone away needs no answer
}
