package driver

import (
	"context"
	"math"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

func optionsDriver() *Driver {
	c := controller.New(context.Background(), controller.Config{Provider: &fakeProvider{}})
	return &Driver{controller: c, defaultSize: 10 << 30, defaultFSType: "ext4"}
}

func TestOptionsBecomeARequest(t *testing.T) {
	r, err := optionsDriver().parseOptions("data", map[string]string{
		"size": "20", "fstype": "xfs", "type": "ssd", "mount-options": "noatime,nodev", "uid": "999", "gid": "0", "mode": "0750",
		"tags": "team=db, stage=prod", "reclaim": "retain", "mkfs-options": "-m crc=1",
	})
	require.NoError(t, err)
	assert.Equal(t, providers.Spec{
		Name: "data", Size: 20 << 30, Type: "ssd", Tags: map[string]string{"team": "db", "stage": "prod"},
		Record: providers.Record{
			"fstype": "xfs", "layout": "data", "mount-options": "noatime,nodev", "uid": "999", "gid": "0", "mode": "0750",
			"reclaim": "retain", "mkfs-options": "-m crc=1", "tags": digestOf(map[string]string{"stage": "prod", "team": "db"}),
		},
	}, r.Spec)
	set := volume.SettingsOf(r.Spec.Record)
	assert.Equal(t, 999, *set.UID)
	assert.Equal(t, 0, *set.GID)
	assert.Equal(t, os.FileMode(0o750), *set.Mode)
	assert.Equal(t, []string{"noatime", "nodev"}, set.MountOptions)
	assert.Equal(t, []string{"-m", "crc=1"}, set.MkfsOptions)
	assert.False(t, set.Formatted)
}

func TestOptionsWithoutAValueAreNotGiven(t *testing.T) {
	r, err := optionsDriver().parseOptions("data", map[string]string{"size": "", "fstype": " ", "reclaim": ""})
	require.NoError(t, err)
	assert.Equal(t, int64(10<<30), r.Spec.Size)
	assert.False(t, r.Sized)
	assert.Equal(t, "ext4", r.Spec.Record[volume.KeyFSType])
}

func TestDisksThatMayHoldDataAreMarkedFormattedFromTheStart(t *testing.T) {
	for option, value := range map[string]string{"snapshot": "snap-1", "volume-id": "vol-1"} {
		r, err := optionsDriver().parseOptions("data", map[string]string{option: value})
		require.NoError(t, err)
		set := volume.SettingsOf(r.Spec.Record)
		assert.True(t, set.Formatted, option)
		assert.Equal(t, mount.LayoutRoot, set.Layout, "what the disk does not say of its layout is the file system's root")
		assert.NotContains(t, r.Spec.Record, volume.KeyLayout, "the disk's own layout must win")
	}
}

func TestBadOptionsAreRefusedInASentence(t *testing.T) {
	for _, c := range []struct{ option, value, says string }{
		{"sise", "10", `unknown option "sise": the options are from, fstype, gid, mkfs-options, mode, mount-options, reclaim, size, snapshot, snapshot-keep, snapshot-schedule, tags, type, uid, volume-id`},
		{"Size", "10", `unknown option "Size"`},
		{"iops", "3000", `option "iops" is not available with this provider: the options are from, fstype,`},
		{"size", "ten", `must be a size in GiB like 10, or with a unit`},
		{"size", "0", `must be a size`},
		{"size", "-1", `must be a size`},
		{"size", "1.5GiB", `must be a size`},
		{"size", "10Gb5", `must be a size`},
		{"size", "99999999TiB", `option size="99999999TiB": too large: must be at most 8388607TiB`},
		{"size", "99999999999999999999", `too large`},
		{"size", "9223372036854775807TiB", `too large`},
		{"size", "1MiB", `too small for ext4`},
		{"fstype", "ntfs", `must be one of`},
		{"uid", "root", `must be a whole number`},
		{"uid", "4294967295", `must be a whole number`},
		{"gid", "-1", `must be a whole number`},
		{"mode", "rwx", `octal`},
		{"mode", "99", `octal`},
		{"mode", "17777", `octal`},
		{"reclaim", "keep", `must be delete, retain or snapshot`},
		{"tags", "a", `must be a list`},
		{"tags", "a=1,a=2", `twice`},
		{"tags", "=1", `must be a list`},
		{"mount-options", "commit=abc", `mount option "commit=abc" of ext4 has a value out of range`},
		{"mkfs-options", "-e panic", `"-e" is not an allowed option of mkfs.ext4`},
		{"mkfs-options", "-b 512", `"512" is not allowed in option -b of mkfs.ext4; allowed are 1024, 2048, 4096`},
		{"mount-options", "a\x8b", `cannot be printed`},
		{"type", "a\nb", `cannot be printed`},
		{"mkfs-options", strings.Repeat("x", 256), `longer than 255 bytes`},
	} {
		_, err := optionsDriver().parseOptions("data", map[string]string{c.option: c.value})
		if assert.Error(t, err, "%s=%s", c.option, c.value) {
			assert.Contains(t, err.Error(), c.says)
			assert.NotContains(t, err.Error(), "\n")
		}
	}
}

func TestEveryBadOptionIsNamedAtOnce(t *testing.T) {
	_, err := optionsDriver().parseOptions("data", map[string]string{"sise": "1", "uid": "x"})
	require.ErrorContains(t, err, `"sise"`)
	require.ErrorContains(t, err, `uid="x"`)
}

func TestAdoptionLeavesTheDiskAsItIs(t *testing.T) {
	for _, option := range []string{"size", "type", "snapshot"} {
		_, err := optionsDriver().parseOptions("data", map[string]string{"volume-id": "vol-1", option: "1"})
		assert.ErrorContains(t, err, "adopts a disk as it is", option)
	}
}

func TestAFileSystemThatIsThereAlreadyIsNotChosen(t *testing.T) {
	for _, from := range []string{"volume-id", "snapshot"} {
		for option, value := range map[string]string{"fstype": "xfs", "mkfs-options": "-L x"} {
			_, err := optionsDriver().parseOptions("data", map[string]string{from: "1", option: value})
			require.ErrorContains(t, err, "there is a file system already", option)
		}
		_, err := optionsDriver().parseOptions("data", map[string]string{from: "1", "mount-options": "commit=abc"})
		require.Error(t, err, "no file system has such an option")
		for _, options := range []string{"ro", "compress=zstd", "commit=5", "logbsize=64k"} {
			_, err := optionsDriver().parseOptions("data", map[string]string{from: "1", "mount-options": options})
			require.NoError(t, err, "%s: which it is, is not known yet", options)
		}
	}
}

func TestANewVolumeIsNotMountedReadOnly(t *testing.T) {
	for _, fstype := range mount.FSTypes() {
		_, err := optionsDriver().parseOptions("data", map[string]string{"fstype": fstype, "mount-options": "noatime,rw,ro"})
		require.ErrorContains(t, err, "has to be written to")
		_, err = optionsDriver().parseOptions("data", map[string]string{"fstype": fstype, "mount-options": "ro,rw"})
		require.NoError(t, err)
	}
}

func TestSizes(t *testing.T) {
	for text, bytes := range map[string]int64{
		"10": 10 << 30, "1GiB": 1 << 30, "1g": 1 << 30, "500MiB": 500 << 20, "500 m": 500 << 20, "1TB": 1e12, "2T": 2 << 40,
		"20GB": 20e9, "16777216B": 16 << 20, "5Gi": 5 << 30, "500Mi": 500 << 20, "512Ki": 512 << 10, "1Ti": 1 << 40, "5G": 5 << 30, "8388607TiB": 8388607 << 40,
	} {
		got, err := volume.ParseSize(text)
		require.NoError(t, err, text)
		assert.Equal(t, bytes, got, text)
	}
	assert.Equal(t, "10GiB", volume.FormatSize(10<<30))
	assert.Equal(t, "500MiB", volume.FormatSize(500<<20))
	assert.Equal(t, "1000000000B", volume.FormatSize(1e9))
}

func TestNamesAndDirectoriesAreOneToOne(t *testing.T) {
	names := []string{
		"a", "A", "a.b", "a/b", "a b", ".a", "..", "_a", "-a", "ö", strings.Repeat("x", 128), strings.Repeat("x", 129), strings.Repeat("x", 255),
		strings.Repeat("x", 254) + "y", "", "\x00",
	}
	seen := map[string]string{}
	for _, name := range names {
		dir := node.DirOf(name)
		assert.NotContains(t, seen, dir, "%q and %q", name, seen[dir])
		assert.NotContains(t, dir, "/")
		assert.NotEqual(t, byte('.'), dir[0])
		assert.LessOrEqual(t, len(dir), 200)
		seen[dir] = name
	}
	assert.Equal(t, "plain-Name_1.x", node.DirOf("plain-Name_1.x"))
}

func FuzzOptions(f *testing.F) {
	f.Add("size", "10")
	f.Add("mode", "0750")
	f.Add("tags", "a=b,c=d")
	f.Add("mount-options", "noatime")
	f.Fuzz(func(t *testing.T, key, value string) {
		r, err := optionsDriver().parseOptions("data", map[string]string{key: value})
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("not one sentence: %q", err)
			}
			return
		}
		if r.Spec.Size < 0 || r.Spec.Size > math.MaxInt64-1 {
			t.Fatalf("size %d", r.Spec.Size)
		}
		for k, v := range r.Spec.Record {
			if len(k) > 16 || len(v) > 255 || !utf8.ValidString(v) {
				t.Fatalf("record %q=%q does not keep the contract", k, v)
			}
		}
		volume.SettingsOf(r.Spec.Record)
	})
}

func FuzzSize(f *testing.F) {
	f.Add("10")
	f.Add("1TiB")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := volume.ParseSize(text)
		if err != nil {
			return
		}
		if n <= 0 {
			t.Fatalf("%q is %d bytes", text, n)
		}
		if back, err := volume.ParseSize(volume.FormatSize(n)); err != nil || back != n {
			t.Fatalf("%q is %d bytes, written %s, read %d: %v", text, n, volume.FormatSize(n), back, err)
		}
	})
}
