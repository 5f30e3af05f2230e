// Package engine runs private Docker engines for tests.
//
// Each engine has its own data directory and its own namespaces (mount, PID, network, IPC, UTS), with loopback as the only
// network. It does not affect the machine's engine. Its processes, including containers, end with the process that started it,
// even if that is killed; then loop devices on files in its directory are detached and the directory is removed.
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

// timeout limits every wait for an engine. It is long because only a broken test reaches it.
const timeout = 4 * time.Minute

// Release is the environment variable that names the root directory of another Debian release, whose programs, dockerd among them,
// the engines then run, as `make test-engines` does.
const Release = "BLOCKVOL_ENGINE"

// T is the part of testing.T that an engine uses.
type T = namespace.T

// Engine is a private Docker engine.
type Engine struct {
	Dir     string // all data of the engine
	Volumes string // directory of provider local
	State   string // blockvol's state directory

	t          T
	args       []string // additional arguments of dockerd
	namespaces *namespace.Set
	daemon     *namespace.Process // nil while dockerd is down
}

// Option is an option of Start.
type Option func(*Engine)

// LiveRestore makes containers and plugins continue while dockerd is down.
func LiveRestore() Option { return Arguments("--live-restore") }

// Arguments adds arguments to dockerd's.
func Arguments(args ...string) Option { return func(e *Engine) { e.args = append(e.args, args...) } }

// Images sets the directory in which provider local keeps its images, which can outlive the engine, see namespace.Dir.
func Images(dir string) Option { return func(e *Engine) { e.Volumes = dir } }

// Start returns a running engine. It is removed when the test ends.
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
			for program, log := range e.spawned() {
				t.Logf("log of %s:\n%s", program, tail(log, 100))
			}
		}
		if e.namespaces != nil {
			e.PowerOff()
		}
	})
	e.Up()
	return e
}

// PowerOff kills all processes of the engine. Its directory remains, for Up. It is not a real power loss, since the kernel
// continues: file systems are unmounted cleanly and loop devices stay attached.
func (e *Engine) PowerOff() {
	e.t.Helper()
	if err := e.namespaces.Close(); err != nil {
		e.t.Fatalf("engine: ending the processes of %s: %v", e.Dir, err)
	}
	e.namespaces, e.daemon = nil, nil
}

// Up starts dockerd, after PowerOff in new namespaces, and waits until it answers.
func (e *Engine) Up() {
	e.t.Helper()
	if e.namespaces == nil {
		own, err := namespace.New(e.Dir)
		if err != nil {
			e.t.Fatalf("engine: %v", err)
		}
		e.namespaces = own
		if root := os.Getenv(Release); root != "" {
			e.Run("mount", "--bind", filepath.Join(root, "usr"), "/usr")
		}
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

// Down sends SIGTERM to dockerd and waits until it has ended.
func (e *Engine) Down() { e.t.Helper(); e.end(syscall.SIGTERM) }

// Kill sends SIGKILL to dockerd and waits until it has ended. Containers, plugins and containerd continue.
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
	case <-time.After(timeout):
		e.t.Fatalf("engine: dockerd has not ended after %v\n%s", signal, tail(e.Log(), 30))
	}
	e.daemon = nil
}

// Host returns the engine's address, for DOCKER_HOST.
func (e *Engine) Host() string { return "unix://" + filepath.Join(e.Dir, "docker.sock") }

// Docker runs the docker client and returns its standard output without the final newline.
func (e *Engine) Docker(args ...string) string {
	e.t.Helper()
	out, err := e.Try(args...)
	if err != nil {
		e.t.Fatalf("%v", err)
	}
	return out
}

// Try is Docker, but returns an error, which contains the client's standard error.
func (e *Engine) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 3*time.Minute, errors.New("timeout"))
	defer cancel()
	return run(e.Client(ctx, args...), "docker")
}

// Client returns a command that runs the docker client against this engine.
func (e *Engine) Client(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "DOCKER_CONTEXT=", "DOCKER_CONFIG="+filepath.Join(e.Dir, "client"))
	return cmd
}

// Run runs a program in the engine's namespaces and returns its output without the final newline.
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

// Spawn starts a program in the engine's namespaces and returns its process ID. The program ends with the engine at the latest.
func (e *Engine) Spawn(name string, args ...string) (pid int) {
	e.t.Helper()
	log, err := os.OpenFile(filepath.Join(e.Dir, filepath.Base(name)+spawnedLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
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

// spawnedLog is the end of the names of the logs of programs that Spawn has started.
const spawnedLog = ".spawned.log"

// spawned returns these logs by the programs' names.
func (e *Engine) spawned() map[string]string {
	logs := map[string]string{}
	files, _ := filepath.Glob(filepath.Join(e.Dir, "*"+spawnedLog))
	for _, file := range files {
		if log, err := os.ReadFile(file); err == nil {
			logs[strings.TrimSuffix(filepath.Base(file), spawnedLog)] = string(log)
		}
	}
	return logs
}

// Path translates an absolute path in the engine's mount namespace to one that this process can open.
func (e *Engine) Path(path string) string {
	return e.namespaces.Path(path)
}

// PID returns a process that is in the engine's namespaces.
func (e *Engine) PID() int { return e.namespaces.PID() }

// Log returns dockerd's log since Start, which includes the plugins' output.
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
	e.EventuallyWithin(timeout, what, check)
}

// EventuallyWithin is Eventually, for what takes long by design.
func (e *Engine) EventuallyWithin(timeout time.Duration, what string, check func() error) {
	e.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("timeout after %v: %s: %v", timeout, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Busybox imports an image with busybox, /bin/sh, and a directory /copyup with one file, for tests of Docker's copy-up. It
// returns the image's name.
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

// InstallPlugin creates the plugin blockvol:latest from a directory that `make plugin` has built, with its state and images in
// the engine's directories, applies settings (NAME=VALUE), and enables it.
func (e *Engine) InstallPlugin(dir string, settings ...string) {
	e.t.Helper()
	e.Docker("plugin", "create", Plugin, e.Grantable(dir))
	e.Docker(append([]string{"plugin", "set", Plugin, "state.source=" + e.State, "volumes.source=" + e.Volumes}, settings...)...)
	e.Docker("plugin", "enable", Plugin)
}

// Plugin is the name of the plugin that InstallPlugin installs.
const Plugin = "blockvol:latest"

// PluginPID returns the process ID of the plugin in the test's PID namespace, or 0.
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
		e.t.Fatalf("engine: finding the plugin's process: %v", err)
	}
	return pid
}

// SettledPluginPID waits until dockerd regards the plugin as started, and returns its process ID. dockerd connects to a new
// plugin half a second after its start. A plugin that dies before is disabled instead of restarted.
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

// ageOf returns how long a process has run, see proc_pid_stat(5) and proc_uptime(5).
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
	var uptime, ticks float64 // a tick is 10 ms on all of Debian's architectures
	if _, err = fmt.Sscan(string(now), &uptime); err == nil {
		_, err = fmt.Sscan(strings.Fields(after)[19], &ticks)
	}
	return time.Duration((uptime - ticks/100) * float64(time.Second)), err
}

// KillPlugin sends SIGKILL to the plugin and waits until dockerd has restarted it.
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

// Mounts returns the mountinfo of the engine's mount namespace.
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

// tail returns the end of a log, without the lines of containerd and gRPC.
func tail(text string, lines int) string {
	all := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
		return strings.Contains(line, " type=io.containerd.") || strings.Contains(line, " module=grpc")
	})
	return strings.Join(all[max(0, len(all)-lines):], "")
}
