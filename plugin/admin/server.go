package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
)

// Driver is what stands behind the API.
type Driver interface {
	All(ctx context.Context) ([]driver.Info, error)
	Get(ctx context.Context, name string) (driver.Info, error)
	Attached() []driver.Info
	Look(ctx context.Context, names ...string)
	Node(ctx context.Context) (driver.Node, error)
	Slots(ctx context.Context) (driver.Slots, error)
	PluginDisks(ctx context.Context, plugin string) ([]driver.PluginDisk, error)
	Orphans(ctx context.Context) ([]driver.Orphan, error)
	Adopt(ctx context.Context, name, disk, plugin string) error
	Create(ctx context.Context, name string, options map[string]string) error
	Release(ctx context.Context, name string) error
	Hold(ctx context.Context, name, id string) (path string, err error)
	Drop(ctx context.Context, name, id string) error
	Retain(ctx context.Context, name string) error
	RemoveDisk(ctx context.Context, name, disk string) error
	Forget(ctx context.Context, name, disk string) error
	Modify(ctx context.Context, name string, change driver.Change, step func(volume.Step)) (outcome string, err error)
	Reschedule(ctx context.Context, name, when, keep string) (outcome string, err error)
	TakeSnapshot(ctx context.Context, name, key string, step func(volume.Step)) (s *driver.Snapshot, outcome string, err error)
	Snapshots(ctx context.Context) ([]*driver.Snapshot, error)
	DeleteSnapshot(ctx context.Context, id string) error
	Rollback(ctx context.Context, name, disk, snapshot string, step func(volume.Step)) (outcome string, err error)
	Garbage(ctx context.Context, removed bool) ([]driver.Garbage, error)
}

const (
	callTimeout = time.Minute      // the longest that a call takes
	maxWait     = 25 * time.Second // the longest that a call waits for a job to change
	maxBody     = 1 << 20          // bytes

	identityTimeout = 5 * time.Second // the longest that the status waits to learn which node this is, and how many disks it can have
	lookTimeout     = 5 * time.Second // the longest that a call waits for the kernel to tell who uses volumes
)

// Server answers operators' calls. Until Serve it answers that the plugin starts.
type Server struct {
	about About
	paths host.Paths // translates paths in answers
	log   logrus.FieldLogger
	mux   *http.ServeMux

	events      events
	examination examination

	opened chan struct{} // closed when driver and jobs, or problem, are set
	driver Driver
	jobs   *jobs
	broken error
}

// New makes a Server.
func New(about About, paths host.Paths, log logrus.FieldLogger) *Server {
	s := &Server{about: about, paths: paths, log: log, opened: make(chan struct{})}
	s.mux = s.routes()
	return s
}

// Serve begins to answer from d, and continues the jobs that are in dir, a directory of the host. It is called once, or Broken is.
// Errors: the directory cannot be used.
func (s *Server) Serve(d Driver, dir string) error {
	j, err := openJobs(dir, d, s.paths, s.log)
	if err != nil {
		return err
	}
	s.driver, s.jobs = d, j
	close(s.opened)
	return nil
}

// Broken makes the server answer with the reason why there is nothing to serve.
func (s *Server) Broken(reason error) {
	s.broken = reason
	close(s.opened)
}

// Close ends the jobs for now: the next start continues them. It returns when they have ended, or with ctx.
func (s *Server) Close(ctx context.Context) error {
	select {
	case <-s.opened:
	default:
		return nil
	}
	if s.jobs == nil {
		return nil
	}
	return s.jobs.close(ctx)
}

// opening is how long a call waits for a plugin that has just started.
const opening = 5 * time.Second

// ready waits a moment for the plugin to start. It returns why calls cannot be served, nil if they can.
func (s *Server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opening)
	defer cancel()
	select {
	case <-s.opened:
		if s.broken != nil {
			return &volume.Error{Code: volume.Unavailable, Cause: s.broken}
		}
		return nil
	case <-ctx.Done():
		return volume.Fail(volume.Unavailable, "the plugin has started and is not ready yet", "try again")
	}
}

