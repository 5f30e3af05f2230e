package mount

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fsType is what is particular to one kind of file system.
type fsType struct {
	// mkfsArgs puts blockvol's defaults before the operator's options, which take precedence. mkfs is not forced, and does not
	// discard: that can take minutes on a thin disk, and a blank disk has nothing to discard.
	mkfsArgs func(options []string) []string

	// dryRun is the flag for a dry run of mkfs, which writes nothing. Empty if there is none.
	dryRun string

	// mkfsFlags are the flags of mkfs that an operator may give, and whether each takes a value. Missing are flags that name
	// another device or file, set the size, force, make a dry run, or let an error stop the node.
	mkfsFlags map[string]bool

	// mkfsKeys are the words allowed in the value of a flag, if not all are: "key" with any value, "key=value" with this one,
	// "^feature" for a feature that may be turned on or off. Missing are those with which some kernels cannot mount the file
	// system, or not safely.
	mkfsKeys map[string][]string

	// mountOptions are the file system's own mount options that a new volume may have: the word before the "=", and a pattern for
	// the value, empty if there is none. Missing are those that name another device, mount another part of the file system,
	// risk its consistency, or are refused by some kernels.
	mountOptions map[string]string

	// retired are options that volumes of earlier versions may have. They are still accepted for mounts.
	retired []string

	// always are mount options that blockvol adds if the operator has not given them another value.
	always []string
}

// Patterns for the values of mount options.
const (
	number     = `[0-9]{1,6}`
	longNumber = `[0-9]{1,9}`
	byteSize   = `[0-9]{1,6}[kKmM]?`
	compressor = `|no|none|lzo|zlib|zlib:[1-9]|zstd|zstd:[1-9]|zstd:1[0-5]`
)

