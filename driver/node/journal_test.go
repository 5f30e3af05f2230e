package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
)

func testEntry(name string, ids ...string) *Entry {
	e := &Entry{Version: journalVersion, Boot: "boot", Name: name, Volume: "vol-1", Serial: "serial-1", CreatedAt: time.Unix(1e9, 0).UTC()}
	for _, id := range ids {
		e.Uses = append(e.Uses, Use{Kind: Docker, ID: id})
	}
	return e
}

func TestTheJournalComesBackAsWritten(t *testing.T) {
	j, err := OpenJournal(filepath.Join(t.TempDir(), "journal"))
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("one", "1")))
	require.NoError(t, j.Put(testEntry("one", "1", "2")))
	require.NoError(t, j.Put(testEntry("sla/sh", "3")))
	require.NoError(t, j.Put(testEntry("gone")))
	require.NoError(t, j.Remove("gone"))
	require.NoError(t, j.Remove("gone"), "twice")
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Empty(t, loaded.Damaged)
	assert.ElementsMatch(t, []*Entry{testEntry("one", "1", "2"), testEntry("sla/sh", "3")}, loaded.Entries)
}

func TestUsesAreASet(t *testing.T) {
	a, b := Use{Kind: Docker, ID: "a"}, Use{Kind: Docker, ID: "b"}
	e := testEntry("one").with(b, mount.Device{}).with(a, mount.Device{}).with(b, mount.Device{})
	assert.Equal(t, []string{"a", "b"}, e.IDs())
	assert.True(t, e.Has(b))
	assert.False(t, e.Has(Use{Kind: "other", ID: "b"}), "another kind")
	e = e.without(b).without(b).without(Use{Kind: Docker, ID: "c"})
	assert.Equal(t, []string{"a"}, e.IDs())
	assert.False(t, e.Has(b))
}

func TestADamagedEntryIsSetAsideAndTheOthersStand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(dir)
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("good", "1")))
	for name, content := range map[string]string{
		"empty.json": "", "cut.json": `{"version":1,"name":"cut"`, "zero.json": `{"version":0,"name":"zero","volume":"v","serial":"s"}`,
		"other.json":     `{"version":1,"name":"somebody","volume":"v","serial":"s"}`,
		"nothing.json":   `{"version":1}`,
		"half.json.part": `{"version":1`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Equal(t, []*Entry{testEntry("good", "1")}, loaded.Entries)
	assert.Len(t, loaded.Damaged, 5)
	for _, problem := range loaded.Damaged {
		assert.Contains(t, problem.Error(), dir)
	}
	_, err = os.Stat(filepath.Join(dir, "cut.json.damaged"))
	require.NoError(t, err, "evidence is kept")
	loaded, err = j.Load()
	require.NoError(t, err)
	assert.Empty(t, loaded.Damaged, "it is reported once")
}

