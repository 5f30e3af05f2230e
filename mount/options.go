package mount

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fsType is what is particular to one kind of file system.
type fsType struct {
	// mkfsArgs puts blockvol's defaults before the operator's options, which win. None forces, and none discards: a
	// discard can take minutes on a thin disk, and a blank disk has nothing to discard.
	mkfsArgs func(options []string) []string

	// mkfsFlags are the flags of mkfs that an operator may give, with whether each takes a value. What names another
	// device or file, sets the size, forces or only pretends is not among them.
	mkfsFlags map[string]bool

	// mkfsKeys are the keys that may stand in the value of a flag, where some of them may not.
	mkfsKeys map[string][]string

	// mountOptions are the file system's own mount options that an operator may give, by the word before the "=". Missing
	// are those that name another device, show another part of the disk, or give up its consistency.
	mountOptions []string

	// always are mount options that blockvol gives.
	always []string
}

var fsTypes = map[string]fsType{
	"ext4": {
		mkfsArgs: func(options []string) []string {
			// mkfs.ext4 heeds the last -E only, so ours and theirs go into one.
			extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
			args := []string{"-q", "-m", "0"}
			for i := 0; i < len(options); i++ {
				switch o := options[i]; {
				case o == "-E" && i+1 < len(options):
					i++
					extended += "," + options[i]
				case strings.HasPrefix(o, "-E"):
					extended += "," + o[len("-E"):]
				default:
					args = append(args, o)
				}
			}
			return append(args, "-E", extended)
		},
		mkfsFlags: map[string]bool{
			"-b": true, "-C": true, "-e": true, "-E": true, "-g": true, "-G": true, "-i": true, "-I": true, "-j": false, "-J": true,
			"-L": true, "-m": true, "-N": true, "-O": true, "-T": true, "-U": true,
		},
		mkfsKeys: map[string][]string{
			"-E": {
				"assume_storage_prezeroed", "desc_size", "discard", "encoding", "encoding_flags", "hash_seed", "lazy_itable_init", "lazy_journal_init",
				"mmp_update_interval", "no_copy_xattrs", "nodiscard", "num_backup_sb", "packed_meta_blocks", "quotatype", "resize", "revision", "stride", "stripe-width", "stripe_width",
			},
			"-J": {"size", "fast_commit_size"},
		},
		mountOptions: []string{
			"acl", "auto_da_alloc", "barrier", "block_validity", "commit", "data", "delalloc", "dioread_lock", "dioread_nolock", "discard", "errors", "grpquota",
			"i_version", "init_itable", "inode_readahead_blks", "journal_async_commit", "journal_checksum", "journal_ioprio", "max_batch_time", "max_dir_size_kb", "min_batch_time",
			"noacl", "noauto_da_alloc", "noblock_validity", "nodelalloc", "nodiscard", "noinit_itable", "noquota", "nouser_xattr", "prjquota", "quota", "resgid", "resuid", "stripe",
			"user_xattr", "usrquota",
		},
	},
	"xfs": {
		mkfsArgs: func(options []string) []string { return append([]string{"-q", "-K"}, options...) },
		mkfsFlags: map[string]bool{
			"-b": true, "-d": true, "-i": true, "-l": true, "-L": true, "-m": true, "-n": true, "-s": true,
		},
		mkfsKeys: map[string][]string{
			"-d": {"agcount", "agsize", "cowextsize", "daxinherit", "extszinherit", "noalign", "projinherit", "su", "sunit", "sw", "swidth"},
			"-l": {"internal", "lazy-count", "size", "su", "sunit", "version"},
		},
		mountOptions: []string{
			"allocsize", "attr2", "dax", "discard", "filestreams", "gqnoenforce", "gquota", "grpquota", "ikeep", "inode32", "inode64", "largeio", "logbsize", "logbufs", "noalign",
			"nodiscard", "noikeep", "nolargeio", "noquota", "nouuid", "pqnoenforce", "pquota", "prjquota", "quota", "sunit", "swalloc", "swidth", "uqnoenforce", "uquota", "usrquota", "wsync",
		},
		always: []string{"nouuid"}, // a snapshot's copy bears the uuid of its origin
	},
	"btrfs": {
		mkfsArgs: func(options []string) []string { return append([]string{"-q", "-K"}, options...) },
		mkfsFlags: map[string]bool{
			"-d": true, "-m": true, "-M": false, "-n": true, "-s": true, "-L": true, "-O": true, "-R": true, "-U": true,
			"--csum": true, "--checksum": true, "--data": true, "--metadata": true, "--mixed": false, "--nodesize": true, "--sectorsize": true,
			"--label": true, "--features": true, "--runtime-features": true, "--uuid": true,
		},
		mountOptions: []string{
			"acl", "autodefrag", "commit", "compress", "compress-force", "datacow", "datasum", "discard", "enospc_debug", "flushoncommit", "max_inline", "metadata_ratio", "noacl",
			"noautodefrag", "nodatacow", "nodatasum", "nodiscard", "noflushoncommit", "nospace_cache", "nossd", "nossd_spread", "notreelog", "space_cache", "ssd", "ssd_spread",
			"thread_pool", "treelog", "user_subvol_rm_allowed",
		},
		always: []string{"subvolid=5"}, // the root, whichever subvolume somebody made the default
	},
}

// FSTypes returns the file systems that can be made and mounted, sorted.
func FSTypes() []string { return slices.Sorted(maps.Keys(fsTypes)) }

