// Package engine runs private Docker engines, several at once if need be, for tests that want a real one.
//
// An engine lives in namespaces of its own (mounts, processes, network, IPC), with a data directory of its own, and has no
// network but loopback. It touches no engine of the machine. What it starts, containers included, dies with the process
// that started it, however that one ends; loop devices on images in its directory are detached then, and the directory
// is removed.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/blockvol/blockvol/test/namespace"
)

// patience bounds every wait for an engine. It is long because it only decides how soon a broken test is given up.
const patience = 4 * time.Minute

// T is what an engine needs of a test.
type T = namespace.T

// Engine is one private engine.
type Engine struct {
	Dir     string // everything that the engine keeps
	Volumes string // provider local's directory on the engine's host
	State   string // blockvol's state directory on the engine's host

	t          T
	args       []string // dockerd's own
	namespaces *namespace.Set
	daemon     *namespace.Process // nil while dockerd is down
}

// Option changes what Start starts.
type Option func(*Engine)

// LiveRestore lets containers and plugins go on while dockerd is down.
func LiveRestore() Option { return Arguments("--live-restore") }

// Arguments adds arguments to dockerd's.
func Arguments(args ...string) Option { return func(e *Engine) { e.args = append(e.args, args...) } }

// Images makes provider local keep its images in a directory that outlives the engine, see namespace.Dir.
func Images(dir string) Option { return func(e *Engine) { e.Volumes = dir } }

// Start returns an engine that answers. It is gone when the test ends.
func Start(t T, options ...Option) *Engine {
	t.Helper()
	dir := namespace.Dir(t)
	e := &Engine{t: t, Dir: dir, State: filepath.Join(dir, "state"), Volumes: filepath.Join(dir, "volumes")}
	for _, option := range options {
		option(e)
	}
	for _, dir := range []string{e.State, e.Volumes} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatalf("engine: %v", err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the engine in %s:\n%s", e.Dir, tail(e.Log(), 100))
		}
		if e.namespaces != nil {
			e.PowerOff()
		}
	})
	e.Up()
	return e
}

// PowerOff ends the engine's host at once with all that runs on it; its directory stays for another Up. It cannot show
// what a power loss does to data, since the kernel goes on: file systems are unmounted, loop devices stay attached.
func (e *Engine) PowerOff() {
	e.t.Helper()
	if err := e.namespaces.Close(); err != nil {
		e.t.Fatalf("engine: ending what runs in %s: %v", e.Dir, err)
	}
	e.namespaces, e.daemon = nil, nil
}

// Up starts dockerd, and its host if that is off, and waits until it answers.
func (e *Engine) Up() {
	e.t.Helper()
	if e.namespaces == nil {
		own, err := namespace.New(e.Dir)
		if err != nil {
			e.t.Fatalf("engine: %v", err)
		}
		e.namespaces = own
	}
	args := []string{
		"--host=" + e.Host(),
		"--data-root=" + filepath.Join(e.Dir, "docker"),
		"--exec-root=/run/docker",
		"--pidfile=/run/docker.pid",
		"--cgroup-parent=" + e.namespaces.Cgroup() + "/containers",
		"--bridge=none",
		"--iptables=false",
		"--ip6tables=false",
	}
	log, err := os.OpenFile(e.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatalf("engine: %v", err)
	}
	defer log.Close()
	cmd := exec.Command("dockerd", append(args, e.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	e.daemon, err = e.namespaces.Start(cmd)
	if err != nil {
		e.t.Fatalf("engine: starting dockerd: %v", err)
	}
	e.Eventually("dockerd answers", func() error {
		if e.daemon.Ended() {
			e.t.Fatalf("dockerd ended: %v\n%s", e.daemon.Err, tail(e.Log(), 30))
		}
		_, err := e.Try("version")
		return err
	})
}

// Down sends dockerd SIGTERM and waits for its end.
func (e *Engine) Down() { e.t.Helper(); e.end(syscall.SIGTERM) }

// Kill sends dockerd SIGKILL and waits for its end; containers and plugins go on, as does containerd.
func (e *Engine) Kill() { e.t.Helper(); e.end(syscall.SIGKILL) }

func (e *Engine) end(signal syscall.Signal) {
	e.t.Helper()
	if e.daemon == nil {
		e.t.Fatalf("engine: dockerd is not running")
	}
	if err := e.daemon.Signal(signal); err != nil {
		e.t.Fatalf("engine: signalling dockerd: %v", err)
	}
	select {
	case <-e.daemon.Done:
	case <-time.After(patience):
		e.t.Fatalf("engine: dockerd does not end on %v\n%s", signal, tail(e.Log(), 30))
	}
	e.daemon = nil
}

// Host is the engine's address, for DOCKER_HOST.
func (e *Engine) Host() string { return "unix://" + filepath.Join(e.Dir, "docker.sock") }

// Docker runs the docker client and returns its standard output without the last newline.
func (e *Engine) Docker(args ...string) string {
	e.t.Helper()
	out, err := e.Try(args...)
	if err != nil {
		e.t.Fatalf("%v", err)
	}
	return out
}

// Try is Docker with an error that contains what the client wrote to standard error.
func (e *Engine) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 3*time.Minute, errors.New("the client hangs"))
	defer cancel()
	return run(e.Client(ctx, args...), "docker")
}

