package qemu_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud/image"
	"github.com/blockvol/blockvol/test/cluster/qemu"
)

// ready is the name of the snapshot of a booted guest.
const ready = "ready"

// modules are the kernel modules of the guest, in load order.
var modules = []string{
	"virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci",
	"block/virtio_blk", "char/virtio_console", "scsi/scsi_common", "scsi/scsi_mod", "scsi/sd_mod", "scsi/virtio_scsi",
}

// programs are the programs built for the guest.
var programs = map[string]string{"agent": "../agent/cmd/agent", "device": "./testdata/device"}

// initScript is the guest's only program. It runs the lines that arrive at the agent's port.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for module in /modules/*; do insmod $module; done
# shown prints what all disks but the root bear.
shown() {
	for disk in /sys/block/*; do
		[ $disk = /sys/block/vda ] && continue
		echo $(cat $disk/device/serial || tail -c +5 $disk/device/vpd_pg80 || cat $disk/serial)
	done 2>/dev/null
}
until port=$(grep -l blockvol.agent /sys/class/virtio-ports/*/name 2>/dev/null); do sleep 0.1; done
exec 3<>/dev/$(basename ${port%/name})
echo the agent listens
while :; do
	read -r id line <&3 || { sleep 0.1; continue; } # nobody is connected
	(eval "$line") >/out 2>&1 3<&- </dev/null
	status=$?
	{ cat /out; echo; echo "--end $id $status"; } >&3
done
`

// processes starts programs from a thread that lives as long as the test, so that they end with it.
var processes = func() qemu.Runner {
	type order struct {
		cmd  *exec.Cmd
		done chan error
	}
	orders := make(chan order)
	go func() {
		runtime.LockOSThread()
		for o := range orders {
			o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
			o.done <- o.cmd.Start()
		}
	}()
	return qemu.RunnerFunc(func(cmd *exec.Cmd) error {
		o := order{cmd, make(chan error)}
		orders <- o
		return <-o.done
	})
}()

var shared string // directory shared by all tests

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if shared, err = os.MkdirTemp("", "qemu-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { os.RemoveAll(shared) }() //nolint:errcheck // leftovers are harmless
		return m.Run()
	}())
}

// golden makes what all machines share: kernel, initrd, and a root image with the snapshot ready.
var golden = sync.OnceValues(func() (cfg qemu.Config, err error) {
	kernel, err := qemu.FetchKernel(context.Background())
	if err != nil {
		return cfg, err
	}
	cfg = qemu.Config{
		Dir: filepath.Join(shared, "gold"), Kernel: kernel.Image, Initrd: filepath.Join(shared, "initrd"),
		Append: "console=ttyS0 quiet panic=-1", Root: filepath.Join(shared, "root.qcow2"), Memory: 128, Ports: 32,
	}
	tree := filepath.Join(shared, "tree")
	for _, dir := range []string{"bin", "dev", "proc", "sys", "mnt", "modules"} {
		if err := os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return cfg, err
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "init"), []byte(initScript), 0o755); err != nil {
		return cfg, err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return cfg, fmt.Errorf("%w: run scripts/setup test to install it", err)
	}
	copies := map[string]string{busybox: "bin/busybox"}
	for i, module := range modules {
		copies[filepath.Join(kernel.Modules, "kernel/drivers", module+".ko")] = fmt.Sprintf("modules/%02d", i)
	}
	for from, to := range copies {
		content, err := os.ReadFile(from)
		if err != nil {
			return cfg, err
		}
		if err := os.WriteFile(filepath.Join(tree, to), content, 0o755); err != nil {
			return cfg, err
		}
	}
	for program, source := range programs {
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(tree, "bin", program), source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return cfg, fmt.Errorf("building %s: %w: %s", source, err, out)
		}
	}
	for _, command := range []string{
		"cd " + tree + " && find . | cpio --quiet -o -H newc >" + cfg.Initrd,
		"qemu-img create -q -f qcow2 " + cfg.Root + " 64M",
	} {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			return cfg, fmt.Errorf("%s: %w: %s (scripts/setup test installs missing programs)", command, err, out)
		}
	}

	m, err := qemu.Start(processes, cfg)
	if err != nil {
		return cfg, err
	}
	defer m.PowerOff()
	g := &guest{Machine: m}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := g.command(ctx, "true"); err != nil {
		return cfg, fmt.Errorf("the guest does not boot: %w: %s", err, m.Console())
	}
	return cfg, m.SaveSnapshot(ready)
})

// guest is a machine whose kernel answers commands.
type guest struct {
	*qemu.Machine
	t   *testing.T
	cfg qemu.Config

	mu sync.Mutex // the port serves one command at a time
}

var machines atomic.Int32

// newGuest returns a running guest.
func newGuest(t *testing.T) *guest {
	t.Helper()
	cfg, err := golden()
	require.NoError(t, err)
	root := filepath.Join(t.TempDir(), "root.qcow2")
	require.NoError(t, image.Copy(cfg.Root, root))
	cfg.Root, cfg.Snapshot = root, ready
	cfg.Dir = filepath.Join(shared, fmt.Sprintf("m%d", machines.Add(1)))
	return start(t, cfg)
}

func start(t *testing.T, cfg qemu.Config) *guest {
	t.Helper()
	m, err := qemu.Start(processes, cfg)
	require.NoError(t, err)
	g := &guest{Machine: m, t: t, cfg: cfg}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", cfg.Dir, m.Console())
		}
		m.PowerOff()
	})
	return g
}

var commands atomic.Int64

// command runs a line in the guest and returns its output.
func (g *guest) command(ctx context.Context, line string) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", g.Agent())
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // all has been read
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	id := commands.Add(1)
	if _, err := fmt.Fprintf(conn, "%d %s\n", id, line); err != nil {
		return "", err
	}
	var printed strings.Builder
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var ended int64
		var status int
		if n, _ := fmt.Sscanf(lines.Text(), "--end %d %d", &ended, &status); n < 2 {
			printed.WriteString(lines.Text() + "\n")
			continue
		}
		if ended < id { // answer to an earlier command that timed out
			printed.Reset()
			continue
		}
		out := strings.TrimSpace(printed.String())
		if status != 0 {
			return out, fmt.Errorf("%s: status %d: %s", line, status, out)
		}
		return out, nil
	}
	return "", fmt.Errorf("%s: no answer: %w", line, lines.Err())
}

// try runs a line that may fail.
func (g *guest) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	return g.command(ctx, line)
}

// run runs a line.
func (g *guest) run(format string, args ...any) string {
	g.t.Helper()
	out, err := g.try(fmt.Sprintf(format, args...))
	require.NoError(g.t, err)
	return out
}

// questions returns the functions by which a Storage queries the guest.
func (g *guest) questions() qemu.Guest {
	state := func(ctx context.Context, serial string) (string, error) {
		return g.command(ctx, "agent disk "+serial)
	}
	return qemu.Guest{
		Busy: func(ctx context.Context, serial string) (bool, error) {
			is, err := state(ctx, serial)
			return is == "held", err
		},
		Present: func(ctx context.Context, serial string) (bool, error) {
			is, err := state(ctx, serial)
			return is != "absent", err
		},
	}
}
