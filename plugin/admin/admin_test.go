package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
)

// fakeDriver answers as it is told.
type fakeDriver struct {
	mu       sync.Mutex
	volumes  map[string]driver.Info
	err      error
	slots    driver.Slots
	modified []string      // what was asked for
	looked   [][]string    // the names that Look was called with
	hold     chan struct{} // Modify waits for it, or for its context
	at       chan struct{} // is told that Modify waits
}

func (f *fakeDriver) All(context.Context) (all []driver.Info, err error) {
	for _, info := range f.volumes {
		all = append(all, info)
	}
	return all, f.err
}

func (f *fakeDriver) Get(_ context.Context, name string) (driver.Info, error) {
	info, has := f.volumes[name]
	if !has {
		return info, volume.At(volume.Fail(volume.NotFound, "there is none", ""), volume.Error{Op: volume.Get, Volume: name})
	}
	return info, f.err
}

func (f *fakeDriver) Attached() []driver.Info { return slices.Collect(maps.Values(f.volumes)) }

func (f *fakeDriver) Look(_ context.Context, names ...string) { f.looked = append(f.looked, names) }

func (f *fakeDriver) Node(context.Context) (driver.Node, error) {
	return driver.Node{ID: "i-1", Zone: "z"}, f.err
}

func (f *fakeDriver) Slots(context.Context) (driver.Slots, error) { return f.slots, f.err }

func (f *fakeDriver) Release(context.Context, string) error { return f.err }

func (f *fakeDriver) Hold(_ context.Context, name, id string) (string, error) {
	return "/at/" + name, f.did("hold ", name, " ", id)
}

func (f *fakeDriver) Drop(_ context.Context, name, id string) error {
	return f.did("drop ", name, " ", id)
}

func (f *fakeDriver) did(what ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.modified = append(f.modified, fmt.Sprint(what...))
	return f.err
}

func (f *fakeDriver) Create(_ context.Context, name string, options map[string]string) error {
	return f.did("create ", name, options)
}

func (f *fakeDriver) PluginDisks(_ context.Context, plugin string) ([]driver.PluginDisk, error) {
	return []driver.PluginDisk{{ID: "vol-1", Name: "of " + plugin, Size: 1 << 30, Zone: "z", Node: "i-2", Marked: true}}, f.err
}

func (f *fakeDriver) Orphans(context.Context) ([]driver.Orphan, error) {
	return []driver.Orphan{
		{ID: "vol-7", Name: "old", Kind: "kept", Size: 1 << 30, Zone: "z", CreatedAt: time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)},
		{ID: "vol-8", Kind: "unreadable", Detail: "of /data/volumes", Node: "i-2"},
	}, f.err
}

func TestDisksThatAreNoVolumesAreListed(t *testing.T) {
	l := start(t, t.TempDir(), &fakeDriver{})
	all, err := l.Orphans(t.Context())
	require.NoError(t, err)
	at := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	assert.Equal(t, []Orphan{
		{ID: "vol-7", Volume: "old", Kind: "kept", Size: 1 << 30, Zone: "z", CreatedAt: &at},
		{ID: "vol-8", Kind: "unreadable", Detail: "of /data/volumes", Node: "i-2"},
	}, all)
	_, err = start(t, t.TempDir(), &fakeDriver{err: volume.Fail(volume.Invalid, "it cannot", "")}).Orphans(t.Context())
	require.ErrorIs(t, err, volume.Invalid)
}

func (f *fakeDriver) Adopt(_ context.Context, name, disk, plugin string) error {
	return f.did("adopt ", name, disk, plugin)
}

func (f *fakeDriver) Retain(_ context.Context, name string) error { return f.did("retain ", name) }
func (f *fakeDriver) RemoveDisk(_ context.Context, name, disk string) error {
	return f.did("remove ", name, disk)
}

func (f *fakeDriver) Forget(_ context.Context, name, disk string) error {
	return f.did("forget ", name, disk)
}

func (f *fakeDriver) TakeSnapshot(_ context.Context, name, key string, _ func(volume.Step)) (*driver.Snapshot, string, error) {
	return &driver.Snapshot{ID: "snap-1"}, "snapshot snap-1", f.did("snapshot ", name, " ", key)
}

