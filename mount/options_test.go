package mount

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAllowedOptions(t *testing.T) {
	for _, c := range []struct {
		fstype string
		mkfs   string
		mount  string
	}{
		{"ext4", "", ""},
		{"ext4", "-m 1 -i 8192 -O ^metadata_csum,64bit -E stride=4,stripe_width=8 -Llabel -b4096 -J size=4", "noatime,discard,data=ordered,errors=remount-ro"},
		{"xfs", "-L label -d agcount=4,su=64k,sw=2 -l size=16m -i size=512 -m reflink=0", "logbsize=256k,nouuid,ro"},
		{"btrfs", "--label x --csum=xxhash -d single -m dup -M", "compress=zstd:3,autodefrag,context=system_u:object_r:x"},
	} {
		require.NoError(t, CheckOptions(c.fstype, strings.Fields(c.mkfs), splitCommas(c.mount)), "%v", c)
	}
}

func splitCommas(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(o string) bool { return o == "" })
}

func TestRefusedOptions(t *testing.T) {
	for _, c := range []struct {
		fstype      string
		mkfs, mount []string
	}{
		{fstype: "zfs"},
		{fstype: ""},
		{fstype: "ext4/../x"},
		{fstype: "ext4", mkfs: []string{"-F"}},                              // force
		{fstype: "ext4", mkfs: []string{"-FF"}},                             //
		{fstype: "ext4", mkfs: []string{"-jF"}},                             // after a flag without a value
		{fstype: "ext4", mkfs: []string{"-n"}},                              // dry run
		{fstype: "ext4", mkfs: []string{"-S"}},                              // superblock only
		{fstype: "ext4", mkfs: []string{"-d", "/etc"}},                      // copies a directory of the host
		{fstype: "ext4", mkfs: []string{"-J", "device=/dev/vda"}},           // another device
		{fstype: "ext4", mkfs: []string{"-Jsize=4,device=/dev/vda"}},        //
		{fstype: "ext4", mkfs: []string{"-E", "offset=4096"}},               // not where the kernel expects it
		{fstype: "ext4", mkfs: []string{"-E", "stride=4,root_owner=0:0,x"}}, //
		{fstype: "ext4", mkfs: []string{"-e", "panic"}},                     // an error stops the node
		{fstype: "ext4", mkfs: []string{"-epanic"}},                         //
		{fstype: "ext4", mkfs: []string{"-O", "journal_dev"}},               // not a file system
		{fstype: "ext4", mkfs: []string{"-O", "64bit,Journal_Dev"}},         //
		{fstype: "ext4", mkfs: []string{"-O", "+journal_dev"}},              //
		{fstype: "ext4", mkfs: []string{"-O", "^has_journal"}},              // inconsistent after a crash
		{fstype: "ext4", mkfs: []string{"-O", "^extents,^64bit"}},           // blkid reports ext3
		{fstype: "ext4", mkfs: []string{"-O", "none"}},                      //
		{fstype: "ext4", mkfs: []string{"-O", "64bit,-has_journal"}},        //
		{fstype: "ext4", mkfs: []string{"-O", "mmp"}},                       // e2fsck leaves it locked if it is killed
		{fstype: "ext4", mkfs: []string{"-O", "casefold"}},                  // for some kernels only
		{fstype: "ext4", mkfs: []string{"-O", "quota"}},                     //
		{fstype: "ext4", mkfs: []string{"-O", "project"}},                   //
		{fstype: "ext4", mkfs: []string{"-E", "quotatype=prjquota"}},        //
		{fstype: "ext4", mkfs: []string{"-E", "encoding=utf8"}},             //
		{fstype: "ext4", mkfs: []string{"-b", "512"}},                       // not at all
		{fstype: "ext4", mkfs: []string{"-b", "65536"}},                     // for some kernels only
		{fstype: "xfs", mkfs: []string{"-m", "crc=0"}},                      //
		{fstype: "xfs", mkfs: []string{"-m", "reflink=0,crc=0"}},            //
		{fstype: "xfs", mkfs: []string{"-n", "version=ci"}},                 //
		{fstype: "xfs", mkfs: []string{"-b", "size=64k"}},                   //
		{fstype: "xfs", mkfs: []string{"-b", "size=1k,size=64k"}},           //
		{fstype: "xfs", mkfs: []string{"-s", "size=32k"}},                   //
		{fstype: "xfs", mkfs: []string{"-l", "internal=0"}},                 // another device
		{fstype: "btrfs", mkfs: []string{"-s", "16k"}},                      // for some kernels only
		{fstype: "btrfs", mkfs: []string{"--sectorsize=64k"}},               //
		{fstype: "btrfs", mkfs: []string{"-d", "raid1"}},                    // several disks
		{fstype: "btrfs", mkfs: []string{"--metadata=raid1c3"}},             //
		{fstype: "btrfs", mkfs: []string{"-O", "zoned"}},                    //
		{fstype: "btrfs", mkfs: []string{"-O", "quota"}},                    //
		{fstype: "btrfs", mkfs: []string{"-R", "quota"}},                    //
		{fstype: "btrfs", mkfs: []string{"-O", "list-all"}},                 // makes nothing and succeeds
		{fstype: "btrfs", mkfs: []string{"-U", "00000000-0000-0000-0000-000000000001"}},
		{fstype: "ext4", mount: []string{"commit=abc"}},                  // values that no kernel knows
		{fstype: "ext4", mount: []string{"commit"}},                      //
		{fstype: "ext4", mount: []string{"data=all"}},                    //
		{fstype: "ext4", mount: []string{"errors=ignore"}},               //
		{fstype: "ext4", mount: []string{"acl=1"}},                       //
		{fstype: "ext4", mount: []string{"inode_readahead_blks=33"}},     //
		{fstype: "ext4", mount: []string{"noacl"}},                       // for some kernels only
		{fstype: "ext4", mount: []string{"prjquota"}},                    //
		{fstype: "ext4", mount: []string{"journal_async_commit"}},        //
		{fstype: "xfs", mount: []string{"logbsize=5"}},                   //
		{fstype: "xfs", mount: []string{"logbufs=9"}},                    //
		{fstype: "xfs", mount: []string{"allocsize=1"}},                  //
		{fstype: "xfs", mount: []string{"pquota"}},                       //
		{fstype: "xfs", mount: []string{"sunit=128"}},                    //
		{fstype: "btrfs", mount: []string{"compress=zip"}},               //
		{fstype: "btrfs", mount: []string{"thread_pool=0"}},              //
		{fstype: "btrfs", mount: []string{"space_cache=v1"}},             //
		{fstype: "ext4", mkfs: []string{"/dev/vda"}},                     //
		{fstype: "ext4", mkfs: []string{"-m", "1", "/dev/vda"}},          //
		{fstype: "ext4", mkfs: []string{"-m"}},                           // no value
		{fstype: "ext4", mkfs: []string{"-m", "-F"}},                     //
		{fstype: "ext4", mkfs: []string{"-L", ""}},                       //
		{fstype: "ext4", mkfs: []string{""}},                             //
		{fstype: "ext4", mkfs: []string{"-"}},                            //
		{fstype: "ext4", mkfs: []string{"--"}},                           //
		{fstype: "xfs", mkfs: []string{"-f"}},                            //
		{fstype: "xfs", mkfs: []string{"-N"}},                            //
		{fstype: "xfs", mkfs: []string{"-d", "name=/dev/vda"}},           //
		{fstype: "xfs", mkfs: []string{"-d", "agcount=4,file=1,name=x"}}, //
		{fstype: "xfs", mkfs: []string{"-d", "size=16m"}},                //
		{fstype: "xfs", mkfs: []string{"-l", "logdev=/dev/vda"}},         //
		{fstype: "xfs", mkfs: []string{"-r", "rtdev=/dev/vda"}},          //
		{fstype: "xfs", mkfs: []string{"-p", "/etc/passwd"}},             //
		{fstype: "btrfs", mkfs: []string{"--force"}},                     //
		{fstype: "btrfs", mkfs: []string{"-r", "/etc"}},                  //
		{fstype: "btrfs", mkfs: []string{"--rootdir=/etc"}},              //
		{fstype: "btrfs", mkfs: []string{"-b", "1g"}},                    //
		{fstype: "btrfs", mkfs: []string{"--mixed=yes"}},                 //
		{fstype: "ext4", mount: []string{"remount"}},                     //
		{fstype: "ext4", mount: []string{"bind"}},                        //
		{fstype: "ext4", mount: []string{"noatime,remount"}},             //
		{fstype: "ext4", mount: []string{"journal_path=/dev/vda"}},       //
		{fstype: "ext4", mount: []string{"journal_dev=1"}},               //
		{fstype: "ext4", mount: []string{"sb=8193"}},                     //
		{fstype: "ext4", mount: []string{"noload"}},                      // mounts an inconsistent state
		{fstype: "ext4", mount: []string{"errors=panic"}},                //
		{fstype: "ext4", mount: []string{"barrier=0"}},                   //
		{fstype: "ext4", mount: []string{"nobarrier"}},                   //
		{fstype: "ext4", mount: []string{""}},                            //
		{fstype: "ext4", mount: []string{"ro=1"}},                        //
		{fstype: "ext4", mount: []string{"source=/dev/vda"}},             //
		{fstype: "ext4", mount: []string{"context"}},                     //
		{fstype: "xfs", mount: []string{"logdev=/dev/vda"}},              //
		{fstype: "xfs", mount: []string{"norecovery"}},                   //
		{fstype: "btrfs", mount: []string{"subvol=x"}},                   // another part of the file system
		{fstype: "btrfs", mount: []string{"subvolid=256"}},               //
		{fstype: "btrfs", mount: []string{"device=/dev/vda"}},            //
		{fstype: "btrfs", mount: []string{"degraded"}},                   //
		{fstype: "ext4", mount: []string{"discard="}},                    // the kernel needs a value or no "="
		{fstype: "btrfs", mount: []string{"compress="}},
		{fstype: "ext4", mount: []string{"barrier="}},
	} {
		err := CheckOptions(c.fstype, c.mkfs, c.mount)
		require.ErrorIs(t, err, ErrInvalid, "%v", c)
	}
}

