package release_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/namespace"
)

// machine is a Debian that systemd runs, in namespaces: its kernel is this machine's.
type machine struct {
	t          *testing.T
	root       string // its root directory
	namespaces *namespace.Set
	init       *namespace.Process // its parent; it ends with systemd
}

// newMachine makes a Debian with an engine, in which a package was installed with what it depends on while systemd did not run.
func newMachine(t *testing.T, suite, deb string) *machine {
	t.Helper()
	dir := namespace.Dir(t)
	m := &machine{t: t, root: filepath.Join(dir, "root")}
	run(t, dir, `mmdebstrap --quiet --variant=minbase --include="$1" "$2" "$3" "$4" root >log 2>&1 || { cat log; exit 1; }`,
		"systemd-sysv,dbus,docker.io,iptables,busybox-static"+map[string]string{"trixie": ",docker-cli"}[suite],
		"--customize-hook=copy-in '"+deb+"' /root",                                       //nolint:misspell // mmdebstrap's option
		`--customize-hook=chroot "$1" sh -c "apt-get install --yes /root/blockvol*.deb"`, //nolint:misspell // mmdebstrap's option
		suite)
	var err error
	m.namespaces, err = namespace.New(dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.namespaces.Close()) })
	m.boot()
	return m
}

// boot starts systemd and waits until all units have started.
func (m *machine) boot() {
	m.t.Helper()
	const enter = `
		cd "$1"
		mount --bind . .
		cd "$1"
		mount -t proc proc proc
		mount -t sysfs -o ro sysfs sys
		mount -t cgroup2 cgroup2 sys/fs/cgroup
		mount -t devtmpfs devtmpfs dev
		mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
		mount -t tmpfs -o mode=0755 tmpfs run
		mkdir run/old
		pivot_root . run/old
		umount --lazy /run/old
		exec env --ignore-environment container=namespaces PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --log-target=console </dev/null`
	cmd := exec.Command("unshare", "--mount", "--propagation=private", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child", "sh", "-ec", enter, "sh", m.root)
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	var err error
	m.init, err = m.namespaces.Start(cmd)
	require.NoError(m.t, err)
	m.eventually("all units have started", func() error {
		if m.init.Ended() {
			m.t.Fatalf("systemd has ended: %v\n%s", m.init.Err, console.String())
		}
		// Units for hardware that a namespace does not have may fail.
		out, err := m.try("systemctl is-system-running --wait || systemctl --failed --no-legend; systemctl is-active docker blockvol")
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		} else if strings.Contains(out, "failed") {
			m.t.Log(out)
		}
		return err
	})
}

// off runs a command that stops the machine, and waits for its end.
func (m *machine) off(command string) {
	m.t.Helper()
	_, _ = m.try(command) // it ends with the machine
	select {
	case <-m.init.Done:
	case <-time.After(2 * time.Minute):
		m.t.Fatal("the machine does not stop")
	}
}

func (m *machine) try(command string) (string, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", m.init.PID))
	if err != nil {
		return "", err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		return "", fmt.Errorf("systemd does not run: %w", err)
	}
	out, err := exec.Command("nsenter", "--all", "--target", strconv.Itoa(pid), "--", "sh", "-ec", command).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// run runs a command in the machine and returns its output.
func (m *machine) run(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	require.NoError(m.t, err, "%s: %s", command, out)
	return out
}

func (m *machine) eventually(what string, check func() error) {
	m.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		require.False(m.t, time.Now().After(deadline), "%s: %v", what, err)
		time.Sleep(50 * time.Millisecond)
	}
}

// written returns how often the container has written, once that is more often than before.
func (m *machine) written(before int) (count int) {
	m.t.Helper()
	m.eventually("the container writes", func() error {
		out, err := m.try("docker exec writer wc -l /data/log")
		if err == nil {
			count, err = strconv.Atoi(strings.Fields(out)[0])
		}
		if err == nil && count <= before {
			err = errors.New("no new line")
		}
		return err
	})
	return count
}

const startWriter = `
		docker run --detach --restart=always --network=none --name=writer --volume=data:/data busybox \
			sh -c 'trap "exit 0" TERM; while echo line; do sleep 0.05; done >>/data/log; echo failed; sleep 1000'`

func TestTheDebianPackage(t *testing.T) {
	if testing.Short() {
		t.Skip("it gets a Debian with systemd and an engine")
	}
	prepare(t)
	first, second := packageOf(t, "1.0-rc1"), packageOf(t, "1.0")
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) { testPackage(t, suite, first, second) })
	}
}