func (f *fakeDriver) Rollback(_ context.Context, name, disk, snapshot string, _ func(volume.Step)) (string, error) {
	return "rolled back", f.did("rollback ", name, " ", disk, " ", snapshot)
}

func (f *fakeDriver) DeleteSnapshot(_ context.Context, id string) error {
	return f.did("delete snapshot ", id)
}

func (f *fakeDriver) Snapshots(context.Context) ([]*driver.Snapshot, error) {
	due := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	return []*driver.Snapshot{
		{ID: "snap-1", Volume: "vol-1", Name: "db", Size: 1 << 30, CreatedAt: due.Add(time.Second), State: "complete", Record: map[string]string{"taken": "at 2026-11-30T00:00:00Z"}},
		{ID: "snap-2", Volume: "vol-2", Name: "other", Size: 2 << 30, State: "creating", Detail: "42%", Record: map[string]string{"taken": "by hand"}},
	}, f.err
}

func (f *fakeDriver) Garbage(ctx context.Context, removed bool) ([]driver.Garbage, error) {
	all, err := f.Snapshots(ctx)
	if !removed {
		return nil, err
	}
	return []driver.Garbage{{Snapshot: all[0], Why: "its volume does not exist any more"}}, err
}

func TestSnapshotsAreListed(t *testing.T) {
	l := start(t, t.TempDir(), &fakeDriver{})
	due := time.Date(2026, 11, 30, 0, 0, 0, 0, time.UTC)
	taken := due.Add(time.Second)
	first := Snapshot{
		ID: "snap-1", Volume: "db", Disk: "vol-1", Size: 1 << 30, CreatedAt: &taken, State: "complete", Reason: "by schedule, due 2026-11-30T00:00:00Z", DueAt: &due,
	}
	second := Snapshot{ID: "snap-2", Volume: "other", Disk: "vol-2", Size: 2 << 30, State: "creating", Detail: "42%", Reason: "by hand"}
	for name, want := range map[string][]Snapshot{"": {first, second}, "other": {second}, "none": {}} {
		all, err := l.Snapshots(t.Context(), name)
		require.NoError(t, err)
		assert.Equal(t, want, all)
	}
	garbage, err := l.Garbage(t.Context(), false)
	require.NoError(t, err)
	assert.Empty(t, garbage)
	garbage, err = l.Garbage(t.Context(), true)
	require.NoError(t, err)
	first.Useless = "its volume does not exist any more"
	assert.Equal(t, []Snapshot{first}, garbage)
}

func TestSnapshotsAreTakenRestoredAndDeleted(t *testing.T) {
	d := &fakeDriver{}
	l := start(t, t.TempDir(), d)
	for i, r := range []Request{
		{Kind: Copy, Volume: "db"},
		{Kind: Restore, Volume: "new", Snapshot: "snap-1"},
		{Kind: Restore, Volume: "db", Snapshot: "snap-1", Disk: "vol-1"},
		{Kind: Clone, Volume: "copy", From: "db"},
		{Kind: DeleteSnapshot, Snapshot: "snap-1"},
	} {
		r.ID = fmt.Sprint("job-number-", i)
		job, err := l.Start(t.Context(), r)
		require.NoError(t, err)
		job, err = l.Await(t.Context(), job, func(Job) {})
		require.NoError(t, err)
		assert.Equal(t, Done, job.State)
		if r.Kind == Copy {
			assert.Equal(t, "snap-1", job.Made)
		}
	}
	assert.Equal(t, []string{
		"snapshot db job-number-0", "create newmap[snapshot:snap-1]", "rollback db vol-1 snap-1", "create copymap[from:db]", "delete snapshot snap-1",
	}, d.asked())
}