func TestTheLastOfContradictoryOptionsCounts(t *testing.T) {
	for _, c := range []struct {
		options  string
		attrs    int
		flags    []string
		readOnly bool
	}{
		{"", 0, nil, false},
		{"ro", unix.MOUNT_ATTR_RDONLY, []string{"ro"}, true},
		{"ro,rw", 0, []string{"rw"}, false},
		{"rw,ro", unix.MOUNT_ATTR_RDONLY, []string{"ro"}, true},
		{"noatime,strictatime", unix.MOUNT_ATTR_STRICTATIME, nil, false},
		{"strictatime,relatime", 0, nil, false},
		{"nosuid,suid,nodev", unix.MOUNT_ATTR_NODEV, nil, false},
		{"sync,async,discard,discard", 0, []string{"async", "discard"}, false},
	} {
		p := parseOptions("ext4", splitCommas(c.options))
		assert.Equal(t, c.attrs, p.attrs, c.options)
		assert.ElementsMatch(t, append(c.flags, "errors=remount-ro"), p.flags, c.options)
		assert.Equal(t, c.readOnly, p.readOnly(), c.options)
	}
	assert.Equal(t, []string{"nouuid"}, parseOptions("xfs", []string{"nouuid"}).flags)
}

func TestAFileSystemErrorDoesNotStopTheNode(t *testing.T) {
	assert.Equal(t, []string{"errors=continue"}, parseOptions("ext4", []string{"errors=continue"}).flags)
	for name, format := range map[string][]string{"made so": {"-e", "panic"}, "set later": nil} {
		t.Run(name, func(t *testing.T) { // an adopted disk
			h := newHost(t)
			d := newDisk(t, ext4Size)
			must(t, "mkfs.ext4", append(format, "-q", d.Path)...)
			must(t, "tune2fs", "-e", "panic", "-E", "mount_opts=errors=panic", d.Path)
			for given, want := range map[string]string{"": "errors=remount-ro", "errors=continue": "errors=continue", "ro": "errors=remount-ro"} {
				stage(t, h, d, "vol", StageSpec{FSType: "ext4", Layout: LayoutRoot, MountOptions: splitCommas(given)})
				// The kernel shows only what differs from the superblock.
				shown, err := os.ReadFile("/proc/fs/ext4/" + d.Name + "/options")
				require.NoError(t, err)
				assert.Contains(t, string(shown), want+"\n", given)
				unstage(t, h, d, "vol")
			}
		})
	}
}

