package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Layouts of a volume: what of its file system a container sees. A volume's layout is decided once and never changes.
const (
	LayoutData = "data" // the directory "data" in it, so that a new volume is empty: no lost+found
	LayoutRoot = "root" // its root, whatever is there: a disk from elsewhere
)

// StageSpec is how a volume is to be mounted.
type StageSpec struct {
	FSType       string   // one of FSTypes; what the device must hold
	Layout       string   // LayoutData or LayoutRoot
	MountOptions []string // one per element; CheckOptions accepts them, or did when the volume was made

	// UID, GID and Mode are given to the directory of LayoutData when it is made, and never again. Default root, 0755.
	UID, GID *int
	Mode     *os.FileMode

	// Warn, if set, is told of what went wrong without being in the way of the mount: a file system that could not be
	// grown to its device. If it is not set, that is an error.
	Warn func(error)
}

// Stage shows the device's file system at the returned path, which is dir under Config.Published. ext4 is checked by
// e2fsck first; xfs and btrfs repair themselves as they are mounted. A file system smaller than its device is grown. With
// the mount option "ro" nothing is checked, grown or made.
//
// It answers when the kernel's mount table shows the file system of that device at the path, on top. What is mounted so
// already stays as it is, whatever the options. On error nothing stays mounted.
//
// It can wait for the disk inside the kernel, where no context reaches; ctx ends the programs and the waiting for others.
//
// Errors: ErrBlank, ErrWrongFS, ErrWrongDevice, ErrNoDevice, ErrDamaged, ErrBusy, ErrForeignLayout, ErrOccupied,
// ErrUnreadable, ErrNoTool, ErrInvalid.
func (h *Host) Stage(ctx context.Context, disk Device, dir string, spec StageSpec) (path string, err error) {
	path, err = h.pathOf(dir)
	if err != nil {
		return "", err
	}
	if spec.Layout != LayoutData && spec.Layout != LayoutRoot {
		return "", fmt.Errorf("%w: layout %q is not one of %s, %s", ErrInvalid, spec.Layout, LayoutData, LayoutRoot)
	}
	if err := checkMountOptions(spec.FSType, spec.MountOptions); err != nil {
		return "", err
	}
	release, err := h.claimDevice(ctx, disk)
	if err != nil {
		return "", err
	}
	defer release()

	f, err := h.open(disk, os.O_RDONLY) // open until it is mounted, so that the name stays this disk's
	if err != nil {
		return "", err
	}
	defer f.Close()
	top, device, err := h.openTop(disk)
	if err != nil {
		return "", err
	}
	defer device.Close()
	if done, err := h.alreadyAt(path, top, spec); done || err != nil {
		return path, err
	}
	options := parseOptions(spec.FSType, spec.MountOptions)
	if err := h.checkBeforeMount(ctx, top, spec.FSType, options.readOnly()); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("device %s is not mounted: %w", top.Path, context.Cause(ctx))
	}
	m, err := mountDetached(top, spec.FSType, options)
	if err != nil {
		return "", err
	}
	defer m.Close() // what is attached nowhere by then is unmounted with it
	shown, err := h.prepare(m, device, top, dir, spec, options.readOnly())
	if err != nil {
		return "", err
	}
	defer shown.Close()
	if err := attachMount(shown, path); err != nil {
		return "", fmt.Errorf("the file system of device %s cannot be staged: %w", top.Path, err)
	}
	if done, err := h.alreadyAt(path, top, spec); !done {
		if err == nil {
			err = fmt.Errorf("device %s was mounted at %s but is not seen there", top.Path, path)
		}
		shown.Close() // open files keep a mount busy
		m.Close()
		return "", errors.Join(err, h.unmountAt(path))
	}
	return path, nil
}

// checkBeforeMount makes sure that a device holds the file system, and that it is consistent. If the kernel has it mounted
// already, for a container that is still there, it is mounted once more without a check, which would destroy it.
func (h *Host) checkBeforeMount(ctx context.Context, top Device, fstype string, readOnly bool) error {
	held, err := h.kernelHolds(top)
	if err != nil || held {
		return err
	}
	if err := mustHold(ctx, top, fstype); err != nil {
		return err
	}
	if readOnly {
		return nil
	}
	return check(ctx, top, fstype)
}

// attachMount attaches a mount that is attached nowhere at a directory, which it makes.
func attachMount(m *os.File, path string) error {
	if err := makeBare(path); err != nil {
		return err
	}
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("the kernel refuses the mount at %s: %w", path, err), removeBare(path))
	}
	return nil
}

