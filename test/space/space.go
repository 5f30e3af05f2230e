// Package space gives a test a place of its own for what it starts: mounts, processes, a network with nothing but loopback,
// IPC and a host name. What runs there dies with the process that started it, however that one ends.
package space

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

// A Space is a set of namespaces. Two processes, both this very program started anew, keep it:
//
//   - the guard, outside, reads a pipe from the test. When the test ends, by whatever cause, the pipe breaks, and the
//     guard ends init and removes the control groups. A guard of the same kind keeps a directory: it detaches loop
//     devices and removes it once no space uses it.
//   - init, inside, is the first process: the kernel ends all others with it. It prepares the mounts and reaps orphans.
type Space struct {
	pid    int    // of init, as the test sees it
	cgroup string // of all that runs in the space, below the root of each hierarchy

	guard    *exec.Cmd
	lifeline io.Closer
	stderr   *strings.Builder
}

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// roleVariable makes this program play a part other than its own.
const roleVariable = "BLOCKVOL_TEST_SPACE_ROLE"

func init() {
	role := os.Getenv(roleVariable)
	if role == "" {
		return
	}
	os.Unsetenv(roleVariable) //nolint:errcheck // cannot fail for a constant name
	err := fmt.Errorf("no such role: %s", role)
	switch role {
	case "guard":
		err = guard(os.Args[1], os.Args[2])
	case "init":
		err = initialise(os.Args[1])
	case "inside":
		err = inside(os.Args[1], os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// PID is a process whose namespaces are the space.
func (s *Space) PID() int { return s.pid }

// Cgroup is the control group of all that runs in the space, below the root of each hierarchy.
func (s *Space) Cgroup() string { return s.cgroup }

// Path translates an absolute path in the space to one that this process can open.
func (s *Space) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(s.pid), "root", path)
}

// again is a command that starts this program in a role.
func again(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is for the test, not for these
	return cmd
}

// T is what a space needs of a test.
type T interface {
	Helper()
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
}

// Dir makes a directory that several spaces can use. When the test
// ends, loop devices on files in it are detached and it is removed.
func Dir(t T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "blockvol-")
	if err != nil {
		t.Fatalf("space: %v", err)
	}
	s, err := startGuard(dir, "directory")
	if err != nil {
		t.Fatalf("space: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Fatalf("space: removing %s: %v", dir, err)
		}
	})
	return dir
}

// New makes a space. What it leaves in a directory of its own, Dir's guard removes; the base name of that is the name of
// the space's host and of its control group.
func New(dir string) (*Space, error) { return startGuard(dir, "space") }

func startGuard(dir, what string) (*Space, error) {
	s := &Space{guard: again("guard", dir, what), stderr: &strings.Builder{}, cgroup: cgroupOf(dir)}
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
		return nil, errors.Join(fmt.Errorf("the space does not start: %w", err), s.Close())
	}
	s.pid, err = strconv.Atoi(strings.TrimSpace(line))
	return s, err
}

// Close ends all that runs in the space and cleans up behind it.
func (s *Space) Close() error {
	if s.guard == nil {
		return nil
	}
	s.lifeline.Close() //nolint:errcheck // a broken pipe is what the guard waits for
	err := s.guard.Wait()
	s.guard = nil
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(s.stderr.String()))
	}
	return nil
}

// Find returns the first process of the space that matches, 0 if none does.
func (s *Space) Find(matches func(pid int) bool) (int, error) {
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

// guard waits for the test's end and cleans up.
func guard(dir, what string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	lock, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if what == "space" {
		if err := unix.Flock(lock, unix.LOCK_SH); err != nil {
			return err
		}
		return guardSpace(dir)
	}
	fmt.Println(0)
	io.Copy(io.Discard, os.Stdin)                          //nolint:errcheck // its end, of any kind, is what is waited for
	if err := unix.Flock(lock, unix.LOCK_EX); err != nil { // until no space uses the directory
		return err
	}
	return until(func() error { return errors.Join(detachLoops(dir), os.RemoveAll(dir)) })
}

// guardSpace is the parent of init, whose process id it prints.
func guardSpace(dir string) error {
	cgroup := cgroupOf(dir)
	if err := makeCgroup(cgroup); err != nil {
		return err
	}
	cmd := again("init", dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr.Cloneflags = namespaces
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // of the main thread, on which this runs and which lives as long as the guard
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
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end, of any kind, is what is waited for
	}
	cmd.Process.Kill() //nolint:errcheck // it may have ended already
	cmd.Wait()         //nolint:errcheck // it was killed; the kernel has ended every process of the space before it
	plugins, _ := filepath.Glob(filepath.Join(dir, "docker/plugins", strings.Repeat("[0-9a-f]", 64)))
	for _, plugin := range plugins { // where versions 1 and 2 are mixed, runc makes one group in the root
		err = errors.Join(err, until(func() error { return removeCgroup(filepath.Base(plugin)) }))
	}
	return errors.Join(err, until(func() error { return removeCgroup(cgroup) }))
}

// until repeats what the kernel finishes a moment after the end of a process.
func until(try func() error) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// initialise is init: it gives the space mounts of its own and reaps.
func initialise(dir string) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	// A /run of its own keeps the sockets of engines apart. The plugin wants /etc/resolv.conf, which may lead there.
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
		return fmt.Errorf("naming the host: %w", err)
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

// inside becomes another program, in the control group of the space: a process that joins namespaces does not join that.
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

// Process is a program in a space. Its end is noticed by a goroutine that lives as long as the program.
type Process struct {
	PID  int           // as the test sees it
	Done chan struct{} // closed at its end
	Err  error         // how it ended, valid after Done

	cmd *exec.Cmd
}

// Start starts a program in the space.
func (s *Space) Start(cmd *exec.Cmd) (*Process, error) {
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

// Enter is Start for a caller who waits for the program himself. The thread that has entered the namespaces is not used
// again.
func (s *Space) Enter(cmd *exec.Cmd) error {
	inside := again("inside", append([]string{s.cgroup}, cmd.Args...)...)
	cmd.Path, cmd.Args, cmd.Err = inside.Path, inside.Args, nil
	cmd.Env = append(cmd.Environ(), roleVariable+"=inside")
	cmd.SysProcAttr = inside.SysProcAttr
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		started <- func() error {
			pidfd, err := unix.PidfdOpen(s.pid, 0)
			if err != nil {
				return fmt.Errorf("the space is gone: %w", err)
			}
			defer unix.Close(pidfd)
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Setns(pidfd, namespaces); err != nil {
				return fmt.Errorf("entering the space's namespaces: %w", err)
			}
			return cmd.Start()
		}()
	}()
	return <-started
}

// Signal sends the program a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Ended tells whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}