func TestWhateverStandsInTheJournalHarmsOneVolumeOnly(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"a directory":       func(path string) error { return os.Mkdir(path, 0o700) },
		"a link to nothing": func(path string) error { return os.Symlink("nowhere", path) },
		"a link to an entry": func(path string) error {
			elsewhere := filepath.Join(filepath.Dir(path), "elsewhere")
			content := []byte(`{"version":1,"boot":"boot","name":"bad","volume":"v","serial":"s"}`)
			return errors.Join(os.WriteFile(elsewhere, content, 0o600), os.Symlink(elsewhere, path))
		},
		"a pipe": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a pipe that somebody writes to": func(path string) error {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				return err
			}
			writer, err := os.OpenFile(path, os.O_RDWR, 0)
			t.Cleanup(func() { assert.NoError(t, writer.Close()) })
			return err
		},
		"a device":            func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, 5<<8) }, // /dev/tty
		"a file out of order": func(path string) error { return os.WriteFile(path, []byte{0}, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "journal")
			j, err := OpenJournal(dir)
			require.NoError(t, err)
			require.NoError(t, j.Put(testEntry("good", "1")))
			path := filepath.Join(dir, "bad.json")
			if err := put(path); errors.Is(err, unix.EPERM) {
				t.Skip("making a device needs root")
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, os.WriteFile(path+".damaged", []byte("the first"), 0o600))
			require.NoError(t, os.WriteFile(path+".damaged.2", []byte("the second"), 0o600))

			loaded, err := j.Load()
			require.NoError(t, err)
			assert.Equal(t, []*Entry{testEntry("good", "1")}, loaded.Entries)
			require.Len(t, loaded.Damaged, 1)
			assert.Contains(t, loaded.Damaged[0].Error(), path)
			_, err = os.Lstat(path + ".damaged.3")
			require.NoError(t, err, "evidence is kept")
			for file, content := range map[string]string{".damaged": "the first", ".damaged.2": "the second"} {
				kept, err := os.ReadFile(path + file)
				require.NoError(t, err)
				assert.Equal(t, content, string(kept), "earlier evidence is kept too")
			}

			require.NoError(t, j.Put(testEntry("bad", "2")), "its volume can be used again")
			require.NoError(t, put(path+".part"))
			require.NoError(t, j.Put(testEntry("bad", "3")), "though that is in the way of the next write")
			loaded, err = j.Load()
			require.NoError(t, err)
			assert.Empty(t, loaded.Damaged)
			assert.ElementsMatch(t, []*Entry{testEntry("good", "1"), testEntry("bad", "3")}, loaded.Entries)
		})
	}
}

func TestAnEntryThatCannotBeReadOrMovedHarmsOneVolumeOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a file that cannot be read needs root")
	}
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(dir)
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("good", "1")))
	require.NoError(t, j.Put(testEntry("bad", "2")))
	bad := filepath.Join(dir, "bad.json")
	require.NoError(t, unix.Mount("/proc/self/mem", bad, "", unix.MS_BIND, "")) // EIO at its first byte
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(bad, 0)) })
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Equal(t, []*Entry{testEntry("good", "1")}, loaded.Entries)
	require.Len(t, loaded.Damaged, 2)
	require.ErrorIs(t, loaded.Damaged[0], unix.EIO)
	require.ErrorContains(t, loaded.Damaged[1], bad+" could not be set aside")
	require.NoError(t, j.Put(testEntry("good", "3")))
}

func TestAJournalOnAReadOnlyOrFullDiskSaysSo(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T, dir string){
		"read-only file system": func(t *testing.T, dir string) {
			require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""))
		},
		"no space left on device": func(t *testing.T, dir string) {
			require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
			require.NoError(t, os.Mkdir(filepath.Join(dir, "journal"), 0o700))
			fill, err := os.Create(filepath.Join(dir, "fill"))
			require.NoError(t, err)
			for err == nil {
				_, err = fill.Write(make([]byte, 4096))
			}
			require.NoError(t, fill.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Getuid() != 0 {
				t.Skip("mounting a file system to fill needs root")
			}
			dir := t.TempDir()
			mount(t, dir)
			t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
			j, err := OpenJournal(filepath.Join(dir, "journal"))
			if err == nil {
				err = j.Put(testEntry("one", "1"))
			}
			require.ErrorContains(t, err, name)
			if errors.As(err, new(*volume.Error)) { // else it could not be opened
				require.ErrorIs(t, err, volume.Unavailable)
				require.ErrorContains(t, err, "; make room or repair the state directory on this node")
			}
			files, err := filepath.Glob(filepath.Join(dir, "journal", "*"))
			require.NoError(t, err)
			assert.Empty(t, files, "half a file is left")
		})
	}
}