// samplesOf are values that a pattern of a mount option allows.
func samplesOf(pattern string) []string {
	switch pattern {
	case number, longNumber:
		return []string{"8"}
	case byteSize:
		return []string{"0", "2k"}
	}
	var samples []string
	for alternative := range strings.SplitSeq(pattern, "|") {
		switch {
		case alternative == number:
			samples = append(samples, "8")
		case !strings.ContainsAny(alternative, "[()"):
			samples = append(samples, alternative)
		}
	}
	if len(samples) == 0 {
		samples = []string{map[string]string{"[0-7]": "7", "[2-8]": "2", "[1-9][0-9]{0,3}": "4"}[pattern]}
	}
	return samples
}

func TestAVolumeIsMountedWithEveryAllowedOption(t *testing.T) {
	for fstype, ft := range fsTypes {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t)
			d := formatted(t, h, fstype)
			for round := range 5 { // the last of contradictory ones counts
				var options []string
				for key, pattern := range ft.mountOptions {
					samples := samplesOf(pattern)
					options = append(options, strings.TrimSuffix(key+"="+samples[round%len(samples)], "="))
				}
				require.NoError(t, CheckOptions(fstype, nil, options))
				stage(t, h, d, "vol", StageSpec{FSType: fstype, Layout: LayoutData, MountOptions: options})
				unstage(t, h, d, "vol")
			}
		})
	}
}

