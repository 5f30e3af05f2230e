package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/plugin/engine"
)

// version is a plugin in the registry of a fakeEngine.
type version struct {
	env        []string
	starts     bool
	privileges []engine.Privilege
}

// fakeEngine is an engine as far as the installer knows it. Its host is a directory.
type fakeEngine struct {
	t        *testing.T
	dir      string
	registry map[string]version // by reference

	mu      sync.Mutex
	plugins map[string]*engine.Plugin // by name
	jobs    map[string]*fakeJob
	made    int // plugins and jobs
	sockets map[string]net.Listener

	disabled int      // how often a plugin was
	users    []string // containers that use a volume
	attached []string // volumes that are

	changes int    // calls that change something, so far
	cut     int    // the number of the change at which the installer dies; 0 is none
	after   bool   // the change is made all the same
	stop    func() // called in place of dying, and the change is made
	dead    bool   // the installer is
}

type fakeJob struct {
	engine.Job
	output string
	code   int
}

func newFakeEngine(t *testing.T) *fakeEngine {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "") //nolint:usetesting // in memory, since thousands of files are made durable
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	t.Chdir(dir) // its path may be too long for an address
	f := &fakeEngine{t: t, dir: ".", registry: map[string]version{}, plugins: map[string]*engine.Plugin{}, jobs: map[string]*fakeJob{}, sockets: map[string]net.Listener{}}
	f.serve("engine.sock", f)
	return f
}

func (f *fakeEngine) serve(path string, handler http.Handler) net.Listener {
	l, err := new(net.ListenConfig).Listen(f.t.Context(), "unix", path)
	require.NoError(f.t, err)
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Listener.Close() //nolint:errcheck // it was not used
	server.Listener = l
	server.Start()
	f.t.Cleanup(server.Close)
	return l
}

// set changes the engine, or looks at it.
func (f *fakeEngine) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// dieAt has the installer die at a change, counted from now: after it is made, or before.
func (f *fakeEngine) dieAt(cut int, after bool) {
	f.set(func() { f.changes, f.cut, f.after = 0, cut, after })
}

func (f *fakeEngine) hasDied() (dead bool) {
	f.set(func() { dead = f.dead })
	return dead
}

// changed is how many changes were made since dieAt.
func (f *fakeEngine) changed() (n int) {
	f.set(func() { n = f.changes })
	return n
}

// installer is a new process.
func (f *fakeEngine) installer(reference string, settings map[string]string) *installer {
	f.set(func() { f.dead = false })
	client, err := engine.New("unix://engine.sock")
	require.NoError(f.t, err)
	return &installer{
		engine: client, image: "sha256:1", root: "/var/lib/docker", sockets: "sockets", reference: reference, settings: settings,
		secrets: map[string]string{"TOKEN": "hunter2"}, log: log.New(io.Discard, "", 0),
	}
}