func (f *fakeDriver) Modify(ctx context.Context, name string, change driver.Change, step func(volume.Step)) (string, error) {
	f.mu.Lock()
	f.modified = append(f.modified, fmt.Sprint(name, change))
	f.mu.Unlock()
	step(volume.Step{Phase: volume.Modifying})
	if f.hold != nil {
		f.at <- struct{}{}
		select {
		case <-f.hold:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return "it is done", f.err
}

func (f *fakeDriver) Reschedule(_ context.Context, name, when, keep string) (string, error) {
	return "taken " + when, f.did("reschedule ", name, " ", when, " ", keep)
}

func TestASchedulesChangeIsAJobOfItsOwn(t *testing.T) {
	d := &fakeDriver{}
	l := start(t, t.TempDir(), d)
	job, err := l.Start(t.Context(), Request{ID: "job-number-1", Kind: Modify, Volume: "db", SnapshotSchedule: "@daily", SnapshotKeep: "7d"})
	require.NoError(t, err)
	job, err = l.Await(t.Context(), job, func(Job) {})
	require.NoError(t, err)
	assert.Equal(t, "taken @daily", job.Message)
	assert.Equal(t, []string{"reschedule db @daily 7d"}, d.asked())
	_, err = l.Start(t.Context(), Request{ID: "job-number-2", Kind: Modify, Volume: "db", SnapshotKeep: "7d", Size: 1 << 30})
	require.ErrorIs(t, err, volume.Invalid)
}

func (f *fakeDriver) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.modified
}

func quiet() *logrus.Logger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// life is a Server that listens, as long as the plugin lives.
type life struct {
	*Server
	*Client
	end func()
}

func listen(t *testing.T, socket string, s *Server) (end func()) {
	t.Helper()
	t.Chdir(filepath.Dir(socket)) // its path may be too long for an address
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Base(socket))
	require.NoError(t, err)
	h := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func() { _ = h.Serve(l) }()
	return func() { _ = h.Close() }
}

// start starts a life of the plugin whose files are in dir.
func start(t *testing.T, dir string, d Driver) *life {
	t.Helper()
	s := New(About{Version: "v1", Provider: "local", Cluster: "main"}, host.Paths{}, quiet())
	socket := filepath.Join(dir, "s")
	closing := listen(t, socket, s)
	require.NoError(t, s.Serve(d, filepath.Join(dir, "jobs")))
	end := sync.OnceFunc(func() {
		closing()
		assert.NoError(t, s.Close(context.Background()))
	})
	t.Cleanup(end)
	return &life{s, NewClient(socket), end}
}

func resize(id string) Request { return Request{ID: id, Kind: Modify, Volume: "db", Size: 20 << 30} }

func TestVolumesAreToldWithTheirStatus(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	info := driver.Info{Name: "a b/c", ID: "vol-1", Size: 10 << 30, CreatedAt: created, Status: map[string]any{"state": "mounted"}, Users: driver.Users{{Container: "3f2a", PID: 7, Command: "sh", Path: "/data"}}}
	d := &fakeDriver{volumes: map[string]driver.Info{info.Name: info}}
	l := start(t, t.TempDir(), d)
	all, err := l.Volumes(t.Context())
	require.NoError(t, err)
	want := Volume{Name: info.Name, ID: "vol-1", Size: 10 << 30, CreatedAt: &created, Status: info.Status, Users: []User{{Container: "3f2a", PID: 7, Command: "sh", Path: "/data"}}}
	assert.Equal(t, []Volume{want}, all)
	one, err := l.Volume(t.Context(), info.Name)
	require.NoError(t, err)
	assert.Equal(t, want, one)
	status, err := l.Status(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Volume{want}, status.Volumes)
	assert.Equal(t, [][]string{{info.Name}, nil}, d.looked, "who uses it is looked up for one, and for the node's, not for all of the cluster")
	_, err = l.Volume(t.Context(), "none")
	require.ErrorIs(t, err, volume.NotFound)
	require.EqualError(t, err, `there is none (volume "none")`)
}

func TestErrorsKeepTheirCodeAndAdvice(t *testing.T) {
	d := &fakeDriver{err: &volume.Error{Code: volume.InUse, Volume: "db", ID: "vol-1", Node: "i-1", Cause: errors.New("in use"), Advice: "stop it"}}
	l := start(t, t.TempDir(), d)
	err := l.Release(t.Context(), "db")
	require.ErrorIs(t, err, volume.InUse)
	require.EqualError(t, err, `in use (volume "db", vol-1, node i-1); stop it`)
}