func TestAVolumeIsMountedWhateverItsMkfsOptions(t *testing.T) {
	features := func(on bool, without ...string) string {
		var all []string
		for _, f := range fsTypes["ext4"].mkfsKeys["-O"] {
			f, both := strings.CutPrefix(f, "^")
			if slices.Contains(without, f) || !on && !both {
				continue
			}
			if !on {
				f = "^" + f
			}
			all = append(all, f)
		}
		return strings.Join(all, ",")
	}
	for _, c := range []struct{ fstype, options string }{
		{"ext4", "-O " + features(true, "meta_bg", "sparse_super2", "uninit_bg")},
		{"ext4", "-O sparse_super2,meta_bg,^resize_inode -b 1024 -I 512 -J size=4"},
		{"ext4", "-O " + features(false)},
		{"xfs", "-m bigtime=0,finobt=0,inobtcount=0,reflink=0,rmapbt=0,crc=1 -i sparse=0,nrext64=0,attr=2,maxpct=50 -n size=8192,ftype=1,version=2"},
		{"xfs", "-m rmapbt=1 -b size=1k -s size=512 -l internal=1,version=2,lazy-count=1"},
		{"btrfs", "-M -d single -m single -s 4096 --csum blake2"},
		{"btrfs", "-O ^extref,^skinny-metadata,^no-holes -R free-space-tree -n 64k"},
	} {
		t.Run(c.fstype+" "+c.options, func(t *testing.T) {
			h := newHost(t)
			d := newDisk(t, sizes[c.fstype])
			spec := FormatSpec{FSType: c.fstype, Size: d.Size, Options: strings.Fields(c.options)}
			require.NoError(t, CheckFormat(t.Context(), spec))
			require.NoError(t, h.Format(t.Context(), d.Device, spec))
			stage(t, h, d, "vol", StageSpec{FSType: c.fstype, Layout: LayoutData})
			unstage(t, h, d, "vol")
		})
	}
}

func TestRetiredMountOptionsStillWork(t *testing.T) {
	for fstype, ft := range fsTypes {
		for _, option := range ft.retired {
			require.ErrorIs(t, CheckOptions(fstype, nil, []string{option}), ErrInvalid, option)
			require.NoError(t, checkMountOptions(fstype, []string{option}), option)
		}
	}
}

// Volumes of earlier versions and adopted disks may have options that are refused today.
func TestMountOptionsRefusedForOldVolumesToo(t *testing.T) {
	for _, c := range []struct{ fstype, option, says string }{
		{"ext4", "errors=panic", "stops the whole node if one volume is damaged"},
		{"ext4", "barrier=0", "loses data in a power failure"},
		{"ext4", "noatime,errors=panic", "is more than one"},
		{"ext4", "noatime\x00", "is more than one"},
		{"ext4", "context=", "is not an allowed mount option of ext4"},
		{"ext4", "journal_path=/dev/vda", "is not an allowed mount option of ext4"},
		{"xfs", "errors=panic", "is not an allowed mount option of xfs"},
		{"zfs", "noatime", `file system "zfs" is not one of btrfs, ext4, xfs`},
	} {
		err := checkMountOptions(c.fstype, []string{"rw", c.option})
		require.ErrorIs(t, err, ErrInvalid, c.option)
		require.ErrorContains(t, err, c.says, c.option)
	}
	for _, option := range []string{"errors=continue", "errors=remount-ro", "barrier=1", "barrier", "commit=5", "context=a:b:c"} {
		require.NoError(t, checkMountOptions("ext4", []string{option}), option)
	}
	assert.True(t, ReadOnly("ext4", []string{"noatime", "ro"}))
	assert.False(t, ReadOnly("ext4", []string{"ro", "rw"}))
	assert.False(t, ReadOnly("ext4", nil))
}

// FuzzOptions checks that no accepted option forces, names another device, or becomes an argument of its own.
func FuzzOptions(f *testing.F) {
	f.Add("ext4", "-m 1 -E stride=4", "noatime,ro")
	f.Add("xfs", "-dagcount=4 -L x", "nouuid")
	f.Add("btrfs", "--label=x -M", "compress=zstd")
	f.Fuzz(func(t *testing.T, fstype, mkfs, mount string) {
		args, options := strings.Fields(mkfs), strings.Split(mount, ",")
		if CheckOptions(fstype, args, options) != nil {
			return
		}
		all := fsTypes[fstype].mkfsArgs(args)
		for i, a := range all {
			assert.NotContains(t, []string{"-f", "-F", "--force", "-d/", "-n/"}, a)
			if !strings.HasPrefix(a, "-") {
				require.Positive(t, i)
				assert.True(t, strings.HasPrefix(all[i-1], "-"), "%q is an argument of its own", a)
			}
			assert.NotContains(t, a, "device=")
			assert.NotContains(t, a, "logdev=")
		}
		p := parseOptions(fstype, options)
		assert.NotContains(t, p.flags, "")
		assert.Equal(t, p.readOnly(), slices.Contains(p.flags, "ro"))
	})
}
