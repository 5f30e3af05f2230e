package mount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Finding is the result of one check.
type Finding struct {
	Check   string // what was checked, for programs: one lower-case word
	Code    string // what was found, for programs: lower-case words joined by dashes; empty if nothing is wrong
	Problem bool   // volumes cannot be served because of it, or data is at risk; false: they are not served as they should be
	Message string // a sentence for the operator, the cause first
	Remedy  string // what to do; empty if nothing is wrong
}

func passed(check, message string) []Finding { return []Finding{{Check: check, Message: message}} }

// examination is where a machine is examined.
type examination struct {
	Config
	own     string // the directory of this process in /proc
	release string // of the kernel
}

// Examine checks whether this machine has what a Host needs: programs, file systems, capabilities, processes and devices. It changes
// nothing, and needs no Host: it also works where New fails.
func Examine(ctx context.Context, cfg Config) []Finding {
	cfg.Sysfs, cfg.Dev, cfg.Proc = cmp.Or(cfg.Sysfs, "/sys"), cmp.Or(cfg.Dev, "/dev"), cmp.Or(cfg.Proc, "/proc")
	x := examination{Config: cfg, own: "/proc/self"}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		x.release = unix.ByteSliceToString(name.Release[:])
	}
	return x.run(ctx)
}

func (x examination) run(ctx context.Context) []Finding {
	return slices.Concat(examineTools(ctx), x.examineKernel(), x.examineProcesses(), x.examineDevices())
}

// packages are Debian's packages of the programs that this package runs.
func packages() map[string]string {
	all := map[string]string{"blkid": "util-linux", "wipefs": "util-linux", "e2fsck": "e2fsprogs"}
	for fstype, pkg := range map[string]string{"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"} {
		all["mkfs."+fstype] = pkg
	}
	return all
}

// examineTools runs each program once, to tell its version.
func examineTools(ctx context.Context) (found []Finding) {
	all := packages()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		bad := Finding{Check: "tools", Problem: true, Remedy: "install " + all[name] + " where blockvol runs; the managed plugin has all programs, so install that again"}
		_, err := exec.LookPath(name)
		if err != nil {
			bad.Code, bad.Message = "tool-missing", fmt.Sprintf("%s is not installed where blockvol runs: %s", name, without(name))
			found = append(found, bad)
			continue
		}
		res, err := run(ctx, name, "-V")
		if ctx.Err() != nil {
			return found
		}
		if err == nil && res.code != 0 {
			err = fmt.Errorf("it ends with code %d: %s", res.code, res.message())
		}
		if err != nil {
			bad.Code, bad.Message = "tool-broken", fmt.Sprintf("%s cannot be run (%v): %s", name, err, without(name))
			found = append(found, bad)
		}
	}
	if len(found) == 0 {
		return passed("tools", "all programs are installed: "+strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	return found
}

// without is what cannot be done without a program.
func without(name string) string {
	fstype, isMkfs := strings.CutPrefix(name, "mkfs.")
	switch {
	case isMkfs:
		return "no new volume can be formatted with " + fstype
	case name == "e2fsck":
		return "no ext4 can be checked, so none is mounted"
	}
	return "it cannot be told what is on a disk, so none is formatted"
}

// Numbers of capabilities; linux/capability.h.
const (
	capSysAdmin    = 21
	capSysResource = 24
)

func (x examination) examineKernel() []Finding {
	found := slices.Concat(x.examineCapabilities(), x.examineFileSystems())
	if fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC); err == nil {
		unix.Close(fd)
	} else if errors.Is(err, unix.ENOSYS) {
		found = append(found, Finding{
			Check: "kernel", Code: "kernel-too-old", Problem: true,
			Message: fmt.Sprintf("the kernel %s cannot mount as blockvol does: %v", x.release, err), Remedy: "use Linux 5.10 or later",
		})
	}
	if len(found) == 0 {
		return passed("kernel", fmt.Sprintf("Linux %s has the file systems %s, and blockvol its capabilities", x.release, strings.Join(FSTypes(), ", ")))
	}
	return found
}

