// Package qemu runs virtual machines whose disks come and go as a cloud's do, and has the storage behind these disks: a
// machine shows a disk that bears its serial on the cloud's bus, loses power, freezes, or has a disk pulled out.
//
// Everything is emulated, so that nothing is asked of the host but the program qemu-system-x86_64.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// scsiController is QEMU's name for what all SCSI disks are plugged into.
const scsiController = "scsi"

// AgentPort is the name of the serial port by which the guest is spoken to, see Machine.Agent. The guest finds it as
// /dev/virtio-ports/blockvol.agent, or by /sys/class/virtio-ports/*/name.
const AgentPort = "blockvol.agent"

// patience bounds every wait for QEMU itself. It is long because it only decides how soon a broken test is given up.
const patience = 2 * time.Minute

// A Runner starts programs where machines live, a network namespace of the test's own, and so that they die with the test.
// What it starts must become the program, since that is ended by its process id. The caller waits for it.
type Runner interface {
	Start(cmd *exec.Cmd) error
}

// RunnerFunc is a Runner.
type RunnerFunc func(cmd *exec.Cmd) error

// Start calls the function.
func (f RunnerFunc) Start(cmd *exec.Cmd) error { return f(cmd) }

// Config is what a machine is like. A snapshot can be restored only by a machine with the same Kernel, Initrd, Append, Memory
// and Ports as the one that saved it; one saved with a Tap also wants a Tap, and keeps the MAC address.
type Config struct {
	Dir      string // of sockets and logs, made if missing; short, since a socket's path has 107 bytes at most
	Kernel   string
	Initrd   string // "" for none
	Append   string // the kernel's command line
	Root     string // a qcow2 image, the guest's /dev/vda
	Snapshot string // in Root, to go on from; "" boots
	Memory   int    // MiB
	Tap      string // a tap interface that exists where the Runner starts programs; "" leaves the network card without a cable
	MAC      string // of the network card; "" is QEMU's choice, which is the same for all machines
	Ports    int    // how many disks there can be at a time, 64 at most
}

// Machine is one virtual machine from power on to power off: one process. Its methods may be called from any number of
// goroutines.
//
// A guest that reboots stays the same machine with the same disks. One that powers itself off ends it.
type Machine struct {
	cfg     Config
	cmd     *exec.Cmd
	monitor *Monitor
	ended   chan struct{}

	mu    sync.Mutex
	over  bool           // QEMU has ended: nothing is begun any more
	work  sync.WaitGroup // what is being done about devices; added to under mu, while not over
	named int            // devices so far: no name is used twice
	ports []*device      // nil where nothing is
}

// Start powers a machine on. It returns when QEMU has, with a Snapshot, made the guest go on, or begun to boot it.
func Start(run Runner, cfg Config) (_ *Machine, err error) {
	if cfg.Ports < 0 || cfg.Ports > maxPorts {
		return nil, fmt.Errorf("a machine cannot have %d ports", cfg.Ports)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, ended: make(chan struct{}), ports: make([]*device, cfg.Ports)}
	for _, socket := range []string{m.file("qmp"), m.file("agent")} { // of an earlier machine
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	m.cmd = exec.Command("qemu-system-x86_64", m.arguments()...)
	if err := start(run, m.cmd, m.file("log")); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		m.cmd.Wait() //nolint:errcheck // its end, of any kind, is what is waited for
	}()
	if m.monitor, err = m.connect(exited); err != nil {
		m.kill()
		<-exited
		return nil, fmt.Errorf("%w: %s", err, said(m.file("log")))
	}
	m.monitor.Watch(m.notice)
	go m.end(exited)
	return m, nil
}