func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		panic(http.ErrAbortHandler)
	}
	if r.Method != http.MethodGet {
		f.changes++
		switch {
		case f.changes != f.cut:
		case f.stop != nil:
			f.stop()
		default:
			f.dead = true
			if !f.after {
				panic(http.ErrAbortHandler)
			}
		}
	}
	answer, err := f.answer(r)
	if f.dead {
		panic(http.ErrAbortHandler)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		w.WriteHeader(http.StatusNotFound)
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
	}
	if err != nil {
		answer = map[string]string{"message": err.Error()}
	}
	if text, is := answer.(string); is {
		_, _ = io.WriteString(w, text)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (f *fakeEngine) answer(r *http.Request) (any, error) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if parts[0] == "containers" {
		return f.container(r, parts[1:])
	}
	remote := r.URL.Query().Get("remote")
	switch parts[1] {
	case "privileges":
		return f.registry[remote].privileges, nil // none, and no error, if the registry does not answer
	case "pull":
		name := r.URL.Query().Get("name")
		if f.plugins[name] != nil {
			return nil, errors.New("it exists")
		}
		v, err := f.pulled(r, remote)
		if err != nil {
			return `{"error": "` + err.Error() + `"}`, nil //nolint:nilerr // an engine tells late
		}
		f.made++
		p := &engine.Plugin{ID: fmt.Sprintf("plugin%d", f.made)}
		program := f.host(filepath.Join("/var/lib/docker/plugins", p.ID, "rootfs/usr/bin"))
		if err := errors.Join(os.MkdirAll(program, 0o700), os.WriteFile(filepath.Join(program, "blockvol"), []byte("program"), 0o600)); err != nil {
			return nil, err
		}
		p.Settings.Mounts = usual()
		f.become(p, remote, v)
		f.plugins[name] = p
		return `{"status": "Downloading"}` + "\n", nil
	}
	p := f.plugins[parts[1]]
	if p == nil {
		return nil, fs.ErrNotExist
	}
	if r.Method == http.MethodDelete {
		if p.Enabled {
			return nil, errors.New("it is enabled")
		}
		delete(f.plugins, parts[1])
		return "", nil
	}
	switch parts[2] {
	case "json":
		return p, nil
	case "upgrade":
		v, err := f.pulled(r, remote)
		if p.Enabled {
			err = errors.New("it is enabled")
		}
		if err != nil {
			return nil, err
		}
		f.become(p, remote, v)
		p.Settings.Mounts = usual()
		return "", nil
	case "set":
		var settings []string
		if err := json.NewDecoder(r.Body).Decode(&settings); err != nil {
			return nil, err
		}
		return "", set(p, settings)
	case "enable":
		if p.Enabled {
			return nil, errors.New("it is enabled")
		}
		if !f.registry[p.Reference].starts {
			return nil, errors.New("dial unix: no such file")
		}
		p.Enabled = true
		f.listen(p)
		return "", nil
	case "disable":
		if !p.Enabled {
			return nil, errors.New("it is disabled")
		}
		p.Enabled = false
		f.disabled++
		return "", nil
	}
	return nil, fs.ErrNotExist
}

func (f *fakeEngine) pulled(r *http.Request, remote string) (v version, err error) {
	var granted []engine.Privilege
	if err := json.NewDecoder(r.Body).Decode(&granted); err != nil {
		return v, err
	}
	v, has := f.registry[remote]
	if !has {
		return v, errors.New("connection refused")
	}
	if len(granted) != len(v.privileges) {
		return v, errors.New("incorrect privilege")
	}
	return v, nil
}

func usual() []engine.PluginMount {
	source := []string{"source"}
	return []engine.PluginMount{{Name: "state", Source: "/var/lib/blockvol/state", Settable: source}, {Name: "volumes", Source: "/var/lib/blockvol/volumes", Settable: source}}
}

func (f *fakeEngine) become(p *engine.Plugin, reference string, v version) {
	p.Reference = reference
	p.Config.Mounts = usual()
	p.Config.Env = nil
	for _, name := range v.env {
		p.Config.Env = append(p.Config.Env, engine.PluginSetting{Name: name})
	}
}