func TestTheDisksOfAnotherPluginAreListed(t *testing.T) {
	l := start(t, t.TempDir(), &fakeDriver{})
	all, err := l.PluginDisks(t.Context(), "rexray")
	require.NoError(t, err)
	assert.Equal(t, []PluginDisk{{ID: "vol-1", Name: "of rexray", Size: 1 << 30, Zone: "z", Node: "i-2", Marked: true}}, all)
	l = start(t, t.TempDir(), &fakeDriver{err: volume.Fail(volume.Invalid, "none here", "")})
	_, err = l.PluginDisks(t.Context(), "rexray")
	require.ErrorIs(t, err, volume.Invalid)
}

func TestACommandHoldsAVolume(t *testing.T) {
	d := &fakeDriver{}
	l := start(t, t.TempDir(), d)
	path, err := l.Hold(t.Context(), "a b/c", "import-1")
	require.NoError(t, err)
	assert.Equal(t, "/at/a b/c", path)
	require.NoError(t, l.Drop(t.Context(), "a b/c", "import-1"))
	assert.Equal(t, []string{"hold a b/c import-1", "drop a b/c import-1"}, d.asked())
	for _, id := range []string{"", "short", "UPPER-CASE"} {
		_, err = l.Hold(t.Context(), "db", id)
		require.ErrorIs(t, err, volume.Invalid)
		require.ErrorIs(t, l.Drop(t.Context(), "db", id), volume.Invalid)
	}
}

func TestAPluginThatDoesNotServeSaysWhy(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s := New(About{}, host.Paths{}, quiet())
	t.Cleanup(listen(t, socket, s))
	c := NewClient(socket)
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Starting, status.State)
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = c.Volumes(soon)
	require.ErrorIs(t, err, context.DeadlineExceeded, "a call waits for the plugin to be ready")
	s.Broken(errors.New("CLUSTER is wrong"))
	status, err = c.Status(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Broken, status.State)
	assert.Equal(t, "CLUSTER is wrong", status.Problem)
	_, err = c.Start(t.Context(), resize("12345678"))
	require.ErrorContains(t, err, "CLUSTER is wrong")
	require.NoError(t, s.Close(t.Context()))
}

func TestAJobIsFollowedToItsEnd(t *testing.T) {
	d := &fakeDriver{hold: make(chan struct{}), at: make(chan struct{}, 1)}
	l := start(t, t.TempDir(), d)
	job, err := l.Start(t.Context(), resize("12345678"))
	require.NoError(t, err)
	assert.Equal(t, Running, job.State)
	<-d.at
	var seen []string
	again, err := l.Start(t.Context(), resize("12345678")) // its answer was lost
	require.NoError(t, err)
	assert.Equal(t, job.Began, again.Began)
	job, err = l.Await(t.Context(), job, func(j Job) {
		if seen = append(seen, j.Message); j.State == Running {
			close(d.hold)
		}
	})
	require.NoError(t, err)
	assert.Equal(t, []string{"being changed", "it is done"}, seen)
	assert.Equal(t, Done, job.State)
	assert.NotNil(t, job.Ended)
	assert.Len(t, d.asked(), 1)
	jobs, err := l.Jobs(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Job{job}, jobs)
}

func TestVolumesAreAdoptedKeptAndRemoved(t *testing.T) {
	d := &fakeDriver{}
	l := start(t, t.TempDir(), d)
	for i, r := range []Request{{Kind: Adopt, Volume: "db", Disk: "vol-1", Plugin: "rexray"}, {Kind: Forget, Volume: "db", Disk: "vol-1"}, {Kind: Remove, Volume: "db"}, {Kind: Remove, Volume: "db", Disk: "vol-1"}} {
		r.ID = fmt.Sprint("job-number-", i)
		job, err := l.Start(t.Context(), r)
		require.NoError(t, err)
		job, err = l.Await(t.Context(), job, func(Job) {})
		require.NoError(t, err)
		assert.Equal(t, Done, job.State)
	}
	require.NoError(t, l.Retain(t.Context(), "db"))
	assert.Equal(t, []string{"adopt dbvol-1rexray", "forget dbvol-1", "remove db", "remove dbvol-1", "retain db"}, d.asked())
}

func TestAJobGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	d := &fakeDriver{hold: make(chan struct{}), at: make(chan struct{}, 1)}
	l := start(t, dir, d)
	job, err := l.Start(t.Context(), resize("12345678"))
	require.NoError(t, err)
	<-d.at
	var after Job
	awaited, client := make(chan error), l.Client
	go func() {
		var err error
		after, err = client.Await(context.WithoutCancel(t.Context()), job, func(Job) {})
		awaited <- err
	}()
	l.end()
	next := &fakeDriver{}
	l = start(t, dir, next)
	require.NoError(t, <-awaited, "the client waits for the plugin to come back")
	assert.Equal(t, Done, after.State)
	assert.Equal(t, d.asked(), next.asked(), "the same work")

	l.end()
	last := &fakeDriver{}
	l = start(t, dir, last)
	jobs, err := l.Jobs(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Job{after}, jobs, "what has ended is remembered")
	assert.Empty(t, last.asked(), "and not done again")
}

func TestAJobThatFailsKeepsItsError(t *testing.T) {
	dir := t.TempDir()
	l := start(t, dir, &fakeDriver{err: volume.Fail(volume.NoSpace, "the pool is full", "make room")})
	job, err := l.Start(t.Context(), resize("12345678"))
	require.NoError(t, err)
	job, err = l.Await(t.Context(), job, func(Job) {})
	require.NoError(t, err)
	assert.Equal(t, Failed, job.State)
	assert.Equal(t, &Error{Code: volume.NoSpace, Message: "the pool is full", Advice: "make room"}, job.Error)
}

func TestBadRequestsDoNothing(t *testing.T) {
	d := &fakeDriver{}
	l := start(t, t.TempDir(), d)
	other := resize("12345678")
	_, err := l.Start(t.Context(), other)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		r    Request
		code volume.Code
	}{
		"id of another job":  {Request{ID: "12345678", Kind: Modify, Volume: "db", Size: 1}, volume.Conflict},
		"a path for an id":   {resize("../../../x"), volume.Invalid},
		"no such kind":       {Request{ID: "123456789", Kind: "burn", Volume: "db", Size: 1}, volume.Invalid},
		"no volume":          {Request{ID: "123456789", Kind: Modify, Size: 1}, volume.Invalid},
		"no change":          {Request{ID: "123456789", Kind: Modify, Volume: "db"}, volume.Invalid},
		"adopt no disk":      {Request{ID: "123456789", Kind: Adopt, Volume: "db"}, volume.Invalid},
		"modify of a plugin": {Request{ID: "123456789", Kind: Modify, Volume: "db", Size: 1, Plugin: "rexray"}, volume.Invalid},
		"forget of a plugin": {Request{ID: "123456789", Kind: Forget, Volume: "db", Plugin: "rexray"}, volume.Invalid},
		"adopt and resize":   {Request{ID: "123456789", Kind: Adopt, Volume: "db", Disk: "vol-1", Size: 1}, volume.Invalid},
		"remove and resize":  {Request{ID: "123456789", Kind: Remove, Volume: "db", Size: 1}, volume.Invalid},
		"restore nothing":    {Request{ID: "123456789", Kind: Restore, Volume: "db", Disk: "vol-1"}, volume.Invalid},
		"clone nothing":      {Request{ID: "123456789", Kind: Clone, Volume: "db"}, volume.Invalid},
		"snapshot a disk":    {Request{ID: "123456789", Kind: Copy, Volume: "db", Disk: "vol-1"}, volume.Invalid},
		"delete all":         {Request{ID: "123456789", Kind: DeleteSnapshot}, volume.Invalid},
		"change the disk":    {Request{ID: "123456789", Kind: Modify, Volume: "db", Size: 1, Disk: "vol-2"}, volume.Invalid},
		"negative":           {Request{ID: "123456789", Kind: Modify, Volume: "db", Size: -1}, volume.Invalid},
	} {
		_, err := l.Start(t.Context(), c.r)
		require.ErrorIs(t, err, c.code, name)
	}
	resp, err := l.http.Post("http://blockvol"+Root+"jobs", "", strings.NewReader(`{"id":"123456789","kind":"modify","volume":"db","size_bytes":1,"keep_old":true}`))
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusBadRequest, resp.StatusCode, "a field of a later version may change what is asked for")
	_, err = l.Job(t.Context(), "abcdefgh", 0)
	require.ErrorIs(t, err, volume.NotFound)
	jobs, err := l.Jobs(t.Context())
	require.NoError(t, err)
	assert.Len(t, jobs, 1)
}

