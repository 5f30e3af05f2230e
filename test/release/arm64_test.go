package release_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The machine is emulated: an arm64 kernel of Debian's, with the plugin's root file system as its own. (An emulator of programs alone,
// such as qemu-user, does not have the system calls that mount a file system.)
func TestTheArm64PluginOnAMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("it gets a kernel and emulates a machine")
	}
	run(t, root, "scripts/setup arm64")
	dir := t.TempDir()
	run(t, root, `scripts/plugin arm64 "$1/plugin"; CGO_ENABLED=0 GOARCH=arm64 go test -c -o "$1/plugin/rootfs/test" ./test/release`, dir)
	run(t, dir, `mmdebstrap --quiet --variant=extract --architectures=arm64 --include=linux-image-cloud-arm64,busybox-static bookworm tree >log 2>&1 || { cat log; exit 1; }
		cp tree/boot/vmlinuz-* kernel
		cp tree/bin/busybox plugin/rootfs/
		find tree/lib/modules -name loop.ko -exec cp {} plugin/rootfs/ \;`)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "plugin/rootfs/init"), []byte(`#!/busybox sh
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs devtmpfs /dev
/busybox mount -t tmpfs tmpfs /tmp
/busybox insmod /loop.ko
/busybox uname -m
export PATH=/usr/sbin:/usr/bin `+programVariable+`=/usr/bin/blockvol
/test -test.v -test.run '^TestAVolumeOutlivesItsDaemon$' && echo "the test has passed"
/busybox poweroff -f
`), 0o755))
	run(t, dir, `cd plugin/rootfs; find . | cpio --quiet --create --format=newc --owner=0:0 >../../initrd`)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	machine := exec.CommandContext(ctx, "qemu-system-aarch64", "-machine", "virt", "-accel", "tcg", "-cpu", "cortex-a57", "-smp", "2", "-m", "768", "-nodefaults",
		"-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", filepath.Join(dir, "kernel"), "-initrd", filepath.Join(dir, "initrd"), "-append", "console=ttyAMA0 quiet panic=-1")
	console, err := machine.CombinedOutput()
	t.Logf("%s", console)
	require.NoError(t, err)
	assert.Contains(t, string(console), "aarch64")
	assert.Contains(t, string(console), "the test has passed")
}
