package mount

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// These are what real engines make.
const (
	outer = "3f2a5d0c1b7e4f6a8c9d0e1f2a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d"
	inner = "b81d0e6f5a4c3b2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d"
)

func TestTheContainerOfAProcessIsInItsControlGroups(t *testing.T) {
	for name, c := range map[string]struct{ cgroups, own, want string }{
		"version 1, cgroupfs":                         {"12:memory:/docker/" + outer + "\n11:cpu,cpuacct:/docker/" + outer + "\n1:name=systemd:/docker/" + outer + "\n0::/system.slice/containerd.service\n", "", outer},
		"version 1, systemd":                          {"12:memory:/system.slice/docker-" + outer + ".scope\n0::/\n", "", outer},
		"version 1, some hierarchies without a group": {"12:rdma:/\n11:misc:/\n10:pids:/docker/" + outer + "\n", "", outer},
		"version 2, cgroupfs":                         {"0::/docker/" + outer + "\n", "", outer},
		"version 2, systemd":                          {"0::/system.slice/docker-" + outer + ".scope\n", "", outer},
		"version 2, a parent group":                   {"0::/my.slice/my-databases.slice/docker-" + outer + ".scope\n", "", outer},
		"version 2, a rootless engine":                {"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + outer + ".scope\n", "", outer},
		"version 2, a group inside the container":     {"0::/system.slice/docker-" + outer + ".scope/init\n", "", outer},
		"version 2, from another cgroup namespace":    {"0::/../" + outer + "\n", "", outer},
		"Podman":                     {"0::/machine.slice/libpod-" + outer + ".scope/container\n", "", outer},
		"Kubernetes":                 {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0ea2bb3a_0cf1_4b4a_9d42_8f8a6c1d2e3f.slice/cri-containerd-" + outer + ".scope\n", "", outer},
		"a container in a container": {"0::/docker/" + outer + "/docker/" + inner + "\n", "", outer},
		"a container in a container, with the engine": {"0::/docker/" + outer + "/docker/" + inner + "\n", "0::/docker/" + outer + "/" + strings.Repeat("c", 64) + "\n", inner},
		"a service beside the engine in a container":  {"0::/docker/" + outer + "/init\n", "0::/docker/" + outer + "/docker/" + strings.Repeat("c", 64) + "\n", ""},
		"a service":                  {"0::/system.slice/ssh.service\n", "", ""},
		"a shell":                    {"0::/user.slice/user-0.slice/session-4.scope\n", "", ""},
		"the root group":             {"0::/\n", "", ""},
		"a group with longer digits": {"0::/a" + outer + "\n", "", ""},
		"a process that has ended":   {"", "", ""},
		"version 1, a build, whose ids are others (as BuildKit makes them)": {"5:pids:/docker/buildkit/u8m6hqjzf5n0v1a7v3p2o4t9s\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, containerOf([]byte(c.cgroups), []byte(c.own)))
		})
	}
}

// recorded is a /proc of processes that all have mount tables.
type recorded struct {
	t   *testing.T
	dir string
}

func record(t *testing.T, h *Host) recorded {
	t.Helper()
	h.proc = t.TempDir()
	r := recorded{t, h.proc}
	r.process(1, 10, "systemd", "0::/init.scope", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
	return r
}

// process adds one that began at that tick.
func (r recorded) process(pid, began int, command, cgroups, mountinfo string) {
	r.t.Helper()
	dir := filepath.Join(r.dir, strconv.Itoa(pid))
	require.NoError(r.t, os.MkdirAll(dir, 0o700))
	for name, content := range map[string]string{
		"mountinfo": mountinfo,
		"cgroup":    cgroups + "\n",
		"stat":      fmt.Sprintf("%d (%s) S 1%s %d 0 0\n", pid, command, strings.Repeat(" 0", 17), began),
	} {
		require.NoError(r.t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
}

// containerMounts is the mount table of a container that has the disk of that number.
func containerMounts(first int, devno string) string {
	return fmt.Sprintf("%d 1 0:40 / / rw - overlay overlay rw\n%d %d %s /data /var/lib/db rw - ext4 /dev/sdb rw\n", first, first+1, first, devno)
}

func TestUsersAreToldByContainerOrByProcess(t *testing.T) {
	h := newHost(t)
	disk := Device{Name: "sdz", Path: "/dev/sdz", Major: 4000, Minor: 7}
	r := record(t, h)
	users := func() Users {
		users, err := h.Users(context.Background(), disk)
		require.NoError(t, err)
		return users
	}

	// Processes have entered its namespace from the host, and from another container, before the first of its own is read.
	table := containerMounts(500, "4000:7")
	r.process(30, 900, "nsenter", "0::/user.slice/user-0.slice/session-4.scope", table)
	r.process(31, 901, "sh", "0::/docker/"+inner, table)
	r.process(40, 100, "post) (gres", "0::/docker/"+outer, table)
	r.process(41, 101, "postgres", "0::/docker/"+outer, table)
	// Its worker sees another root, and so another table.
	r.process(42, 102, "worker", "0::/docker/"+outer, "501 500 4000:7 /data /var/lib/db rw - ext4 /dev/sdb rw\n")
	// Others have other disks, or none.
	r.process(50, 100, "redis", "0::/docker/"+inner, containerMounts(600, "4000:8"))
	one := User{Container: outer, PID: 40, Command: "post) (gres", Path: "/var/lib/db"}
	assert.Equal(t, Users{one}, users())
	assert.Equal(t, "container 3f2a5d0c1b7e", users().String())

	r.process(60, 200, "backup", "0::/system.slice/backup.service", "700 1 8:1 / / rw - ext4 /dev/sda1 rw\n701 700 4000:7 / /mnt rw - ext4 /dev/sdb rw\n")
	r.process(61, 201, "gzip", "0::/system.slice/backup.service", "700 1 8:1 / / rw - ext4 /dev/sda1 rw\n701 700 4000:7 / /mnt rw - ext4 /dev/sdb rw\n")
	other := User{PID: 60, Command: "backup", Path: "/mnt"}
	assert.Equal(t, Users{other, one}, users())
	assert.Equal(t, "process 60 (backup) and container 3f2a5d0c1b7e", users().String())

	r.process(1, 10, "systemd", "0::/init.scope", "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 4000:7 / /srv/db rw - ext4 /dev/sdb rw\n")
	assert.Equal(t, "the host itself (at /srv/db) and process 60 (backup) and container 3f2a5d0c1b7e", users().String())

	r.process(70, 300, "redis", "0::/docker/"+inner, containerMounts(800, "4000:7"))
	assert.Equal(t, "the host itself (at /srv/db) and process 60 (backup) and container 3f2a5d0c1b7e and 1 more", users().String())
}

func TestAUserThatCannotBeIdentifiedIsOneAllTheSame(t *testing.T) {
	h := newHost(t)
	disk := Device{Name: "sdz", Path: "/dev/sdz", Major: 4000, Minor: 7}
	r := record(t, h)
	r.process(40, 100, "postgres", "0::/docker/"+outer, containerMounts(500, "4000:7"))
	require.NoError(t, os.Remove(filepath.Join(h.proc, "40", "stat"))) // it has ended since
	users, err := h.Users(context.Background(), disk)
	require.NoError(t, err)
	assert.Equal(t, Users{{Path: "/var/lib/db"}}, users)
	assert.Equal(t, "a process that has ended meanwhile", users.String())

	require.NoError(t, os.RemoveAll(filepath.Join(h.proc, "1"))) // hidden
	require.NoError(t, os.RemoveAll(filepath.Join(h.proc, "40")))
	users, err = h.Users(context.Background(), disk)
	require.NoError(t, err)
	assert.Equal(t, Users{{}}, users)
	assert.Equal(t, "something that cannot be identified", users.String())
}

// The oldest process of a namespace tells whose it is, whoever has entered it since.
func TestTheUserOfARealNamespaceIsItsOldestProcess(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	d := formatted(t, h, "ext4")
	path := stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutData})
	users := func() Users {
		users, err := h.Users(ctx, d.Device)
		require.NoError(t, err)
		return users
	}
	require.Empty(t, users())
	t.Setenv("VOL", path)
	t.Setenv("AT", t.TempDir())
	end := inNewNamespace(t, "slave", `mount --bind "$VOL" "$AT"; mount --make-private "$AT"; tail -f /dev/null & sleep 0`)
	all := users()
	require.Len(t, all, 1, "the processes of one namespace are one user")
	assert.Equal(t, User{PID: all[0].PID, Command: "sleep", Path: os.Getenv("AT")}, all[0])
	assert.Equal(t, fmt.Sprintf("process %d (sleep)", all[0].PID), all.String())
	end()
	assert.Empty(t, users())
	unstage(t, h, d, "vol")
}

// Reads and writes are told apart: what blockvol's own looks may read is no sign of a user.
func TestActivityOfADisk(t *testing.T) {
	h := newHost(t)
	d := newDisk(t, 16<<20)
	before, err := h.Activity(d.Device)
	require.NoError(t, err)
	f, err := os.OpenFile(d.Path, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0)
	require.NoError(t, err)
	defer f.Close()
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(block)) }()
	_, err = f.ReadAt(block, 0)
	require.NoError(t, err)
	read, err := h.Activity(d.Device)
	require.NoError(t, err)
	assert.Greater(t, read.Reads, before.Reads)
	assert.Equal(t, before.Writes, read.Writes)
	_, err = f.WriteAt(block, 0)
	require.NoError(t, err)
	written, err := h.Activity(d.Device)
	require.NoError(t, err)
	assert.Greater(t, written.Writes, read.Writes)
	_, err = h.Activity(Device{Path: "/dev/no-such"})
	require.ErrorIs(t, err, ErrNoDevice)
}