// routes are the calls.
func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	for pattern, answer := range map[string]func(r *http.Request) (any, error){
		"GET " + Root + "status":                  s.status,
		"GET " + Root + "volumes":                 s.volumes,
		"GET " + Root + "volumes/{name}":          s.volume,
		"POST " + Root + "volumes/{name}/release": s.release,
		"POST " + Root + "volumes/{name}/retain":  s.retain,
		"GET " + Root + "snapshots":               s.snapshots,
		"GET " + Root + "garbage":                 s.garbage,
		"GET " + Root + "doctor":                  s.doctor,
		"POST " + Root + "volumes/{name}/hold":    s.hold,
		"POST " + Root + "volumes/{name}/drop":    s.drop,
		"GET " + Root + "plugins/{name}/disks":    s.pluginDisks,
		"GET " + Root + "orphans":                 s.orphans,
		"GET " + Root + "events":                  s.listEvents,
		"GET " + Root + "jobs":                    s.listJobs,
		"POST " + Root + "jobs":                   s.startJob,
		"GET " + Root + "jobs/{id}":               s.job,
		"/": func(r *http.Request) (any, error) {
			return nil, volume.Fail(volume.NotFound, fmt.Sprintf("there is no call %s %s", r.Method, r.URL.Path), "see docs/api.md, and whether this blockvol is older than its client")
		},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, answer) })
	}
	return mux
}

// ServeHTTP answers one call.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) serve(w http.ResponseWriter, r *http.Request, answer func(*http.Request) (any, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	result, err := s.answer(r.WithContext(ctx), answer)
	status := http.StatusOK
	if err != nil {
		e := toError(err, s.paths)
		result, status = struct {
			Error *Error `json:"error"`
		}{e}, statusOf(e.Code)
		s.log.WithField("call", r.Method+" "+r.URL.Path).WithError(err).Debug("An operator's call failed")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(result) // who has gone away needs no answer
}

var errPanic = errors.New("this is a defect of blockvol, its log has the details")

func (s *Server) answer(r *http.Request, answer func(*http.Request) (any, error)) (result any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			s.log.WithField("stack", string(debug.Stack())).Errorf("Panic: %v", cause)
			result, err = nil, errPanic
		}
	}()
	return answer(r)
}

func (s *Server) status(r *http.Request) (any, error) {
	status := Status{About: s.about, State: Starting, Volumes: []Volume{}, Jobs: []Job{}, Failures: []Event{}}
	select {
	case <-s.opened:
	default:
		return status, nil
	}
	if s.broken != nil {
		status.State, status.Problem = Broken, s.paths.In(s.broken.Error())
		return status, nil
	}
	status.State = Serving
	s.look(r.Context())
	failed := s.events.standing()
	for _, info := range s.driver.Attached() {
		status.Volumes = append(status.Volumes, s.show(info, failed))
	}
	status.Failures = append(status.Failures, s.events.failures()...)
	for _, job := range s.jobs.list() {
		if job.State == Running {
			status.Jobs = append(status.Jobs, job)
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), identityTimeout)
	defer cancel()
	node, err := s.driver.Node(ctx)
	if err != nil {
		status.Problem = err.Error()
	}
	status.Node, status.Zone = node.ID, node.Zone
	if slots, err := s.driver.Slots(ctx); err != nil {
		status.DisksUnknown = s.paths.In(err.Error())
	} else {
		status.Disks = toDisks(slots)
	}
	return status, nil
}

// look learns who uses volumes now. If the kernel takes long, what was known before stays.
func (s *Server) look(ctx context.Context, names ...string) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s.driver.Look(ctx, names...)
}

func (s *Server) volumes(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	infos, err := s.driver.All(r.Context())
	if err != nil {
		return nil, err
	}
	all, failed := make([]Volume, len(infos)), s.events.standing()
	for i, info := range infos {
		all[i] = s.show(info, failed)
	}
	return Volumes{all}, nil
}