// CheckOptions tells whether a volume may have these arguments of mkfs.<fstype> and these mount options, one of each per
// element. What it accepts can still be refused by mkfs or by the kernel, for a value out of range.
// Errors: ErrInvalid, in a sentence that lists what is allowed.
func CheckOptions(fstype string, mkfs, mountOpts []string) error {
	t, known := fsTypes[fstype]
	if !known {
		return fmt.Errorf("%w: file system %q is not one of %s", ErrInvalid, fstype, strings.Join(FSTypes(), ", "))
	}
	for i := 0; i < len(mkfs); i++ {
		flag, value, attached := splitFlag(mkfs[i])
		takesValue, allowed := t.mkfsFlags[flag]
		switch {
		case !allowed:
			return fmt.Errorf("%w: %q is no option of mkfs.%s that a volume may have; allowed are %s", ErrInvalid, mkfs[i], fstype, strings.Join(slices.Sorted(maps.Keys(t.mkfsFlags)), ", "))
		case !takesValue && attached:
			return fmt.Errorf("%w: option %s of mkfs.%s takes no value, but %q was given", ErrInvalid, flag, fstype, mkfs[i])
		case !takesValue:
			continue
		case !attached:
			if i++; i < len(mkfs) {
				value = mkfs[i]
			}
		}
		if value == "" || value[0] == '-' || strings.ContainsRune(value, 0) {
			return fmt.Errorf("%w: option %s of mkfs.%s needs a value", ErrInvalid, flag, fstype)
		}
		if err := checkKeys(t, fstype, flag, value); err != nil {
			return err
		}
	}
	for _, o := range mountOpts {
		if err := checkMountOption(t, fstype, o); err != nil {
			return err
		}
	}
	return nil
}

// splitFlag takes "-b4096" and "--label=x" apart.
func splitFlag(arg string) (flag, value string, attached bool) {
	if strings.HasPrefix(arg, "--") {
		return strings.Cut(arg, "=")
	}
	if strings.HasPrefix(arg, "-") && len(arg) > 2 {
		return arg[:2], arg[2:], true
	}
	return arg, "", false
}

func checkKeys(t fsType, fstype, flag, value string) error {
	allowed, restricted := t.mkfsKeys[flag]
	if !restricted {
		return nil
	}
	for part := range strings.SplitSeq(value, ",") {
		if key, _, _ := strings.Cut(part, "="); !slices.Contains(allowed, key) {
			return fmt.Errorf("%w: %q cannot stand in option %s of mkfs.%s; allowed are %s", ErrInvalid, part, flag, fstype, strings.Join(allowed, ", "))
		}
	}
	return nil
}

func checkMountOption(t fsType, fstype, option string) error {
	key, value, _ := strings.Cut(option, "=")
	_, generic := genericOptions[option]
	switch {
	case strings.ContainsAny(option, ",\x00"):
		return fmt.Errorf("%w: mount option %q holds several", ErrInvalid, option)
	case generic, slices.Contains(securityOptions, key) && value != "":
	case !slices.Contains(t.mountOptions, key):
		return fmt.Errorf("%w: %q is no mount option that a volume with %s may have; allowed are %s", ErrInvalid, option, fstype,
			strings.Join(slices.Concat(slices.Sorted(maps.Keys(genericOptions)), securityOptions, t.mountOptions), ", "))
	case key == "errors" && value == "panic":
		return fmt.Errorf("%w: mount option %q would bring the whole node down for one damaged volume; use errors=remount-ro or errors=continue", ErrInvalid, option)
	case key == "barrier" && value == "0":
		return fmt.Errorf("%w: mount option %q would lose data at a power failure", ErrInvalid, option)
	}
	return nil
}

// generic is what a mount option that every file system has means to the kernel.
type generic struct {
	set, clear int    // MOUNT_ATTR_* of the mount
	superblock string // the option of the file system, if it is one
}

var genericOptions = map[string]generic{
	"defaults":      {},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY, superblock: "rw"},
	"ro":            {set: unix.MOUNT_ATTR_RDONLY, superblock: "ro"},
	"sync":          {superblock: "sync"},
	"async":         {superblock: "async"},
	"dirsync":       {superblock: "dirsync"},
	"lazytime":      {superblock: "lazytime"},
	"nolazytime":    {superblock: "nolazytime"},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"atime":         {clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"relatime":      {clear: unix.MOUNT_ATTR__ATIME}, // the kernel's default
	"norelatime":    {clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {clear: unix.MOUNT_ATTR__ATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
}

// securityOptions are understood by security modules, for every file system.
var securityOptions = []string{"context", "defcontext", "fscontext", "rootcontext"}

// parsedOptions are mount options as fsmount and fsconfig want them.
type parsedOptions struct {
	attrs int      // MOUNT_ATTR_*
	flags []string // for fsconfig, "key" or "key=value", the last word of each generic one only
}

func (p parsedOptions) readOnly() bool { return p.attrs&unix.MOUNT_ATTR_RDONLY != 0 }

// parseOptions sorts mount options that CheckOptions accepts. Of contradictory ones the last wins, as with mount(8).
func parseOptions(fstype string, options []string) parsedOptions {
	p := parsedOptions{flags: slices.Clone(fsTypes[fstype].always)}
	for _, o := range options {
		g, isGeneric := genericOptions[o]
		switch {
		case !isGeneric:
			if !slices.Contains(p.flags, o) {
				p.flags = append(p.flags, o)
			}
		case g.superblock != "":
			p.flags = slices.DeleteFunc(p.flags, func(f string) bool { return opposite[f] == g.superblock })
			p.flags = append(p.flags, g.superblock)
			fallthrough
		default:
			p.attrs = p.attrs&^g.clear | g.set
		}
	}
	return p
}

var opposite = map[string]string{
	"rw": "ro", "ro": "rw", "sync": "async", "async": "sync", "lazytime": "nolazytime", "nolazytime": "lazytime",
}