func TestJobsThatCannotBeReadAreLeftAsTheyAre(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{
		"damaged-1.json": "{", "later-0001.json": `{"version":2,"id":"later-0001","state":"running"}`, "other-0001.json": `{"version":1,"id":"later-0001","state":"running"}`,
		"later-0002.json": `{"version":1,"id":"later-0002","kind":"levitate","volume":"db","state":"running"}`,
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "jobs"), 0o700))
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "jobs", name), []byte(content), 0o600))
	}
	d := &fakeDriver{}
	l := start(t, dir, d)
	jobs, err := l.Jobs(t.Context())
	require.NoError(t, err)
	assert.Empty(t, jobs)
	assert.Empty(t, d.asked())
	for name, content := range files {
		now, err := os.ReadFile(filepath.Join(dir, "jobs", name))
		require.NoError(t, err)
		assert.Equal(t, content, string(now))
	}
}

func TestEventsTellWhatHasHappened(t *testing.T) {
	l := start(t, t.TempDir(), &fakeDriver{})
	l.Event(volume.PhaseEnded{Volume: "db", Phase: volume.Attaching, Took: 1500 * time.Millisecond})
	l.Event(volume.PhaseEnded{Volume: "db", Phase: volume.Reconciling})
	l.Event(volume.CallEnded{Volume: "db", Op: volume.Mount, Took: 2 * time.Second, Err: volume.Fail(volume.Held, "held", "wait")})
	l.Event(volume.TakenOver{Volume: "db", Holder: "i-2", Evidence: "it is stopped"})
	l.Event(volume.Found{Volume: "other", Finding: volume.Stray})
	events, err := l.Events(t.Context(), "db")
	require.NoError(t, err)
	for i := range events {
		assert.WithinDuration(t, time.Now(), events[i].At, time.Minute)
		events[i].At = time.Time{}
	}
	assert.Equal(t, []Event{
		{Kind: PhaseEvent, Volume: "db", What: "attaching", Took: 1.5},
		{Kind: CallEvent, Volume: "db", What: "mount", Took: 2, Error: &Error{Code: volume.Held, Message: "held", Advice: "wait"}},
		{Kind: TakeoverEvent, Volume: "db", What: "i-2", Reason: "it is stopped"},
	}, events)
	for i := range keptEvents {
		l.Event(volume.CallEnded{Volume: strconv.Itoa(i), Op: volume.Create})
	}
	events, err = l.Events(t.Context(), "")
	require.NoError(t, err)
	require.Len(t, events, keptEvents)
	assert.Equal(t, "0", events[0].Volume)
	assert.Equal(t, strconv.Itoa(keptEvents-1), events[keptEvents-1].Volume)
}