// alreadyAt tells whether the volume is staged at the path. Errors: ErrOccupied for another mount.
func (h *Host) alreadyAt(path string, top Device, spec StageSpec) (bool, error) {
	m, err := mountAt(path)
	if err != nil || m == nil {
		return false, err
	}
	root := "/"
	if spec.Layout == LayoutData {
		root = "/" + dataDir
	}
	if !isOn(m, top) || m.Root != root {
		return false, fmt.Errorf("%w: %s of %s (%s) is mounted at %s, where %s of device %s is to be; unmount it first", ErrOccupied, m.Root, m.Source, m.FSType, path, root, top.Path)
	}
	return true, nil
}

// prepare grows and lays out a file system that hangs nowhere yet, and returns the mount that containers are to see.
func (h *Host) prepare(m, device *os.File, dev Device, dir string, spec StageSpec, readOnly bool) (*os.File, error) {
	root, err := openDir(m, ".")
	if err != nil {
		return nil, fmt.Errorf("the file system of device %s cannot be opened: %w", dev.Path, err)
	}
	defer root.Close()
	if err := mustBeOn(root, dev, spec.FSType); err != nil {
		return nil, err
	}
	if !readOnly {
		if _, err := grow(root, device, spec.FSType); err != nil {
			if spec.Warn == nil {
				return nil, err
			}
			spec.Warn(err)
		}
	}
	if spec.Layout == LayoutRoot {
		fd, err := unix.FcntlInt(m.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), dir), nil
	}
	if err := ensureData(root, dev, spec, readOnly); err != nil {
		return nil, err
	}
	shown, err := cloneDir(m, dataDir)
	if errors.Is(err, unix.EINVAL) || h.cloneAlwaysAtPath {
		if err == nil {
			shown.Close()
		}
		shown, err = h.cloneAtPath(m, root, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("directory %q of device %s cannot be shown by itself: %w", dataDir, dev.Path, err)
	}
	return shown, nil
}

// mountDetached mounts a file system nowhere. It lives as long as the returned file, or a mount made of it.
func mountDetached(dev Device, fstype string, options parsedOptions) (*os.File, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%w: the kernel of this node has no %s, which device %s holds", ErrNoTool, fstype, dev.Path)
	}
	if err != nil {
		return nil, fmt.Errorf("file systems cannot be mounted here (fsopen: %w); CAP_SYS_ADMIN and Linux 5.10 are needed", err)
	}
	fsContext := os.NewFile(uintptr(fd), "fsopen")
	defer fsContext.Close()
	for _, o := range append([]string{"source=" + dev.Path}, options.flags...) {
		key, value, hasValue := strings.Cut(o, "=")
		if hasValue {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, key)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: the kernel refuses mount option %q of %s for device %s%s: %w", ErrInvalid, o, fstype, dev.Path, kernelWords(fd), err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		var kind error
		var advice string
		switch {
		case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
			kind, advice = ErrDamaged, fmt.Sprintf("; repair it by hand (%s) or restore a snapshot", repairer[fstype])
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
			kind, advice = ErrBusy, "; something on this node holds the device, or a file system of the same uuid is mounted"
		case errors.Is(err, unix.EIO):
			kind = ErrUnreadable
		case errors.Is(err, unix.EINVAL): // a feature that this kernel lacks, or mount options that exclude each other
			kind = ErrInvalid
		default:
			return nil, fmt.Errorf("the %s on device %s cannot be mounted%s: %w", fstype, dev.Path, kernelWords(fd), err)
		}
		return nil, fmt.Errorf("%w: the %s on device %s cannot be mounted%s: %w%s", kind, fstype, dev.Path, kernelWords(fd), err, advice)
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, options.attrs)
	if err != nil {
		return nil, fmt.Errorf("the %s on device %s cannot be mounted%s: %w", fstype, dev.Path, kernelWords(fd), err)
	}
	return os.NewFile(uintptr(mfd), dev.Path), nil
}

var repairer = map[string]string{"ext4": "e2fsck -f", "xfs": "xfs_repair", "btrfs": "btrfs check"}

// kernelWords returns what the kernel said about a file system context, in parentheses, or "".
func kernelWords(fd int) string {
	var said []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			break
		}
		// Each message begins with its level: "e ext4: Unknown parameter".
		line := strings.TrimSpace(string(buf[:n]))
		if len(line) > 2 && line[1] == ' ' {
			line = line[2:]
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return ""
	}
	return " (" + strings.Join(said, "; ") + ")"
}

