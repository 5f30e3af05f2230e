package mount

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Grow enlarges the file system staged at dir to the size of its device, while containers use it. It returns whether there was
// anything to grow. If not, it costs a read of the mount table and a read or an ioctl. A file system that is mounted read-only is not
// grown. On error it keeps its size and can still be used.
// Errors: ErrNoDevice, ErrWrongDevice, ErrNotStaged.
func (h *Host) Grow(ctx context.Context, disk Device, dir string) (grown bool, err error) {
	path, release, err := h.claimVolume(ctx, disk, dir)
	if err != nil {
		return false, err
	}
	defer release()
	f, err := h.open(disk, os.O_RDONLY) // open until it has grown, so that no other disk gets its name
	if err != nil {
		return false, err
	}
	defer f.Close()
	top, device, err := h.openTop(disk)
	if err != nil {
		return false, err
	}
	defer device.Close()
	root, m, err := openStaged(path, top)
	if err != nil {
		return false, fmt.Errorf("%w; it is not grown", err)
	}
	defer root.Close()
	if isReadOnly(m) {
		return false, nil
	}
	return grow(root, device, m.FSType)
}

func isReadOnly(m *mountinfo.Info) bool {
	for _, options := range []string{m.Options, m.VFSOptions} {
		if slices.Contains(strings.Split(options, ","), "ro") {
			return true
		}
	}
	return false
}

// grow enlarges a mounted file system to the size of its device, and returns whether it was smaller. root is any directory of it. The
// kernel grows it in transactions, so a crash does no harm. resize2fs on an unmounted ext4 would not need CAP_SYS_RESOURCE, but if it is
// killed it leaves a file system that e2fsck -p cannot repair.
func grow(root, device *os.File, fstype string) (grown bool, err error) {
	size, err := sizeOf(device)
	if err != nil {
		return false, err
	}
	switch fstype {
	case "ext4":
		grown, err = growExt4(root, device, size)
	case "xfs":
		grown, err = growXFS(root, size)
	case "btrfs":
		grown, err = growBtrfs(root, size)
	}
	if err == nil {
		return grown, nil
	}
	advice := ""
	if errors.Is(err, unix.EPERM) && fstype == "ext4" {
		advice = "; give blockvol CAP_SYS_RESOURCE, or run e2fsck -f on the file system if it has recorded errors"
	}
	return false, fmt.Errorf("the %s on device %s cannot be grown to the device's %d bytes and keeps its size: %w%s", fstype, device.Name(), size, err, advice)
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64).
const ext4ResizeFS = 0x40086610

func growExt4(root, device *os.File, size int64) (bool, error) {
	sb := make([]byte, 1024)
	if _, err := device.ReadAt(sb, 1024); err != nil {
		return false, err
	}
	blocks, blockSize, err := ext4Blocks(sb)
	if err != nil {
		return false, err
	}
	want := uint64(size) / blockSize
	if want <= blocks {
		return false, nil
	}
	err = ioctl(root, ext4ResizeFS, &want)
	return err == nil, err
}

// ext4Blocks parses a superblock (Linux, Documentation/filesystems/ext4/super.rst).
func ext4Blocks(sb []byte) (blocks, blockSize uint64, err error) {
	const (
		magic      = 0xEF53
		incompat64 = 0x80
	)
	le := binary.LittleEndian
	if len(sb) < 0x154 || le.Uint16(sb[0x38:]) != magic {
		return 0, 0, errors.New("it has no ext4 superblock")
	}
	exponent := le.Uint32(sb[0x18:])
	if exponent > 6 {
		return 0, 0, errors.New("its superblock has no valid block size")
	}
	blocks = uint64(le.Uint32(sb[0x4:]))
	if le.Uint32(sb[0x60:])&incompat64 != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	return blocks, 1024 << exponent, nil
}

// xfsGeometry is struct xfs_fsop_geom_v1 of the kernel.
type xfsGeometry struct {
	blockSize, _, agBlocks, _, _, _, _, imaxPercent uint32
	dataBlocks                                      uint64
	_                                               [72]byte
}

const (
	xfsGetGeometry = 0x80705864 // XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, 112 bytes)
	xfsGrowData    = 0x4010586e // XFS_IOC_FSGROWFSDATA, _IOW('X', 110, 16 bytes)
	xfsMinAGBlocks = 64         // mkfs and the kernel leave a smaller rest at the end unused
)

func growXFS(root *os.File, size int64) (bool, error) {
	var g xfsGeometry
	if err := ioctl(root, xfsGetGeometry, &g); err != nil {
		return false, err
	}
	if g.blockSize == 0 || g.agBlocks == 0 {
		return false, errors.New("the kernel returns no geometry")
	}
	want := uint64(size) / uint64(g.blockSize)
	if rest := want % uint64(g.agBlocks); rest < xfsMinAGBlocks {
		want -= rest
	}
	if want <= g.dataBlocks {
		return false, nil
	}
	err := ioctl(root, xfsGrowData, &struct {
		blocks      uint64
		imaxPercent uint32
		_           uint32
	}{blocks: want, imaxPercent: g.imaxPercent})
	return err == nil, err
}

// btrfsInfo is struct btrfs_ioctl_fs_info_args of the kernel.
type btrfsInfo struct {
	maxID, _ uint64
	fsid     [16]byte
	_        [992]byte
}

// btrfsDevice is struct btrfs_ioctl_dev_info_args.
type btrfsDevice struct {
	id         uint64
	_          [16]byte
	_          uint64
	totalBytes uint64
	_          [379 * 8]byte
	_          [1024]byte
}

// btrfsVolume is struct btrfs_ioctl_vol_args.
type btrfsVolume struct {
	_    int64
	name [4088]byte
}

const (
	btrfsGetInfo   = 0x8400941f // BTRFS_IOC_FS_INFO, _IOR(0x94, 31, 1024 bytes)
	btrfsGetDevice = 0xd000941e // BTRFS_IOC_DEV_INFO, _IOWR(0x94, 30, 4096 bytes)
	btrfsResize    = 0x50009403 // BTRFS_IOC_RESIZE, _IOW(0x94, 3, 4096 bytes)
	btrfsSector    = 4096       // the smallest; the size of the file system is a multiple
	btrfsSmallest  = 256 << 20  // bytes; the kernel does not resize to less
)

func growBtrfs(root *os.File, size int64) (bool, error) {
	var info btrfsInfo
	if err := ioctl(root, btrfsGetInfo, &info); err != nil {
		return false, err
	}
	device := btrfsDevice{id: info.maxID} // the only one, see verifyDeviceOf
	if err := ioctl(root, btrfsGetDevice, &device); err != nil {
		return false, err
	}
	if size < btrfsSmallest || uint64(size) < device.totalBytes+btrfsSector {
		return false, nil
	}
	var arg btrfsVolume
	copy(arg.name[:], fmt.Sprintf("%d:max", info.maxID))
	err := ioctl(root, btrfsResize, &arg)
	return err == nil, err
}
