package mount

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOptionsThatAVolumeMayHave(t *testing.T) {
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

func TestOptionsThatNoVolumeMayHave(t *testing.T) {
	for _, c := range []struct {
		fstype      string
		mkfs, mount []string
	}{
		{fstype: "zfs"},
		{fstype: ""},
		{fstype: "ext4/../x"},
		{fstype: "ext4", mkfs: []string{"-F"}},                              // force
		{fstype: "ext4", mkfs: []string{"-FF"}},                             //
		{fstype: "ext4", mkfs: []string{"-jF"}},                             // hidden behind one that takes no value
		{fstype: "ext4", mkfs: []string{"-n"}},                              // only pretends
		{fstype: "ext4", mkfs: []string{"-S"}},                              // superblock only
		{fstype: "ext4", mkfs: []string{"-d", "/etc"}},                      // copies a directory of the host
		{fstype: "ext4", mkfs: []string{"-J", "device=/dev/vda"}},           // another device
		{fstype: "ext4", mkfs: []string{"-Jsize=4,device=/dev/vda"}},        //
		{fstype: "ext4", mkfs: []string{"-E", "offset=4096"}},               // not where it is looked for
		{fstype: "ext4", mkfs: []string{"-E", "stride=4,root_owner=0:0,x"}}, //
		{fstype: "ext4", mkfs: []string{"/dev/vda"}},                        //
		{fstype: "ext4", mkfs: []string{"-m", "1", "/dev/vda"}},             //
		{fstype: "ext4", mkfs: []string{"-m"}},                              // no value
		{fstype: "ext4", mkfs: []string{"-m", "-F"}},                        //
		{fstype: "ext4", mkfs: []string{"-L", ""}},                          //
		{fstype: "ext4", mkfs: []string{""}},                                //
		{fstype: "ext4", mkfs: []string{"-"}},                               //
		{fstype: "ext4", mkfs: []string{"--"}},                              //
		{fstype: "xfs", mkfs: []string{"-f"}},                               //
		{fstype: "xfs", mkfs: []string{"-N"}},                               //
		{fstype: "xfs", mkfs: []string{"-d", "name=/dev/vda"}},              //
		{fstype: "xfs", mkfs: []string{"-d", "agcount=4,file=1,name=x"}},    //
		{fstype: "xfs", mkfs: []string{"-d", "size=16m"}},                   //
		{fstype: "xfs", mkfs: []string{"-l", "logdev=/dev/vda"}},            //
		{fstype: "xfs", mkfs: []string{"-r", "rtdev=/dev/vda"}},             //
		{fstype: "xfs", mkfs: []string{"-p", "/etc/passwd"}},                //
		{fstype: "btrfs", mkfs: []string{"--force"}},                        //
		{fstype: "btrfs", mkfs: []string{"-r", "/etc"}},                     //
		{fstype: "btrfs", mkfs: []string{"--rootdir=/etc"}},                 //
		{fstype: "btrfs", mkfs: []string{"-b", "1g"}},                       //
		{fstype: "btrfs", mkfs: []string{"--mixed=yes"}},                    //
		{fstype: "ext4", mount: []string{"remount"}},                        //
		{fstype: "ext4", mount: []string{"bind"}},                           //
		{fstype: "ext4", mount: []string{"noatime,remount"}},                //
		{fstype: "ext4", mount: []string{"journal_path=/dev/vda"}},          //
		{fstype: "ext4", mount: []string{"journal_dev=1"}},                  //
		{fstype: "ext4", mount: []string{"sb=8193"}},                        //
		{fstype: "ext4", mount: []string{"noload"}},                         // would show an inconsistent state
		{fstype: "ext4", mount: []string{"errors=panic"}},                   //
		{fstype: "ext4", mount: []string{"barrier=0"}},                      //
		{fstype: "ext4", mount: []string{"nobarrier"}},                      //
		{fstype: "ext4", mount: []string{""}},                               //
		{fstype: "ext4", mount: []string{"ro=1"}},                           //
		{fstype: "ext4", mount: []string{"source=/dev/vda"}},                //
		{fstype: "ext4", mount: []string{"context"}},                        //
		{fstype: "xfs", mount: []string{"logdev=/dev/vda"}},                 //
		{fstype: "xfs", mount: []string{"norecovery"}},                      //
		{fstype: "btrfs", mount: []string{"subvol=x"}},                      // another part of the disk
		{fstype: "btrfs", mount: []string{"subvolid=256"}},                  //
		{fstype: "btrfs", mount: []string{"device=/dev/vda"}},               //
		{fstype: "btrfs", mount: []string{"degraded"}},                      //
	} {
		err := CheckOptions(c.fstype, c.mkfs, c.mount)
		require.ErrorIs(t, err, ErrInvalid, "%v", c)
	}
}

func TestOfContradictoryOptionsTheLastWins(t *testing.T) {
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
		assert.ElementsMatch(t, c.flags, p.flags, c.options)
		assert.Equal(t, c.readOnly, p.readOnly(), c.options)
	}
	assert.Equal(t, []string{"nouuid"}, parseOptions("xfs", []string{"nouuid"}).flags)
}

// FuzzOptions: whatever is accepted cannot force, name another device, or stand as an argument of its own.
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