func TestTheStatusHasTheLastFailures(t *testing.T) {
	l := start(t, t.TempDir(), &fakeDriver{volumes: map[string]driver.Info{"db": {Name: "db"}, "web": {Name: "web"}}, slots: driver.Slots{Most: 16, Used: 3}})
	call := func(name string, op volume.Op, failure string) {
		ended := volume.CallEnded{Volume: name, Op: op}
		if failure != "" {
			ended.Err = volume.Fail(volume.Held, failure, "")
		}
		l.Event(ended)
	}
	call("db", volume.Mount, "first")
	call("db", volume.Mount, "second")
	call("web", volume.Mount, "held")
	call("web", volume.Release, "in use")
	call("web", volume.Mount, "")
	call("db", volume.Unmount, "")
	l.Event(volume.PhaseEnded{Volume: "db", Phase: volume.Attaching, Took: time.Second})

	status, err := l.Status(t.Context())
	require.NoError(t, err)
	free := 13
	assert.Equal(t, &Disks{Used: 3, Most: 16, Free: &free}, status.Disks)
	var failures []string
	for _, e := range status.Failures {
		failures = append(failures, e.Volume+" "+e.What+": "+e.Error.Message)
	}
	assert.Equal(t, []string{"db mount: second", "web mount: held", "web release: in use"}, failures, "of each volume and call the last")
	standing := func(name string) string {
		v, err := l.Volume(t.Context(), name)
		require.NoError(t, err)
		if v.Failure == nil {
			return ""
		}
		return v.Failure.What + ": " + v.Failure.Error.Message
	}
	assert.Equal(t, "mount: second", standing("db"))
	assert.Equal(t, "release: in use", standing("web"))
	call("web", volume.Release, "")
	l.Event(volume.CallEnded{Volume: "web", Op: volume.Modify, Err: volume.Fail(volume.Invalid, "no such type", "")})
	assert.Empty(t, standing("web"), "it has succeeded since, and what is refused as invalid is not the volume's failure")
	all, err := l.Volumes(t.Context())
	require.NoError(t, err)
	for _, v := range all {
		assert.Equal(t, v.Name == "db", v.Failure != nil, v.Name)
	}

	for i := range 2 * keptFailures {
		call(strconv.Itoa(i), volume.Create, "no")
	}
	status, err = l.Status(t.Context())
	require.NoError(t, err)
	require.Len(t, status.Failures, keptFailures)
	assert.Equal(t, strconv.Itoa(2*keptFailures-1), status.Failures[keptFailures-1].Volume, "the latest last")
}

func TestANodeWhosePlacesForDisksAreNotKnownSaysSo(t *testing.T) {
	for slots, want := range map[driver.Slots]*Disks{{Used: 2}: {Used: 2}, {Used: 9, Most: 8}: {Used: 9, Most: 8, Free: new(int)}} {
		l := start(t, t.TempDir(), &fakeDriver{slots: slots})
		status, err := l.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, want, status.Disks)
	}
	l := start(t, t.TempDir(), &fakeDriver{err: errors.New("nobody told")})
	status, err := l.Status(t.Context())
	require.NoError(t, err)
	assert.Nil(t, status.Disks)
	assert.Equal(t, "nobody told", status.DisksUnknown)
}

func TestOldJobsAreForgotten(t *testing.T) {
	dir := t.TempDir()
	l := start(t, dir, &fakeDriver{})
	for i := range keptJobs + 5 {
		job, err := l.Start(t.Context(), resize(fmt.Sprintf("job-%08d", i)))
		require.NoError(t, err)
		_, err = l.Await(t.Context(), job, func(Job) {})
		require.NoError(t, err)
	}
	jobs, err := l.Jobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, keptJobs)
	assert.Equal(t, "job-00000005", jobs[0].ID)
	files, err := os.ReadDir(filepath.Join(dir, "jobs"))
	require.NoError(t, err)
	assert.Len(t, files, keptJobs)
}

func TestTheSocketIsFound(t *testing.T) {
	runtime := t.TempDir()
	soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := Find(soon, runtime)
	require.ErrorContains(t, err, "no blockvol runs on this machine: there is no socket in "+runtime)
	for i, dir := range []string{"plugins/" + strings.Repeat("0123456789abcdef", 4), "plugins"} {
		require.NoError(t, os.MkdirAll(filepath.Join(runtime, dir), 0o700))
		s := New(About{Provider: "local", Cluster: fmt.Sprint("c", i)}, host.Paths{}, quiet())
		t.Cleanup(listen(t, filepath.Join(runtime, dir, "blockvol.sock"), s))
		c, err := Find(t.Context(), runtime)
		if i == 1 {
			require.ErrorContains(t, err, "several blockvol plugins run on this machine")
			require.ErrorContains(t, err, "cluster c0")
			continue
		}
		require.NoError(t, err)
		status, err := c.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "c0", status.Cluster)
	}
}