// Client is a command of the docker client that talks to this engine.
func (e *Engine) Client(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "DOCKER_CONTEXT=", "DOCKER_CONFIG="+filepath.Join(e.Dir, "client"))
	return cmd
}

// Run runs a program on the engine's host, that is in its namespaces, and returns its output without the last newline.
func (e *Engine) Run(name string, args ...string) string {
	e.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	p, err := e.namespaces.Start(cmd)
	if err == nil {
		<-p.Done
		err = p.Err
	}
	if err != nil {
		e.t.Fatalf("%s: %v: %s", name, err, &stderr)
	}
	return strings.TrimSuffix(stdout.String(), "\n")
}

// Spawn starts a program on the engine's host and returns its process id. It ends with the engine at the latest.
func (e *Engine) Spawn(name string, args ...string) (pid int) {
	e.t.Helper()
	log, err := os.OpenFile(filepath.Join(e.Dir, filepath.Base(name)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatalf("engine: %v", err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	p, err := e.namespaces.Start(cmd)
	if err != nil {
		e.t.Fatalf("engine: starting %s: %v", name, err)
	}
	return p.PID
}

// Path translates an absolute path on the engine's host to one that this process can open.
func (e *Engine) Path(path string) string {
	return e.namespaces.Path(path)
}

// PID is a process whose namespaces are the engine's host.
func (e *Engine) PID() int { return e.namespaces.PID() }

// Log is what dockerd has logged since Start; plugins' output is part of it.
func (e *Engine) Log() string {
	log, err := os.ReadFile(e.logFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.t.Fatalf("engine: %v", err)
	}
	return string(log)
}

func (e *Engine) logFile() string { return filepath.Join(e.Dir, "dockerd.log") }

// Eventually waits until check returns nil.
func (e *Engine) Eventually(what string, check func() error) {
	e.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("still not so after %v: %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Busybox imports an image of one static busybox with /bin/sh, and a directory /copyup with one file in it, for volumes
// mounted there to copy. It returns the image's name.
func (e *Engine) Busybox() string {
	e.t.Helper()
	const name = "busybox"
	if _, err := e.Try("image", "inspect", name); err == nil {
		return name
	}
	static, err := exec.LookPath("busybox")
	if err != nil {
		e.t.Fatalf("engine: %v: run scripts/setup test to install it (busybox-static)", err)
	}
	archive := filepath.Join(e.Dir, "busybox.tar")
	const script = `
		mkdir -p "$1/bin" "$1/tmp" "$1/copyup"
		cp "$2" "$1/bin/busybox"
		for applet in $("$2" --list); do ln "$1/bin/busybox" "$1/bin/$applet" || test "$applet" = busybox; done
		echo from the image >"$1/copyup/file"
		tar --create --file "$3" --directory "$1" .`
	if _, err := run(exec.Command("sh", "-ec", script, "sh", filepath.Join(e.Dir, "busybox"), static, archive), "sh"); err != nil {
		e.t.Fatalf("engine: making an image: %v", err)
	}
	e.Docker("import", "--change", `CMD ["/bin/sh"]`, archive, name)
	return name
}

// InstallPlugin makes a managed plugin of what `make plugin` built in dir, as blockvol:latest, keeps its state and images
// in the engine's own directories, applies settings (NAME=VALUE) and enables it.
func (e *Engine) InstallPlugin(dir string, settings ...string) {
	e.t.Helper()
	e.Docker("plugin", "create", Plugin, e.Grantable(dir))
	e.Docker(append([]string{"plugin", "set", Plugin, "state.source=" + e.State, "volumes.source=" + e.Volumes}, settings...)...)
	e.Docker("plugin", "enable", Plugin)
}

// Plugin is the name under which InstallPlugin installs.
const Plugin = "blockvol:latest"

// PluginPID is the id of the plugin's process as this process sees it, 0 if there is none.
func (e *Engine) PluginPID() int {
	e.t.Helper()
	return e.pluginPID(e.pluginID())
}

func (e *Engine) pluginID() string {
	e.t.Helper()
	return e.Docker("plugin", "inspect", "--format", "{{.Id}}", Plugin)
}

func (e *Engine) pluginPID(id string) int {
	e.t.Helper()
	pid, err := e.namespaces.Find(func(pid int) bool {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return strings.HasSuffix(exe, "/usr/bin/blockvol") && strings.Contains(string(cgroup), id)
	})
	if err != nil {
		e.t.Fatalf("engine: looking for the plugin's process: %v", err)
	}
	return pid
}

// SettledPluginPID waits until dockerd regards the plugin as started, and returns its process id. dockerd dials a new
// plugin half a second after its start; one that dies before that is not started again but disabled.
func (e *Engine) SettledPluginPID() (pid int) {
	e.t.Helper()
	id := e.pluginID()
	e.Eventually("the plugin has been running for a while", func() error {
		if pid = e.pluginPID(id); pid == 0 {
			return errors.New("it is not running")
		}
		age, err := ageOf(pid)
		if err == nil && age < 2*time.Second {
			err = fmt.Errorf("process %d is %v old", pid, age)
		}
		return err
	})
	return pid
}

// ageOf tells how long a process has existed, by proc_pid_stat(5) and proc_uptime(5).
func ageOf(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	now, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	var uptime, ticks float64 // ticks are hundredths of a second on every architecture that Debian has
	if _, err = fmt.Sscan(string(now), &uptime); err == nil {
		_, err = fmt.Sscan(strings.Fields(after)[19], &ticks)
	}
	return time.Duration((uptime - ticks/100) * float64(time.Second)), err
}

// KillPlugin sends the plugin's process SIGKILL and waits until dockerd has started another.
func (e *Engine) KillPlugin() {
	e.t.Helper()
	old := e.SettledPluginPID()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		e.t.Fatalf("engine: killing the plugin: %v", err)
	}
	id := e.pluginID()
	e.Eventually("dockerd restarts the plugin", func() error {
		if pid := e.pluginPID(id); pid == 0 || pid == old {
			return errors.New("no new process")
		}
		return nil
	})
}

// Mounts is the mountinfo of the engine's host.
func (e *Engine) Mounts() string {
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", e.namespaces.PID()))
	if err != nil {
		e.t.Fatalf("engine: %v", err)
	}
	return string(mounts)
}

func run(cmd *exec.Cmd, name string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}

// tail is the end of a log, without what containerd and gRPC say of themselves.
func tail(text string, lines int) string {
	all := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
		return strings.Contains(line, " type=io.containerd.") || strings.Contains(line, " module=grpc")
	})
	return strings.Join(all[max(0, len(all)-lines):], "")
}
