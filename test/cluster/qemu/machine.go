// Package qemu runs emulated virtual machines with hot-plugged disks, and stores these disks, as a cloud does.
//
// A disk appears on the cloud's bus with its serial. A machine can lose power or freeze, and a disk can be pulled out. The host needs
// the program qemu-system-x86_64 and nothing else: no KVM.
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

// scsiController is the ID of the controller of all SCSI disks.
const scsiController = "scsi"

// AgentPort is the name of the guest's serial port for Machine.Agent: /dev/virtio-ports/blockvol.agent, or the port with this name in
// /sys/class/virtio-ports/*/name.
const AgentPort = "blockvol.agent"

// qemuTimeout limits every wait for QEMU itself. It is long because only a broken test reaches it.
const qemuTimeout = 2 * time.Minute

// Runner starts programs in the network namespace of the machines, so that they end with the test. The process that it starts must
// be the program itself, since it is killed by its process ID. The caller waits for it.
type Runner interface {
	Start(cmd *exec.Cmd) error
}

// RunnerFunc is a function that is a Runner.
type RunnerFunc func(cmd *exec.Cmd) error

// Start calls the function.
func (f RunnerFunc) Start(cmd *exec.Cmd) error { return f(cmd) }

// Config describes a machine. To restore a snapshot, a machine needs the same Kernel, Initrd, Append, Memory and Ports as the one
// that saved it, and a Tap if that had one. It keeps the MAC address of the snapshot.
type Config struct {
	Dir      string // of sockets and logs, made if missing; must be short: a socket's path has at most 107 bytes
	Kernel   string
	Initrd   string // "" for none
	Append   string // the kernel's command line
	Root     string // a qcow2 image, the guest's /dev/vda
	Snapshot string // in Root, to restore; "" boots
	Memory   int    // MiB
	Tap      string // a tap interface in the Runner's network; "" leaves the network card unconnected
	MAC      string // of the network card; "" is QEMU's default, the same for all machines
	Ports    int    // maximum number of disks, at most 64
}

// Machine is a virtual machine from power-on to power-off: one QEMU process. Its methods are safe for concurrent use.
//
// A guest that reboots stays the same Machine with the same disks. A guest that powers off ends it.
type Machine struct {
	cfg     Config
	cmd     *exec.Cmd
	monitor *Monitor
	ended   chan struct{}

	mu    sync.Mutex
	over  bool           // QEMU has ended: no new work
	work  sync.WaitGroup // pending work on devices; Add only under mu and while not over
	named int            // number of devices so far, so that no name is used twice
	ports []*device      // nil for an empty port
}

// Start powers a machine on. It returns when QEMU has restored the Snapshot or begun to boot.
func Start(run Runner, cfg Config) (_ *Machine, err error) {
	if cfg.Ports < 0 || cfg.Ports > maxPorts {
		return nil, fmt.Errorf("a machine cannot have %d ports", cfg.Ports)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, ended: make(chan struct{}), ports: make([]*device, cfg.Ports)}
	for _, socket := range []string{m.file("qmp"), m.file("agent")} { // left by an earlier machine
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
		m.cmd.Wait() //nolint:errcheck // only its end matters
	}()
	if m.monitor, err = m.connect(exited); err != nil {
		m.kill()
		<-exited
		return nil, fmt.Errorf("%w: %s", err, readLog(m.file("log")))
	}
	m.monitor.Watch(m.notice)
	go m.end(exited)
	return m, nil
}

func (m *Machine) connect(exited <-chan struct{}) (*Monitor, error) {
	ctx, cancel := context.WithTimeout(context.Background(), qemuTimeout)
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

// end waits until the monitor's connection ends, and then ends QEMU and the disk servers, so that nothing can write to a disk.
func (m *Machine) end(exited <-chan struct{}) {
	<-m.monitor.Done()
	m.kill()
	<-exited
	m.monitor.Close()
	m.mu.Lock()
	m.over = true
	m.mu.Unlock()
	m.work.Wait() // ends soon: all monitor commands fail
	for _, d := range m.ports {
		if d != nil && d.server != nil {
			d.server.kill()
		}
	}
	close(m.ended)
}

// arguments returns QEMU's arguments. They must be the same to save and to restore a snapshot, except for the host's side of a
// device. Every device has a fixed address, so that another device does not change it.
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
		// Never cache=unsafe: what the guest has flushed must be in the image when QEMU is killed.
		"-drive", "if=none,id=root,format=qcow2,cache=writeback,file=" + escape(m.cfg.Root),
		"-device", "virtio-blk-pci,drive=root,serial=root,addr=0x3",
		"-device", "virtio-serial-pci,id=serial,addr=0x4",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + escape(m.file("agent")),
		"-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=" + AgentPort,
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng,addr=0x5",
		// No boot ROM, which would only take time.
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

// Monitor returns the connection to QEMU, for commands that Machine has no method for.
func (m *Machine) Monitor() *Monitor { return m.monitor }

// Agent returns the path of the host's socket of the guest's serial port AgentPort. It accepts one connection at a time. Without a
// connection the guest reads an end of file and its output is lost.
func (m *Machine) Agent() string { return m.file("agent") }

// Console returns the output of the guest's serial console, ttyS0.
func (m *Machine) Console() string {
	log, _ := os.ReadFile(m.file("console"))
	return string(log)
}

// Ended returns a channel that is closed when the machine has ended and nothing of it can write to a disk.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// PowerOff cuts the machine's power: data that the guest has not flushed is lost. It returns when the machine has ended, and can be
// called again.
func (m *Machine) PowerOff() {
	m.kill()
	<-m.ended
}

func (m *Machine) kill() {
	m.cmd.Process.Kill() //nolint:errcheck // it may have ended
}

// Freeze stops the guest's processors, like an overloaded host.
func (m *Machine) Freeze() error { return m.execute("stop", nil, nil) }

// Thaw resumes a frozen guest.
func (m *Machine) Thaw() error { return m.execute("cont", nil, nil) }

// frozen reports whether the guest is frozen or QEMU does not answer.
func (m *Machine) frozen() bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	var status struct {
		Running bool `json:"running"`
	}
	err := m.monitor.Execute(ctx, "query-status", nil, &status)
	return err != nil || !status.Running
}

// SaveSnapshot saves the machine with its memory to the root image. The guest is paused meanwhile. It fails while the machine has a
// disk of a Storage, which QEMU cannot save.
func (m *Machine) SaveSnapshot(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), qemuTimeout)
	defer cancel()
	output, err := m.monitor.Human(ctx, "savevm "+name)
	if err == nil && output != "" {
		err = errors.New(output)
	}
	if err != nil {
		return fmt.Errorf("saving snapshot %s: %w", name, err)
	}
	return nil
}

func (m *Machine) execute(command string, args, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), qemuTimeout)
	defer cancel()
	return m.monitor.Execute(ctx, command, args, result)
}

// start starts a program with its output going to a file.
func start(run Runner, cmd *exec.Cmd, log string) error {
	if cmd.Err != nil {
		return fmt.Errorf("%w: run scripts/setup test to install it", cmd.Err)
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

// readLog returns a program's output, for an error message.
func readLog(log string) string {
	text, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// escape quotes a path for QEMU's comma-separated options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