var fsTypes = map[string]fsType{
	"ext4": {
		mkfsArgs: func(options []string) []string {
			// mkfs.ext4 uses the last -E only, so all are merged.
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
		dryRun: "-n",
		mkfsFlags: map[string]bool{
			"-b": true, "-C": true, "-E": true, "-g": true, "-G": true, "-i": true, "-I": true, "-j": false, "-J": true,
			"-L": true, "-m": true, "-N": true, "-O": true, "-T": true, "-U": true,
		},
		mkfsKeys: map[string][]string{
			"-b": {"1024", "2048", "4096"}, // few kernels mount blocks larger than a page
			"-E": {
				"assume_storage_prezeroed", "discard", "hash_seed", "lazy_itable_init", "lazy_journal_init", "no_copy_xattrs", "nodiscard", "num_backup_sb",
				"packed_meta_blocks", "resize", "stride", "stripe-width", "stripe_width",
			},
			"-J": {"size", "fast_commit_size"},
			// Without extents, blkid reports ext3. Missing: journal_dev, which is not a file system; casefold, quota and project, which need a kernel built for them;
			// mmp, which e2fsck leaves locked if it is killed; read-only.
			"-O": {
				"^64bit", "^bigalloc", "^dir_index", "^dir_nlink", "^ea_inode", "^encrypt", "^ext_attr", "extent", "extents", "^extra_isize", "^fast_commit", "^filetype",
				"^flex_bg", "has_journal", "^huge_file", "^inline_data", "^large_dir", "^large_file", "^meta_bg", "^metadata_csum", "^metadata_csum_seed", "^orphan_file",
				"^resize_inode", "^sparse_super", "^sparse_super2", "^stable_inodes", "^uninit_bg", "^verity",
			},
		},
		mountOptions: map[string]string{
			"acl": "", "auto_da_alloc": "|0|1", "barrier": "|1", "block_validity": "", "commit": number, "data": "ordered|journal|writeback", "dioread_lock": "",
			"discard": "", "errors": "remount-ro|continue", "init_itable": "|" + number, "inode_readahead_blks": "0|1|2|4|8|16|32|64|128|256|512|1024|2048|4096",
			"journal_checksum": "", "journal_ioprio": "[0-7]", "max_batch_time": number, "max_dir_size_kb": longNumber, "min_batch_time": number,
			"noauto_da_alloc": "", "noblock_validity": "", "nodelalloc": "", "nodiscard": "", "noinit_itable": "", "resgid": longNumber, "resuid": longNumber,
			"stripe": longNumber, "user_xattr": "",
		},
		// Quotas need tools on the node and support in the kernel. data=journal excludes delalloc, and in some kernels
		// dioread_nolock, which are the defaults; data=ordered, the default, excludes journal_async_commit.
		retired: []string{
			"delalloc", "dioread_nolock", "grpquota", "i_version", "journal_async_commit", "noacl", "noquota", "nouser_xattr", "prjquota", "quota", "usrquota",
		},
		always: []string{"errors=remount-ro"}, // the superblock may have errors=panic, which stops the node
	},
	"xfs": {
		mkfsArgs: func(options []string) []string { return append([]string{"-q", "-K"}, options...) },
		dryRun:   "-N",
		mkfsFlags: map[string]bool{
			"-b": true, "-d": true, "-i": true, "-l": true, "-L": true, "-m": true, "-n": true, "-s": true,
		},
		mkfsKeys: map[string][]string{
			"-b": {"size=1024", "size=2048", "size=4096", "size=1k", "size=2k", "size=4k"},
			"-d": {"agcount", "agsize", "cowextsize", "extszinherit", "noalign", "projinherit", "su", "sunit", "sw", "swidth"},
			"-i": {"attr=2", "maxpct", "nrext64", "perblock", "size", "sparse"},
			"-l": {"internal=1", "lazy-count=1", "size", "su", "sunit", "version=2"},
			"-m": {"bigtime", "crc=1", "finobt", "inobtcount", "reflink", "rmapbt", "uuid"}, // most kernels do not support crc=0 any more
			"-n": {"ftype=1", "size", "version=2"},
			"-s": {"size=512", "size=1024", "size=2048", "size=4096", "size=1k", "size=2k", "size=4k"},
		},
		mountOptions: map[string]string{
			"allocsize": "4k|8k|16k|32k|64k|128k|256k|512k|1m|2m|4m|8m|16m|32m|64m|128m|256m|512m|1g|65536|131072|262144|524288|1048576",
			"discard":   "", "filestreams": "", "inode32": "", "inode64": "", "largeio": "", "logbsize": "16k|32k|64k|128k|256k|16384|32768|65536|131072|262144",
			"logbufs": "[2-8]", "noalign": "", "nodiscard": "", "nolargeio": "", "noquota": "", "nouuid": "", "swalloc": "", "wsync": "",
		},
		retired: []string{
			"attr2", "dax", "gqnoenforce", "gquota", "grpquota", "ikeep", "noikeep", "pqnoenforce", "pquota", "prjquota", "quota", "sunit", "swidth", "uqnoenforce", "uquota", "usrquota",
		},
		always: []string{"nouuid"}, // a copy from a snapshot has the UUID of its origin
	},
	"btrfs": {
		mkfsArgs: func(options []string) []string { return append([]string{"-q", "-K"}, options...) },
		mkfsFlags: map[string]bool{ // no UUID: a node cannot mount two volumes with the same one
			"-d": true, "-m": true, "-M": false, "-n": true, "-s": true, "-L": true, "-O": true, "-R": true,
			"--csum": true, "--checksum": true, "--data": true, "--metadata": true, "--mixed": false, "--nodesize": true, "--sectorsize": true,
			"--label": true, "--features": true, "--runtime-features": true,
		},
		mkfsKeys: map[string][]string{
			"-d": {"single", "dup"}, "--data": {"single", "dup"}, "-m": {"single", "dup"}, "--metadata": {"single", "dup"},
			"-s": {"4096", "4k", "4K"}, "--sectorsize": {"4096", "4k", "4K"}, // some kernels only support these
			"--csum": {"crc32c", "xxhash", "sha256", "blake2"}, "--checksum": {"crc32c", "xxhash", "sha256", "blake2"},
			"-O": btrfsFeatures, "--features": btrfsFeatures, "-R": {"free-space-tree"}, "--runtime-features": {"free-space-tree"},
		},
		mountOptions: map[string]string{
			"acl": "", "autodefrag": "", "commit": number, "compress": compressor, "compress-force": compressor, "datacow": "", "datasum": "", "discard": "|sync|async",
			"enospc_debug": "", "flushoncommit": "", "max_inline": byteSize, "metadata_ratio": number, "noacl": "", "noautodefrag": "", "nodatacow": "", "nodatasum": "",
			"nodiscard": "", "noflushoncommit": "", "nossd": "", "nossd_spread": "", "notreelog": "", "space_cache": "v2", "ssd": "", "ssd_spread": "",
			"thread_pool": "[1-9][0-9]{0,3}", "treelog": "", "user_subvol_rm_allowed": "",
		},
		retired: []string{"nospace_cache"},
		always:  []string{"subvolid=5"}, // the root, whatever the default subvolume is
	},
}

// btrfsFeatures are those without several disks, zones and quotas that all kernels support.
var btrfsFeatures = []string{"mixed-bg", "^extref", "^skinny-metadata", "^no-holes", "free-space-tree"}

// FSTypes returns the supported file systems, sorted.
func FSTypes() []string { return slices.Sorted(maps.Keys(fsTypes)) }

// CheckOptions checks the arguments of mkfs.<fstype> and the mount options of a new volume, one per element. mkfs may still refuse
// them, see CheckFormat, and so may the kernel.
// Errors: ErrInvalid, in a sentence that lists what is allowed.
func CheckOptions(fstype string, mkfs, mountOpts []string) error {
	t, known := fsTypes[fstype]
	if !known {
		return unknownType(fstype)
	}
	for i := 0; i < len(mkfs); i++ {
		flag, value, attached := splitFlag(mkfs[i])
		takesValue, allowed := t.mkfsFlags[flag]
		switch {
		case !allowed:
			return fmt.Errorf("%w: %q is not an allowed option of mkfs.%s; allowed are %s", ErrInvalid, mkfs[i], fstype, strings.Join(slices.Sorted(maps.Keys(t.mkfsFlags)), ", "))
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
	if err := checkMountOptions(fstype, mountOpts); err != nil {
		return err
	}
	for _, o := range mountOpts {
		key, value, _ := strings.Cut(o, "=")
		pattern, own := t.mountOptions[key]
		_, generic := genericOptions[o]
		switch {
		case generic, slices.Contains(securityOptions, key):
		case !own:
			return fmt.Errorf("%w: mount option %q is not allowed for new volumes, since some kernels do not support it; allowed are %s", ErrInvalid, o, t.allowedOptions())
		case strings.HasSuffix(o, "="), !regexp.MustCompile("^(" + pattern + ")$").MatchString(value):
			return fmt.Errorf("%w: mount option %q of %s has a value out of range; it must match %q", ErrInvalid, o, fstype, pattern)
		}
	}
	return nil
}

func (t fsType) allowedOptions() string {
	return strings.Join(slices.Concat(slices.Sorted(maps.Keys(genericOptions)), securityOptions, slices.Sorted(maps.Keys(t.mountOptions))), ", ")
}

// ReadOnly tells whether a volume with these mount options is mounted read-only.
func ReadOnly(fstype string, options []string) bool { return parseOptions(fstype, options).readOnly() }

// splitFlag splits "-b4096" and "--label=x".
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
		key, _, _ := strings.Cut(part, "=")
		if !slices.Contains(allowed, key) && !slices.Contains(allowed, part) && !slices.Contains(allowed, "^"+part) {
			return fmt.Errorf("%w: %q is not allowed in option %s of mkfs.%s; allowed are %s", ErrInvalid, part, flag, fstype, strings.Join(allowed, ", "))
		}
	}
	return nil
}

// checkMountOptions checks the mount options of a volume that may be old. Errors: ErrInvalid.
func checkMountOptions(fstype string, options []string) error {
	t, known := fsTypes[fstype]
	if !known {
		return unknownType(fstype)
	}
	for _, o := range options {
		if err := t.checkMountOption(fstype, o); err != nil {
			return err
		}
	}
	return nil
}

func unknownType(fstype string) error {
	return fmt.Errorf("%w: file system %q is not one of %s", ErrInvalid, fstype, strings.Join(FSTypes(), ", "))
}

func (t fsType) checkMountOption(fstype, option string) error {
	key, value, _ := strings.Cut(option, "=")
	_, generic := genericOptions[option]
	_, own := t.mountOptions[key]
	switch {
	case strings.ContainsAny(option, ",\x00"):
		return fmt.Errorf("%w: mount option %q is more than one", ErrInvalid, option)
	case generic, slices.Contains(securityOptions, key) && value != "":
	case !own && !slices.Contains(t.retired, key):
		return fmt.Errorf("%w: %q is not an allowed mount option of %s; allowed are %s", ErrInvalid, option, fstype, t.allowedOptions())
	case key == "errors" && value == "panic":
		return fmt.Errorf("%w: mount option %q stops the whole node if one volume is damaged; use errors=remount-ro or errors=continue", ErrInvalid, option)
	case key == "barrier" && value == "0":
		return fmt.Errorf("%w: mount option %q loses data in a power failure", ErrInvalid, option)
	}
	return nil
}

// generic is what a mount option of all file systems means to the kernel.
type generic struct {
	set, clear int    // MOUNT_ATTR_* of the mount
	superblock string // the option for fsconfig, if there is one
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

// securityOptions are for security modules, with all file systems.
var securityOptions = []string{"context", "defcontext", "fscontext", "rootcontext"}

// parsedOptions are mount options as fsmount and fsconfig want them.
type parsedOptions struct {
	attrs int      // MOUNT_ATTR_*
	flags []string // for fsconfig, "key" or "key=value"
}

func (p parsedOptions) readOnly() bool { return p.attrs&unix.MOUNT_ATTR_RDONLY != 0 }

// parseOptions parses mount options that checkMountOption accepts. Of contradictory ones the last one counts, as with mount(8).
func parseOptions(fstype string, options []string) parsedOptions {
	var p parsedOptions
	for _, a := range fsTypes[fstype].always {
		key, _, _ := strings.Cut(a, "=")
		if !slices.ContainsFunc(options, func(o string) bool { k, _, _ := strings.Cut(o, "="); return k == key }) {
			p.flags = append(p.flags, a)
		}
	}
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