func TestAFailedWriteLeavesTheOldEntry(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a file system to fill needs root")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	j, err := OpenJournal(filepath.Join(dir, "journal"))
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("one", "1")))
	fill, err := os.Create(filepath.Join(dir, "fill"))
	require.NoError(t, err)
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	require.NoError(t, fill.Close())
	require.Error(t, j.Put(testEntry("one", "1", "2")))
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Empty(t, loaded.Damaged)
	assert.Equal(t, []*Entry{testEntry("one", "1")}, loaded.Entries)
	require.NoError(t, j.Remove("one"), "a full disk does not keep a volume from being released")
}

func TestAJournalThatIsGoneOrOddSaysSo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(dir)
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("one", "1", "1")))
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Empty(t, loaded.Damaged)
	assert.Equal(t, []*Entry{testEntry("one", "1")}, loaded.Entries, "uses are a set")
	require.NoError(t, j.Remove("one"))

	require.NoError(t, os.Remove(dir))
	_, err = j.Load()
	require.ErrorContains(t, err, "the journal cannot be read")
	require.ErrorContains(t, j.Put(testEntry("one", "1")), "the journal cannot be written")
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	require.ErrorContains(t, j.Remove("one"), "the journal cannot be written")
	require.ErrorContains(t, j.Put(testEntry("one", "1")), "the journal cannot be written")
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"b","name":"n","volume":"v","serial":"s","ids":["2","1","1"]}`))
	f.Add([]byte(`{"version":1`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decodeEntry(data)
		if err != nil {
			return
		}
		if e.Name == "" || e.Volume == "" || e.Serial == "" || e.Version != journalVersion {
			t.Fatalf("accepted %q", data)
		}
		for _, use := range e.Uses {
			if !e.Has(use) {
				t.Fatalf("use %v is lost in %q", use, data)
			}
		}
	})
}

// The files in testdata/v1 were written by the last version that wrote them.
func TestTheJournalOfTheVersionBeforeIsReadAndCarriedOver(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	require.NoError(t, os.CopyFS(dir, os.DirFS("testdata/v1")))
	j, err := OpenJournal(dir)
	require.NoError(t, err)
	loaded, err := j.Load()
	require.NoError(t, err)
	assert.Empty(t, loaded.Damaged)
	want := []*Entry{
		{
			Version: journalVersion, Boot: "b", Name: "data", Volume: "vol-1", Serial: "vol1", Ours: true, CreatedAt: time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC),
			Device: mount.Device{Name: "nvme1n1", Path: "/dev/nvme1n1", Major: 259, Minor: 3, Size: 1 << 30, Serial: "vol1"},
			Uses:   []Use{{Kind: Docker, ID: "1f"}, {Kind: Docker, ID: "2e"}},
		},
		{Version: journalVersion, Boot: "b", Name: "free/1", Volume: "vol-2", Serial: "vol2", Releasing: true, Formatting: true},
	}
	assert.ElementsMatch(t, want, loaded.Entries)
	for _, e := range want {
		require.NoError(t, j.Put(e))
	}
	loaded, err = j.Load()
	require.NoError(t, err)
	assert.ElementsMatch(t, want, loaded.Entries)
}

func TestAnEntryOfALaterVersionIsLeftAsItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(dir)
	require.NoError(t, err)
	require.NoError(t, j.Put(testEntry("good", "1")))
	later := fmt.Sprintf(`{"version":%d,"name":"later","uses":{"1":"of another kind"},"device":7}`, journalVersion+1)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "later.json"), []byte(later), 0o600))
	for range 2 {
		loaded, err := j.Load()
		require.NoError(t, err)
		assert.Equal(t, []*Entry{testEntry("good", "1")}, loaded.Entries)
		assert.Empty(t, loaded.Damaged)
		require.ErrorContains(t, loaded.Newer["later"], "written by a later version of blockvol (version 3, where this one knows 2); install that version again")
		kept, err := os.ReadFile(filepath.Join(dir, "later.json"))
		require.NoError(t, err)
		assert.Equal(t, later, string(kept))
	}
}