func (x examination) examineCapabilities() (found []Finding) {
	status, err := os.ReadFile(filepath.Join(x.own, "status"))
	if err != nil {
		return nil
	}
	var effective uint64
	for line := range strings.Lines(string(status)) {
		if mask, is := strings.CutPrefix(line, "CapEff:"); is {
			effective, err = strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			if err != nil {
				return nil
			}
		}
	}
	const remedy = "run blockvol with this capability; an installed plugin has it since docker plugin install has asked for it, so install the plugin again"
	if effective&(1<<capSysAdmin) == 0 {
		found = append(found, Finding{Check: "kernel", Code: "capability-missing", Problem: true, Message: "blockvol runs without CAP_SYS_ADMIN: it can mount nothing", Remedy: remedy})
	}
	if effective&(1<<capSysResource) == 0 {
		found = append(found, Finding{Check: "kernel", Code: "capability-missing", Message: "blockvol runs without CAP_SYS_RESOURCE: an ext4 does not grow while it is mounted", Remedy: remedy})
	}
	return found
}

// examineFileSystems finds the file systems that the kernel does not have. One that is not loaded yet is loaded by the first mount.
func (x examination) examineFileSystems() (found []Finding) {
	loaded, err := os.ReadFile(filepath.Join(x.Proc, "filesystems"))
	if err != nil {
		return nil
	}
	// The host's modules, which a managed plugin may not be allowed to see.
	modules := filepath.Join(x.Proc, "1/root/lib/modules", x.release)
	loadable, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		return nil
	}
	builtin, err := os.ReadFile(filepath.Join(modules, "modules.builtin"))
	if err != nil {
		return nil
	}
	for _, fstype := range FSTypes() {
		has := slices.Contains(strings.Fields(string(loaded)), fstype)
		for _, list := range [][]byte{loadable, builtin} {
			has = has || strings.Contains(string(list), "/"+fstype+".ko")
		}
		if !has {
			found = append(found, Finding{
				Check: "kernel", Code: "filesystem-unsupported",
				Message: fmt.Sprintf("the kernel %s has neither %s nor a module for it: no volume with that file system can be mounted on this node", x.release, fstype),
				Remedy:  "install the kernel's modules, or create volumes with another fstype",
			})
		}
	}
	return found
}

// examineProcesses checks whether the mounts of all processes can be seen.
func (x examination) examineProcesses() []Finding {
	if _, err := os.ReadFile(filepath.Join(x.Proc, "1/mountinfo")); err != nil {
		return []Finding{{
			Check: "processes", Code: "processes-hidden", Problem: true,
			Message: fmt.Sprintf("the mounts of other processes cannot be seen (%v): every volume counts as in use, and none is released", err),
			Remedy:  "give blockvol the host's whole /proc, which is not mounted with hidepid",
		}}
	}
	return passed("processes", "the mounts of all processes can be seen")
}

// examineDevices checks whether the nodes of the disks are there.
func (x examination) examineDevices() (found []Finding) {
	all, err := os.ReadDir(filepath.Join(x.Sysfs, "block"))
	if err != nil {
		return []Finding{{Check: "devices", Code: "devices-unreadable", Problem: true, Message: fmt.Sprintf("the kernel's block devices cannot be listed: %v", err), Remedy: "make the host's /sys visible to blockvol"}}
	}
	for _, e := range all {
		dir := filepath.Join(x.Sysfs, "block", e.Name())
		bus, err := busOf(dir)
		sectors, sizeErr := os.ReadFile(filepath.Join(dir, "size"))
		if err != nil || sizeErr != nil || strings.TrimSpace(string(sectors)) == "0" || !slices.Contains(x.Buses, bus) {
			continue
		}
		if hidden, _ := os.ReadFile(filepath.Join(dir, "hidden")); len(hidden) > 0 && hidden[0] == '1' {
			continue
		}
		if _, err := os.Stat(filepath.Join(x.Dev, e.Name())); errors.Is(err, fs.ErrNotExist) {
			found = append(found, Finding{
				Check: "devices", Code: "device-node-missing", Problem: true,
				Message: fmt.Sprintf("the kernel has block device %s, and %s has no node for it: a volume on it cannot be mounted", e.Name(), x.Dev),
				Remedy:  "make the host's whole /dev visible to blockvol",
			})
		}
	}
	if len(found) == 0 {
		return passed("devices", "the kernel's block devices have their nodes")
	}
	return found
}