func (s *Server) volume(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	s.look(r.Context(), r.PathValue("name"))
	info, err := s.driver.Get(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return s.show(info, s.events.standing()), nil
}

// show is a volume with its failure, if one stands.
func (s *Server) show(info driver.Info, failed map[string]Event) Volume {
	v := toVolume(info, s.paths)
	if failure, has := failed[v.Name]; has {
		v.Failure = &failure
	}
	return v
}

func (s *Server) release(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	return struct{}{}, s.driver.Release(r.Context(), r.PathValue("name"))
}

func (s *Server) pluginDisks(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	all, err := s.driver.PluginDisks(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	answer := PluginDisks{make([]PluginDisk, len(all))}
	for i, d := range all {
		answer.Disks[i] = toPluginDisk(d)
	}
	return answer, nil
}

func (s *Server) orphans(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	all, err := s.driver.Orphans(r.Context())
	if err != nil {
		return nil, err
	}
	answer := Orphans{make([]Orphan, len(all))}
	for i, o := range all {
		answer.Disks[i] = toOrphan(o, s.paths)
	}
	return answer, nil
}

func (s *Server) hold(r *http.Request) (any, error) {
	id, err := s.command(r)
	if err != nil {
		return nil, err
	}
	path, err := s.driver.Hold(r.Context(), r.PathValue("name"), id)
	return Hold{s.paths.In(path)}, err
}

func (s *Server) drop(r *http.Request) (any, error) {
	id, err := s.command(r)
	if err != nil {
		return nil, err
	}
	return struct{}{}, s.driver.Drop(r.Context(), r.PathValue("name"), id)
}

// command is the id of the command that a call is for.
func (s *Server) command(r *http.Request) (id string, err error) {
	if err := s.ready(r.Context()); err != nil {
		return "", err
	}
	if id = r.URL.Query().Get("command"); !idForm.MatchString(id) {
		return "", volume.Fail(volume.Invalid, fmt.Sprintf("the command's id %q is not 8 to 64 lower-case letters, digits and dashes", id), "")
	}
	return id, nil
}

func (s *Server) retain(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	return struct{}{}, s.driver.Retain(r.Context(), r.PathValue("name"))
}

// listEvents returns what has happened on this node since the plugin's start, with the query volume to that one.
func (s *Server) listEvents(r *http.Request) (any, error) {
	return Events{s.events.of(r.URL.Query().Get("volume"))}, nil
}

func (s *Server) listJobs(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	return Jobs{s.jobs.list()}, nil
}

func (s *Server) startJob(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	var request Request
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields() // an older plugin must not do half of what was asked
	if err := decoder.Decode(&request); err != nil {
		return nil, volume.Fail(volume.Invalid, fmt.Sprintf("the request cannot be read: %v", err), "see docs/api.md")
	}
	return s.jobs.start(request)
}

// job returns a job, with the query wait (seconds) and revision once it has another revision or that time is over.
func (s *Server) job(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	query := r.URL.Query()
	wait, _ := strconv.ParseFloat(query.Get("wait"), 64) // without a number: at once
	revision, _ := strconv.Atoi(query.Get("revision"))
	ctx, cancel := context.WithTimeout(r.Context(), min(max(0, time.Duration(wait*float64(time.Second))), maxWait))
	defer cancel()
	return s.jobs.await(ctx, r.PathValue("id"), revision)
}

// snapshots returns the snapshots of the cluster, with the query volume those of the volume of that name.
func (s *Server) snapshots(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	all, err := s.driver.Snapshots(r.Context())
	if err != nil {
		return nil, err
	}
	answer := Snapshots{[]Snapshot{}}
	name := r.URL.Query().Get("volume")
	for _, snapshot := range all {
		if name == "" || snapshot.Name == name {
			answer.Snapshots = append(answer.Snapshots, toSnapshot(snapshot))
		}
	}
	return answer, nil
}

// garbage returns the snapshots that nobody needs, with the query removed=true those of removed volumes as well.
func (s *Server) garbage(r *http.Request) (any, error) {
	if err := s.ready(r.Context()); err != nil {
		return nil, err
	}
	all, err := s.driver.Garbage(r.Context(), r.URL.Query().Get("removed") == "true")
	if err != nil {
		return nil, err
	}
	answer := Snapshots{[]Snapshot{}}
	for _, garbage := range all {
		shown := toSnapshot(garbage.Snapshot)
		shown.Useless = garbage.Why
		answer.Snapshots = append(answer.Snapshots, shown)
	}
	return answer, nil
}