func testPackage(t *testing.T, suite, first, second string) {
	m := newMachine(t, suite, first)
	images := filepath.Join(m.root, "var/lib/blockvol/volumes")
	loops := func() []string {
		attached, err := namespace.Loops(images)
		require.NoError(t, err)
		return attached
	}

	m.run("systemctl is-active blockvol")
	assert.Empty(t, m.run("systemd-analyze verify blockvol.service")) //nolint:misspell // its name
	assert.Contains(t, m.run("blockvol version"), "1.0-rc1")
	m.run(`
		mkdir -p /tmp/image/bin
		cp /bin/busybox /tmp/image/bin
		for applet in sh sleep wc; do ln -s busybox /tmp/image/bin/$applet; done
		tar --create --directory /tmp/image . | docker import - busybox
		docker volume create --driver blockvol --opt size=64MiB data` + startWriter)
	lines := m.written(0)

	// The administrator's settings and the running containers outlive an upgrade.
	m.run("echo LOG_LEVEL=debug >>/etc/default/blockvol")
	run(t, root, `cp "$1" "$2"`, second, filepath.Join(m.root, "root"))
	m.run("cd /root\n" + strings.Join(commands(t, "apt-get ", "systemctl ", "blockvol "), "\n"))
	lines = m.written(lines)
	assert.Contains(t, m.run("blockvol version"), "blockvol 1.0 (")
	assert.Contains(t, m.run("blockvol status"), "1.0")
	assert.Contains(t, m.run("journalctl --no-pager --unit=blockvol"), "level=debug")
	assert.Contains(t, m.run("blockvol ls"), "mounted")

	// A daemon that dies is started again.
	m.run("systemctl kill --signal=KILL blockvol")
	m.eventually("systemd starts it again", func() error {
		out, err := m.try("systemctl show --property=NRestarts blockvol; blockvol ls")
		if err == nil && (!strings.Contains(out, "NRestarts=1") || !strings.Contains(out, "mounted")) {
			err = errors.New(out)
		}
		return err
	})
	lines = m.written(lines)

	// It stops after the engine and starts before it: volumes are released before a reboot and are there after it.
	require.Len(t, loops(), 1)
	m.off("systemctl reboot")
	assert.Empty(t, loops(), "the disk was released")
	m.boot()
	lines = m.written(lines)
	assert.Empty(t, m.run("docker logs writer"), "no write has failed")

	// The service stays disabled if the administrator wants it so.
	m.run("docker rm --force writer; systemctl disable --now blockvol; dpkg --install /root/blockvol_1.0_*.deb")
	out, err := m.try("systemctl is-active blockvol")
	require.Error(t, err, out)
	m.run("systemctl enable --now blockvol" + startWriter)
	lines = m.written(lines)

	// Removal keeps settings and data, a purge keeps data. The container writes on.
	m.run("dpkg --remove blockvol; test -e /etc/default/blockvol; test ! -e /usr/bin/blockvol")
	out, err = m.try("systemctl is-active blockvol")
	require.Error(t, err, out)
	assert.Contains(t, m.run("dpkg --purge blockvol; test ! -e /etc/default/blockvol"), "are kept in /var/lib/blockvol")
	assert.Empty(t, m.run("{ systemctl list-unit-files --no-legend 'blockvol*'; ls -R /etc/systemd/system | grep blockvol; } || true"))
	lines = m.written(lines)
	m.run("dpkg --install /root/blockvol_1.0_*.deb")
	lines = m.written(lines)
	assert.Empty(t, m.run("docker logs writer; docker rm --force writer >/dev/null"), "no write has failed")
	out = m.run("docker run --rm --network=none --volume=data:/data busybox wc -l /data/log")
	kept, err := strconv.Atoi(strings.Fields(out)[0])
	require.NoError(t, err)
	assert.GreaterOrEqual(t, kept, lines)
	m.off("systemctl poweroff")
	assert.Empty(t, loops())
}

// packageOf returns a Debian package of a version.
func packageOf(t *testing.T, version string) (deb string) {
	t.Helper()
	release := t.TempDir()
	run(t, root, `ARCHS="$(dpkg --print-architecture)" VERSION="$1" scripts/release "$2"`, version, release)
	return glob(t, release, "*.deb")[0]
}
