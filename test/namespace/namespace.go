// Package namespace runs a test's programs in Linux namespaces of their own: mount, PID, network, IPC and UTS.
//
// The programs end with the process that started them, even if that is killed.
package namespace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Set is a set of namespaces whose network has loopback only. Two processes, both re-executions of this program, maintain it:
//
//   - The guard, outside, reads a pipe from the test. The pipe breaks when the test ends for any reason. The guard then
//     kills init and removes the control groups. Dir starts a guard too: it detaches loop devices and removes the
//     directory when no set uses it any more.
//   - init, inside, is PID 1: the kernel kills all others with it. It prepares the mounts and reaps orphans.
type Set struct {
	pid    int    // of init, in the test's PID namespace
	cgroup string // of all programs in the set, relative to the root of each hierarchy

	guard    *exec.Cmd
	lifeline io.Closer
	stderr   *strings.Builder
}

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// roleVariable makes a re-execution of this program act as guard, init or inside.
const roleVariable = "BLOCKVOL_TEST_NAMESPACE_ROLE"

func init() {
	role := os.Getenv(roleVariable)
	if role == "" {
		return
	}
	os.Unsetenv(roleVariable) //nolint:errcheck // cannot fail for a constant name
	err := fmt.Errorf("unknown role %s", role)
	switch role {
	case "guard":
		err = guard(os.Args[1], os.Args[2])
	case "init":
		err = runInit(os.Args[1])
	case "inside":
		err = inside(os.Args[1], os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// PID returns a process that is in all namespaces of the set.
func (s *Set) PID() int { return s.pid }

// Cgroup returns the control group of all programs in the set, relative to the root of each hierarchy.
func (s *Set) Cgroup() string { return s.cgroup }

// Path translates an absolute path in the set's mount namespace to one that this process can open.
func (s *Set) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(s.pid), "root", path)
}

// reexec returns a command that runs this program in a role.
func reexec(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C must reach the test only
	return cmd
}

// T is the part of testing.T that Dir uses.
type T interface {
	Helper()
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// Dir makes a directory that several sets can use. When the test ends, loop devices on files in it are detached and it is
// removed.
func Dir(t T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "blockvol-")
	if err != nil {
		t.Fatalf("namespace: %v", err)
	}
	s, err := startGuard(dir, "directory")
	if err != nil {
		t.Fatalf("namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Fatalf("namespace: removing %s: %v", dir, err)
		}
	})
	return dir
}

// New makes a set that uses a directory from Dir. The base name of dir is the host name of the set and the name of its
// control group.
func New(dir string) (*Set, error) { return startGuard(dir, "set") }

func startGuard(dir, what string) (*Set, error) {
	s := &Set{guard: reexec("guard", dir, what), stderr: &strings.Builder{}, cgroup: cgroupOf(dir)}
	s.guard.Stderr = s.stderr
	lifeline, err := s.guard.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.lifeline = lifeline
	stdout, err := s.guard.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.guard.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the namespaces: %w", err), s.Close())
	}
	s.pid, err = strconv.Atoi(strings.TrimSpace(line))
	return s, err
}

// Close ends all programs in the set and cleans up.
func (s *Set) Close() error {
	if s.guard == nil {
		return nil
	}
	s.lifeline.Close() //nolint:errcheck // the guard waits for the broken pipe
	err := s.guard.Wait()
	s.guard = nil
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(s.stderr.String()))
	}
	return nil
}

// Find returns the first matching process in the set, or 0.
func (s *Set) Find(matches func(pid int) bool) (int, error) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.pid))
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if net, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); net == own && matches(pid) {
			return pid, nil
		}
	}
	return 0, nil
}

// guard waits until the test ends and cleans up.
func guard(dir, what string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	lock, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if what == "set" {
		if err := unix.Flock(lock, unix.LOCK_SH); err != nil {
			return err
		}
		return guardSet(dir)
	}
	fmt.Println(0)
	io.Copy(io.Discard, os.Stdin)                          //nolint:errcheck // returns when the pipe breaks
	if err := unix.Flock(lock, unix.LOCK_EX); err != nil { // until no set uses the directory
		return err
	}
	return retry(func() error { return errors.Join(detachLoops(dir), os.RemoveAll(dir)) })
}