func (m *Machine) connect(exited <-chan struct{}) (*Monitor, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		monitor, err := Dial(ctx, m.file("qmp"))
		if err == nil {
			return monitor, nil
		}
		select {
		case <-exited:
			return nil, errors.New("QEMU does not start")
		case <-ctx.Done():
			return nil, fmt.Errorf("QEMU does not answer: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// end leaves nothing behind that could still write to a disk, once QEMU has ended or cannot be ruled any more.
func (m *Machine) end(exited <-chan struct{}) {
	<-m.monitor.Done()
	m.kill()
	<-exited
	m.monitor.Close()
	m.mu.Lock()
	m.over = true
	m.mu.Unlock()
	m.work.Wait() // soon: all that is asked of the monitor fails
	for _, d := range m.ports {
		if d != nil && d.server != nil {
			d.server.kill()
		}
	}
	close(m.ended)
}

// arguments are the same for saving a snapshot and for restoring it, but for what is the host's side of a device. All
// devices have addresses, so that one more does not move others.
func (m *Machine) arguments() []string {
	netdev, tap := "", ""
	if m.cfg.Tap != "" {
		netdev, tap = ",netdev=net", "tap,id=net,script=no,downscript=no,ifname="+m.cfg.Tap
	}
	mac := ""
	if m.cfg.MAC != "" {
		mac = ",mac=" + m.cfg.MAC
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "2", "-m", strconv.Itoa(m.cfg.Memory),
		"-kernel", m.cfg.Kernel, "-append", m.cfg.Append,
		"-chardev", "file,id=console,path=" + escape(m.file("console")), "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,server=on,wait=off,path=" + escape(m.file("qmp")), "-mon", "chardev=qmp,mode=control",
		// What the guest has flushed is in the image, as the host sees it, when QEMU is killed: never cache=unsafe.
		"-drive", "if=none,id=root,format=qcow2,cache=writeback,file=" + escape(m.cfg.Root),
		"-device", "virtio-blk-pci,drive=root,serial=root,addr=0x3",
		"-device", "virtio-serial-pci,id=serial,addr=0x4",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + escape(m.file("agent")),
		"-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=" + AgentPort,
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,addr=0x5",
		// The card is there without a cable too. Its boot ROM would only cost time.
		"-device", "virtio-net-pci,romfile=,addr=0x6" + netdev + mac,
		"-device", "virtio-scsi-pci,id=" + scsiController + ",addr=0x7",
	}
	if tap != "" {
		args = append(args, "-netdev", tap)
	}
	if m.cfg.Initrd != "" {
		args = append(args, "-initrd", m.cfg.Initrd)
	}
	if m.cfg.Snapshot != "" {
		args = append(args, "-loadvm", m.cfg.Snapshot)
	}
	return append(args, portArguments(m.cfg.Ports)...)
}

func (m *Machine) file(name string) string { return filepath.Join(m.cfg.Dir, name) }

// Monitor returns the connection to QEMU, for what Machine has no words for.
func (m *Machine) Monitor() *Monitor { return m.monitor }

// Agent returns the path of the socket at the other end of the guest's serial port AgentPort. One at a time is served. While
// nobody is connected the guest reads an end of file, and what it writes is lost.
func (m *Machine) Agent() string { return m.file("agent") }

// Console returns what the guest has written to its serial console, ttyS0.
func (m *Machine) Console() string {
	log, _ := os.ReadFile(m.file("console"))
	return string(log)
}

// Ended is closed when the machine is no more, and nothing of it can write to a disk.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// PowerOff takes the power from the machine: what the guest has not written is lost. It returns when the machine has ended,
// and may be called again.
func (m *Machine) PowerOff() {
	m.kill()
	<-m.ended
}

func (m *Machine) kill() {
	m.cmd.Process.Kill() //nolint:errcheck // it may have ended already
}

// Freeze stops the guest's processors, as a host does that is too busy with others.
func (m *Machine) Freeze() error { return m.execute("stop", nil, nil) }

// Thaw lets a frozen guest go on.
func (m *Machine) Thaw() error { return m.execute("cont", nil, nil) }

// frozen is true also if there is no knowing.
func (m *Machine) frozen() bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	var status struct {
		Running bool `json:"running"`
	}
	err := m.monitor.Execute(ctx, "query-status", nil, &status)
	return err != nil || !status.Running
}

// SaveSnapshot keeps the whole machine, memory included, in the root image under a name. The guest stands still meanwhile.
// It fails while the machine has a disk of a Storage, which QEMU cannot save.
func (m *Machine) SaveSnapshot(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	says, err := m.monitor.Human(ctx, "savevm "+name)
	if err == nil && says != "" {
		err = errors.New(says)
	}
	if err != nil {
		return fmt.Errorf("saving snapshot %s: %w", name, err)
	}
	return nil
}

func (m *Machine) execute(command string, args, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.monitor.Execute(ctx, command, args, result)
}

// start starts a program that writes what it has to say to a file.
func start(run Runner, cmd *exec.Cmd, log string) error {
	if cmd.Err != nil {
		return fmt.Errorf("%w: scripts/setup test installs it", cmd.Err)
	}
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := run.Start(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", filepath.Base(cmd.Path), err)
	}
	return nil
}

// said returns what a program has said, for an error about it.
func said(log string) string {
	text, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// escape makes a path part of a list of options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