func set(p *engine.Plugin, settings []string) error {
	if p.Enabled {
		return errors.New("it is enabled")
	}
	for _, setting := range settings {
		name, value, _ := strings.Cut(setting, "=")
		mount, is := strings.CutSuffix(name, ".source")
		switch {
		case is:
			p.Settings.Mounts[slices.IndexFunc(p.Settings.Mounts, func(m engine.PluginMount) bool { return m.Name == mount })].Source = value
		case !has(*p, name):
			return fmt.Errorf("setting %q not found", name)
		default:
			p.Settings.Env = slices.DeleteFunc(p.Settings.Env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
			p.Settings.Env = append(p.Settings.Env, setting)
		}
	}
	return nil
}

// listen serves what the plugin says of itself.
func (f *fakeEngine) listen(p *engine.Plugin) {
	if f.sockets[p.ID] != nil {
		return
	}
	require.NoError(f.t, os.MkdirAll(filepath.Join("sockets", p.ID), 0o700))
	f.sockets[p.ID] = f.serve(filepath.Join("sockets", p.ID, "blockvol.sock"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !p.Enabled {
			panic(http.ErrAbortHandler)
		}
		answer := map[string]any{"state": "serving", "volumes": []any{}}
		switch env := settingsOf(*p); {
		case strings.HasSuffix(r.URL.Path, "/release"):
			f.attached = f.attached[1:]
			answer = nil
		case strings.HasSuffix(r.URL.Path, "/status") && f.attached != nil:
			var volumes []map[string]string
			for _, name := range f.attached {
				volumes = append(volumes, map[string]string{"name": name})
			}
			answer["volumes"] = volumes
		case strings.HasSuffix(r.URL.Path, "/doctor"):
			findings := []map[string]string{{"severity": "warning", "code": "state-space-low", "message": "the disk is nearly full"}}
			if env["LEVEL"] == "wrong" {
				findings = append(findings, map[string]string{"severity": "warning", "code": "setting-ignored", "message": `LEVEL is "wrong"`, "remedy": "correct it"})
			}
			answer["findings"] = findings
		case env["PROVIDER"] == "wrong":
			answer = map[string]any{"state": "broken", "problem": `PROVIDER is "wrong"`}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
}

func (f *fakeEngine) container(r *http.Request, parts []string) (any, error) {
	switch parts[0] {
	case "json":
		all := []map[string]any{}
		if r.URL.Query().Get("filters") == "" {
			for _, name := range f.users {
				all = append(all, map[string]any{"Names": []string{"/" + name}, "State": "running", "Mounts": []map[string]string{{"Driver": plugin}}})
			}
			return all, nil
		}
		for id := range f.jobs {
			all = append(all, map[string]any{"Id": id})
		}
		return all, nil
	case "create":
		var container struct {
			Image      string
			Cmd        []string
			HostConfig struct{ Binds []string }
		}
		if err := json.NewDecoder(r.Body).Decode(&container); err != nil {
			return nil, err
		}
		f.made++
		id := fmt.Sprintf("job%d", f.made)
		f.jobs[id] = &fakeJob{Job: engine.Job{Binds: container.HostConfig.Binds}}
		return map[string]string{"Id": id}, nil
	}
	job := f.jobs[parts[0]]
	root := filepath.Join(f.dir, parts[0])
	switch {
	case job == nil:
		return nil, fs.ErrNotExist
	case r.Method == http.MethodDelete:
		delete(f.jobs, parts[0])
		return "", os.RemoveAll(root)
	}
	switch parts[1] {
	case "archive":
		archive := tar.NewReader(r.Body)
		header, err := archive.Next()
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(archive)
		return "", errors.Join(err, os.MkdirAll(root, 0o700), os.WriteFile(filepath.Join(root, header.Name), text, 0o600))
	case "start":
		for _, bind := range job.Binds {
			source, target, _ := strings.Cut(strings.TrimSuffix(bind, ":ro"), ":")
			if err := errors.Join(os.MkdirAll(f.host(source), 0o700), os.MkdirAll(filepath.Dir(filepath.Join(root, target)), 0o700)); err != nil {
				return nil, err
			}
			absolute, err := filepath.Abs(f.host(source))
			if err == nil {
				err = os.Symlink(absolute, filepath.Join(root, target))
			}
			if err != nil {
				return nil, err
			}
		}
		var out bytes.Buffer
		if err := onHost(root, &out); err != nil {
			job.code = 1
			out.WriteString(err.Error())
		}
		job.output = out.String()
		return "", nil
	case "wait":
		return map[string]int{"StatusCode": job.code}, nil
	case "logs":
		return strings.ReplaceAll(job.output, "\n", "\r\n"), nil
	}
	return nil, fs.ErrNotExist
}

// host returns where a path of the host is.
func (f *fakeEngine) host(path string) string { return filepath.Join(f.dir, "hostfs", path) }

// state describes the plugin.
func (f *fakeEngine) state() (reference string, enabled bool, settings map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.plugins[plugin]
	if p == nil {
		return "none", false, nil
	}
	settings = settingsOf(*p)
	maps.DeleteFunc(settings, func(_, value string) bool { return value == "" })
	return p.Reference, p.Enabled, settings
}