// guardSet is the parent of init. It prints init's process ID.
func guardSet(dir string) error {
	cgroup := cgroupOf(dir)
	if err := makeCgroup(cgroup); err != nil {
		return err
	}
	cmd := reexec("init", dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr.Cloneflags = namespaces
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // the parent is the main thread, which lives as long as the guard
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making namespaces: %w", err)
	}
	word, err := io.ReadAll(ready)
	if err == nil && string(word) != "ready" {
		err = errors.New("init has failed")
	}
	if err == nil {
		fmt.Println(cmd.Process.Pid)
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // returns when the pipe breaks
	}
	cmd.Process.Kill() //nolint:errcheck // it may have ended already
	cmd.Wait()         //nolint:errcheck // it was killed; the kernel has ended all its processes before it
	plugins, _ := filepath.Glob(filepath.Join(dir, "docker/plugins", strings.Repeat("[0-9a-f]", 64)))
	for _, plugin := range plugins { // with cgroup versions 1 and 2 mixed, runc makes a group in the root
		err = errors.Join(err, retry(func() error { return removeCgroup(filepath.Base(plugin)) }))
	}
	return errors.Join(err, retry(func() error { return removeCgroup(cgroup) }))
}

// retry repeats what can fail until the kernel has cleaned up after a process.
func retry(try func() error) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runInit is init: it prepares the mounts, brings loopback up, and reaps orphans.
func runInit(dir string) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	// A private /run keeps the sockets of engines apart. The plugin needs /etc/resolv.conf, which may be a link to /run.
	resolver, _ := filepath.EvalSymlinks("/etc/resolv.conf")
	servers, _ := os.ReadFile(resolver)
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	if strings.HasPrefix(resolver, "/run/") {
		if err := errors.Join(os.MkdirAll(filepath.Dir(resolver), 0o755), os.WriteFile(resolver, servers, 0o644)); err != nil {
			return err
		}
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bringing loopback up: %w", err)
	}
	if err := unix.Sethostname([]byte(filepath.Base(dir))); err != nil {
		return fmt.Errorf("setting the host name: %w", err)
	}
	if _, err := os.Stdout.WriteString("ready"); err != nil {
		return err
	}
	if err := os.Stdout.Close(); err != nil {
		return err
	}
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
	return nil
}

// inside joins the set's control group, which joining its namespaces does not do, and executes the program.
func inside(cgroup string, args []string) error {
	if err := enterCgroup(cgroup); err != nil {
		return err
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(program, args, os.Environ())
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// Process is a program in a set. One goroutine waits for it as long as it runs.
type Process struct {
	PID  int           // in the test's PID namespace
	Done chan struct{} // closed when it has ended
	Err  error         // of Wait, valid after Done

	cmd *exec.Cmd
}

// Start starts a program in the set.
func (s *Set) Start(cmd *exec.Cmd) (*Process, error) {
	if err := s.Enter(cmd); err != nil {
		return nil, err
	}
	p := &Process{PID: cmd.Process.Pid, cmd: cmd, Done: make(chan struct{})}
	go func() {
		defer close(p.Done)
		p.Err = cmd.Wait()
	}()
	return p, nil
}

// Enter is Start for a caller that calls cmd.Wait.
func (s *Set) Enter(cmd *exec.Cmd) error {
	inside := reexec("inside", append([]string{s.cgroup}, cmd.Args...)...)
	cmd.Path, cmd.Args, cmd.Err = inside.Path, inside.Args, nil
	cmd.Env = append(cmd.Environ(), roleVariable+"=inside")
	cmd.SysProcAttr = inside.SysProcAttr
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		started <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := s.setns(namespaces); err != nil {
				return err
			}
			return cmd.Start()
		}()
	}()
	return <-started
}

// setns moves the calling thread to the namespaces of these types.
func (s *Set) setns(types int) error {
	pidfd, err := unix.PidfdOpen(s.pid, 0)
	if err != nil {
		return fmt.Errorf("the namespaces are gone: %w", err)
	}
	defer unix.Close(pidfd)
	if err := unix.Setns(pidfd, types); err != nil {
		return fmt.Errorf("entering the namespaces: %w", err)
	}
	return nil
}

// Signal sends a signal to the program.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}