// cloneDir makes a mount of a directory of a mount.
func cloneDir(m *os.File, name string) (*os.File, error) {
	fd, err := unix.OpenTree(int(m.Fd()), name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// cloneAtPath does for kernels before 6.15 what cloneDir does for later ones: the mount hangs in the scratch directory
// just while the directory is cloned out of it. root, open on the mount, is closed.
func (h *Host) cloneAtPath(m, root *os.File, name string) (shown *os.File, err error) {
	if err := h.prepareScratch(); err != nil {
		return nil, err
	}
	at := filepath.Join(h.scratch, name)
	if err := os.Mkdir(at, 0o700); errors.Is(err, fs.ErrExist) {
		_ = unmountSoon(at) // left by a call that could not unmount it
	} else if err != nil {
		return nil, err
	}
	defer func() {
		if e := unix.Rmdir(at); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", at, e))
		}
	}()
	if err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		shown, err = cloneDir(dir, dataDir)
		dir.Close()
	}
	root.Close() // open files keep a mount busy
	m.Close()
	if e := unmountSoon(at); e != nil {
		if shown != nil {
			shown.Close()
		}
		return nil, errors.Join(err, fmt.Errorf("scratch directory %s cannot be unmounted: %w", at, e))
	}
	return shown, err
}

// makeBare makes the directory that the volume is mounted on: empty, and closed to everyone but root, so that whoever gets
// at it without the volume sees nothing and leaves nothing. Errors: ErrOccupied.
func makeBare(path string) error {
	err := unix.Mkdir(path, 0)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("directory %s cannot be made: %w", path, err)
	}
	// Left by a crash, or put there by someone.
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("directory %s cannot be used: %w", path, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a directory; see what put it there and move it away", ErrOccupied, path)
	}
	names, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("directory %s cannot be read: %w", path, err)
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: directory %s holds %q without its volume being mounted, as if written there by mistake; move it away", ErrOccupied, path, names[0].Name())
	}
	if err := os.Chmod(path, 0); err != nil {
		return fmt.Errorf("directory %s cannot be closed: %w", path, err)
	}
	return nil
}

func removeBare(path string) error {
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("directory %s, on which nothing is mounted any more, cannot be removed: %w", path, err)
	}
	return nil
}

// Unstage unmounts what is mounted at dir under Config.Published, and removes the bare directory. Nothing mounted there
// is success. It never unmounts lazily: a mount in use stays. When it returns, copies of the mount in other mount
// namespaces may still hold the file system: see Held. Copies at this very directory go as it is removed, by the kernel's
// doing (since Linux 3.18), but processes in them hold the file system until they leave.
// Errors: ErrBusy.
func (h *Host) Unstage(ctx context.Context, dir string) error {
	path, err := h.pathOf(dir)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	release, err := h.claimDir(ctx, path)
	if err != nil {
		return err
	}
	defer release()
	return h.unmountAt(path)
}

// unmountAt unmounts whatever is mounted at the path, and removes the bare directory.
func (h *Host) unmountAt(path string) error {
	for {
		if more, err := h.unmount(path); err != nil {
			return err
		} else if !more {
			return removeBare(path)
		}
	}
}

// unmount unmounts what is on top at the path. It returns false if nothing is mounted there.
func (h *Host) unmount(path string) (bool, error) {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	switch {
	case err == nil, errors.Is(err, unix.EINTR):
		return true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EBUSY):
		return false, fmt.Errorf("%w: %s stays mounted because of %s", ErrBusy, path, h.whoKeeps(path))
	}
	return false, fmt.Errorf("%s cannot be unmounted: %w", path, err)
}

// whoKeeps names the processes that keep a mount from being unmounted.
func (h *Host) whoKeeps(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		if who := h.workingIn(ctx, devno{unix.Major(st.Dev), unix.Minor(st.Dev)}); len(who) > 0 {
			return strings.Join(who, " and ") + "; stop it"
		}
	}
	return "a process that works in it or another mount on it"
}

// unmountSoon unmounts what nobody but this process has seen. Programs that other goroutines are just starting have copies of
// its files until their exec is done, which nothing tells.
func unmountSoon(path string) error {
	err := error(unix.EBUSY)
	for wait := 50 * time.Microsecond; errors.Is(err, unix.EBUSY) && wait < time.Second; wait *= 2 {
		if err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
			time.Sleep(wait)
		}
	}
	return err
}
