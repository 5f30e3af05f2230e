package mount

import (
	"encoding/binary"
)

// marks are what other software writes to a disk. Those that no program here can make are written byte by byte.
var marks = []struct {
	name  string
	found string // in Contents.Found
	size  int64  // default 64 MiB
	make  []string
	write func(d *disk)
}{
	{name: "ext4", found: "ext4", make: []string{"mkfs.ext4", "-q", "$"}},
	{name: "xfs", found: "xfs", size: xfsSize, make: []string{"mkfs.xfs", "-q", "$"}},
	{name: "btrfs", found: "btrfs", size: btrfsSize, make: []string{"mkfs.btrfs", "-q", "$"}},
	{name: "vfat", found: "vfat", make: []string{"mkfs.vfat", "$"}},
	{name: "exfat", found: "exfat", make: []string{"mkfs.exfat", "$"}},
	{name: "ntfs", found: "ntfs", make: []string{"mkntfs", "-Q", "-F", "$"}},
	{name: "f2fs", found: "f2fs", make: []string{"mkfs.f2fs", "$"}},
	{name: "swap", found: "swap", make: []string{"mkswap", "$"}},
	{name: "bcache", found: "bcache", make: []string{"make-bcache", "-B", "$"}},
	{name: "LVM", found: "LVM2_member", make: []string{"pvcreate", "-q", "$"}},
	{name: "LUKS 1", found: "crypto_LUKS", make: []string{"sh", "-c", "echo secret | cryptsetup luksFormat --type luks1 -q --pbkdf-force-iterations 1000 $ -"}},
	{name: "LUKS 2", found: "crypto_LUKS", make: []string{"sh", "-c", "echo secret | cryptsetup luksFormat --type luks2 -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 $ -"}},
	{name: "GPT", found: "gpt", make: []string{"sh", "-c", "echo label: gpt | sfdisk $"}},
	{name: "GPT by sgdisk", found: "gpt", make: []string{"sgdisk", "-n", "1:0:0", "$"}},
	{name: "MBR", found: "dos", make: []string{"sh", "-c", "printf 'label: dos\n,,83\n' | sfdisk $"}},
	{name: "backup of a GPT alone", found: "gpt", write: func(d *disk) {
		must(d.t, "sgdisk", "-n", "1:0:0", d.Path)
		d.write(make([]byte, 34*512), 0)
	}},
	{name: "md 1.2", found: "linux_raid_member", write: func(d *disk) { d.write(mdSuperblock(8), 4096) }},
	{name: "md 1.0 at the end", found: "linux_raid_member", write: func(d *disk) {
		sector := (d.Size/512 - 16) &^ 7
		d.write(mdSuperblock(uint64(sector)), sector*512)
	}},
	{name: "md 0.90 at the end", found: "linux_raid_member", write: func(d *disk) {
		sb := make([]byte, 4096)
		binary.LittleEndian.PutUint32(sb, mdMagic)
		binary.LittleEndian.PutUint32(sb[8:], 90)
		d.write(sb, d.Size&^65535-65536)
	}},
	{name: "ZFS", found: "zfs_member", write: func(d *disk) { d.write(zfsUberblocks(), 128<<10) }},
	{name: "ZFS label at the end alone", found: "zfs_member", write: func(d *disk) { d.write(zfsUberblocks(), d.Size-128<<10) }},
	{name: "VMFS, 2 MiB inside", found: "VMFS", write: func(d *disk) { d.write([]byte{0x5e, 0xf1, 0xab, 0x2f}, 2*mib) }},
	{name: "ISO 9660", found: "iso9660", write: func(d *disk) { d.write([]byte("\x01CD001\x01"), 32<<10) }},
	{name: "several formats at once", found: "ext4", write: func(d *disk) {
		must(d.t, "mkfs.ext4", "-q", d.Path)
		d.write([]byte("LUKS\xba\xbe\x00\x01"), 0)
	}},
	{name: "one byte in the first MiB", found: unknownData, write: func(d *disk) { d.write([]byte{1}, mib-1) }},
	{name: "one byte in the last MiB", found: unknownData, write: func(d *disk) { d.write([]byte{1}, d.Size-mib) }},
	{name: "the last byte", found: unknownData, write: func(d *disk) { d.write([]byte{1}, d.Size-1) }},
}

const mdMagic = 0xa92b4efc

func mdSuperblock(sector uint64) []byte {
	sb := make([]byte, 512)
	binary.LittleEndian.PutUint32(sb, mdMagic)
	binary.LittleEndian.PutUint32(sb[4:], 1)
	copy(sb[16:], "0123456789abcdef") // the array's UUID
	binary.LittleEndian.PutUint64(sb[144:], sector)
	return sb
}

func zfsUberblocks() []byte {
	b := make([]byte, 8<<10)
	for i := 0; i < len(b); i += 1 << 10 {
		binary.LittleEndian.PutUint64(b[i:], 0x00bab10c)
		binary.LittleEndian.PutUint64(b[i+8:], 5000)
		binary.LittleEndian.PutUint64(b[i+16:], uint64(i))
	}
	return b
}