// Examine tells what is wrong with a volume's device and with the file system that is staged from it at dir; dir is empty if none is. It
// changes nothing, and returns nothing for a volume that is well.
func (h *Host) Examine(ctx context.Context, disk Device, dir string) (found []Finding) {
	add := func(code, message, remedy string) {
		found = append(found, Finding{Check: "volumes", Code: code, Problem: true, Message: message, Remedy: remedy})
	}
	const kernelLog = "look for the reason in the kernel's log (dmesg) and at the cloud's disk"
	sys := filepath.Join(h.sysfs, "block", disk.Name)
	if state := readWord(sys, "device/state"); !slices.Contains([]string{"", "running", "live"}, state) {
		add("device-offline", fmt.Sprintf("the kernel calls device %s %q: reads and writes fail", disk.Path, state), kernelLog+"; then stop the containers, so that the disk is detached and attached again")
		return found
	}
	if readWord(sys, "ro") == "1" {
		add("device-read-only", fmt.Sprintf("device %s is read-only: containers cannot write", disk.Path), kernelLog+"; then stop the containers, so that the disk is detached and attached again")
		return found
	}
	if dir == "" || ctx.Err() != nil {
		return found
	}
	if n := fsErrors(kernelNameOf(disk)); n > 0 {
		add("filesystem-errors", fmt.Sprintf("the file system on device %s has had %d errors", disk.Path, n), kernelLog+"; then stop the containers: the file system is checked at the next mount")
		return found
	}
	path, err := h.pathOf(dir)
	if err != nil {
		return found
	}
	m, err := mountAt(path)
	if err != nil || m == nil {
		return found
	}
	own, of := strings.Split(m.Options, ","), strings.Split(m.VFSOptions, ",")
	dead := slices.Contains(of, "shutdown") || slices.Contains(of, "emergency_ro")
	if dead || slices.Contains(of, "ro") && !slices.Contains(own, "ro") {
		add("filesystem-read-only", fmt.Sprintf("the file system on device %s has become read-only, as it does after an error: containers cannot write", disk.Path), kernelLog+"; then stop the containers: the file system is checked at the next mount")
	}
	return found
}

// fsErrors returns how many errors a mounted file system has counted, 0 if it does not count. Sources: Linux,
// Documentation/ABI/testing/sysfs-fs-ext4, and fs/btrfs/sysfs.c.
func fsErrors(device string) (n int64) {
	n, _ = strconv.ParseInt(readWord(filepath.Join(kernelSysfs, "fs/ext4", device), "errors_count"), 10, 64) // 0 if there is none
	of, _ := filepath.Glob(filepath.Join(kernelSysfs, "fs/btrfs/*/devices", device))
	for _, link := range of {
		stats, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(link)), "devinfo/*/error_stats"))
		for _, file := range stats {
			content, _ := os.ReadFile(file)
			for line := range strings.Lines(string(content)) {
				if kind, count, is := strings.Cut(strings.TrimSpace(line), " "); is && strings.HasSuffix(kind, "_errs") {
					errs, _ := strconv.ParseInt(count, 10, 64)
					n += errs
				}
			}
		}
	}
	return n
}

func readWord(dir, file string) string {
	content, _ := os.ReadFile(filepath.Join(dir, file)) // a file that is not there says nothing
	return strings.TrimSpace(string(content))
}

// Mounted returns the directories under Config.Published at which something is mounted, sorted.
func (h *Host) Mounted() ([]string, error) {
	all, err := mountsUnder(h.published)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range all {
		if dir, err := filepath.Rel(h.published, m.Mountpoint); err == nil && dir != "." && !strings.Contains(dir, "/") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs, nil
}
