package local

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

func TestAReadOnlyDirectoryCanBeRead(t *testing.T) {
	dir := mounted(t, "ext4", 64<<20)
	m := newMachine(t, dir)
	v := create(t, m.provider(t, "a", "main"), "db", smallest)
	run(t, "mount", "-o", "remount,ro", dir)
	p := m.provider(t, "a", "main")
	_, err := p.Node(t.Context())
	require.NoError(t, err)
	require.Equal(t, v, found(t, p, "db"))
	require.Len(t, list(t, p), 1)
	for name, call := range map[string]func() error{
		"create": func() error {
			_, err := p.Create(t.Context(), providers.Spec{Name: "more", Size: smallest})
			return err
		},
		"attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
		"mark":   func() error { return p.Mark(t.Context(), v.ID, "key", "x") },
		"delete": func() error { return p.Delete(t.Context(), v.ID) },
	} {
		err := call()
		require.ErrorIs(t, err, unix.EROFS, name)
		require.ErrorContains(t, err, dir, name)
	}
	_, err = New(Config{Dir: filepath.Join(dir, "sub"), Node: "a", Cluster: "main"})
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, "LOCAL_DIR")
}

func TestAMissingDirectoryIsUnavailable(t *testing.T) {
	m := newMachine(t, filepath.Join(t.TempDir(), "volumes"))
	p := m.provider(t, "a", "main")
	create(t, p, "db", smallest)
	require.NoError(t, os.Rename(m.dir, m.dir+".away"))
	_, err := p.Find(t.Context(), "db")
	require.ErrorIs(t, err, providers.ErrUnavailable)
	require.NotErrorIs(t, err, providers.ErrNotFound)
	_, err = p.List(t.Context())
	require.ErrorIs(t, err, providers.ErrUnavailable)
	require.Error(t, providertest.Attach(t.Context(), p, "vol-0123456789abcdef"))
	require.NoError(t, os.Rename(m.dir+".away", m.dir))
	found(t, p, "db")
}

func TestADamagedDescriptionHarmsNoOtherVolume(t *testing.T) {
	damages := map[string]func(file string) error{
		"torn":      func(file string) error { return os.Truncate(file, 40) },
		"empty":     func(file string) error { return os.Truncate(file, 0) },
		"missing":   os.Remove,
		"of newer":  func(file string) error { return os.WriteFile(file, []byte(`{"version":2,"novelty":[]}`), 0o600) },
		"of others": func(file string) error { return os.WriteFile(file, []byte(`{"version":1,"id":"x","size":1}`), 0o600) },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			p := m.provider(t, "a", "main")
			v, other := create(t, p, "db", smallest), create(t, p, "other", smallest)
			file := p.disks.path(v.ID, ".json")
			require.NoError(t, damage(file))
			calls := map[string]func() error{
				"find":   func() error { _, err := p.Find(t.Context(), "db"); return err },
				"create": func() error { _, err := p.Create(t.Context(), providers.Spec{Name: "db"}); return err },
				"attach": func() error { return providertest.Attach(t.Context(), p, v.ID) },
				"delete": func() error { return p.Delete(t.Context(), v.ID) },
			}
			for name, call := range calls {
				err := call()
				require.ErrorIs(t, err, errDamaged, name)
				require.NotErrorIs(t, err, providers.ErrNotFound, name)
				require.ErrorContains(t, err, file, name)
			}
			volumes, err := p.List(t.Context())
			require.ErrorIs(t, err, errDamaged)
			require.ErrorContains(t, err, file)
			assert.Equal(t, []*providers.Volume{other}, volumes)

			create(t, p, "more", smallest)
			attach(t, p, other)
			require.NoError(t, p.Detach(t.Context(), other.ID, "a", false))
			_, err = os.Stat(p.disks.path(v.ID, ready))
			require.NoError(t, err, "the image stays")
		})
	}
}

func TestADescriptionOfALaterVersionIsRefusedAndSaysSo(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	file := p.disks.path(v.ID, ".json")
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	for change, why := range map[string]string{
		`"version": 2,`:                "format 2, where this one knows 1",
		`"version": 2, "novelty": [],`: "format 2, where this one knows 1",
		`"version": 2, "holder": "a",`: "format 2, where this one knows 1",
		`"version": 1, "novelty": [],`: `field "novelty"`,
	} {
		changed := strings.Replace(string(good), `"version": 1,`, change, 1)
		require.NoError(t, os.WriteFile(file, []byte(changed), 0o600))
		_, err = p.Find(t.Context(), "db")
		require.EqualError(t, err, "the description of a volume, "+file+", was written by a later version of blockvol ("+why+"): install that version again; it was not changed")
		require.ErrorIs(t, err, errDamaged)
		kept, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, changed, string(kept))
	}
	require.NoError(t, os.WriteFile(file, good, 0o600))
	found(t, p, "db")
}

func TestALostImageIsNotAMissingVolume(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	v := create(t, p, "db", smallest)
	image := p.disks.path(v.ID, ready)
	require.NoError(t, os.Rename(image, image+".aside"))
	_, err := p.Find(t.Context(), "db")
	require.ErrorIs(t, err, errLost)
	require.NotErrorIs(t, err, providers.ErrNotFound)
	require.ErrorContains(t, err, image)
	_, err = p.Create(t.Context(), providers.Spec{Name: "db"})
	require.ErrorIs(t, err, errLost)
	_, err = p.List(t.Context())
	require.ErrorIs(t, err, errLost)

	require.NoError(t, os.Rename(image+".aside", image))
	require.Equal(t, v, found(t, p, "db"))

	require.NoError(t, os.Truncate(image, smallest/2))
	require.ErrorIs(t, providertest.Attach(t.Context(), p, v.ID), errDamaged)
	require.False(t, found(t, p, "db").Held())

	require.NoError(t, os.Remove(image))
	require.NoError(t, p.Delete(t.Context(), v.ID))
	notFound(t, p, "db")
	m.clean(t)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"vol-0123456789abcdef","cluster":"main","name":"db","size":16777216,` +
		`"created":"2026-11-23T16:14:31Z","record":{"layout":"data"},"holder":{"node":"a","boot":"b","at":"2026-11-23T16:14:31Z"}}`))
	f.Add([]byte(`{"version":1,"id":"vol-0123456789abcdef","size":1,"formerly":{"cluster":"main","name":"db"}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{"version":1,"size":1} {}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			return
		}
		// What is accepted is written and read unchanged.
		s := imageDir{dir: t.TempDir(), prefix: "vol-"}
		require.NoError(t, s.make())
		m.ID = s.newID()
		require.NoError(t, s.write(m))
		again, err := s.read(m.ID)
		require.NoError(t, err)
		want, err := json.Marshal(m)
		require.NoError(t, err)
		got, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	})
}

func TestSweepKeepsTheNameOfALaterVolume(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p := m.provider(t, "a", "main")
	unfinished := &meta{Cluster: "main", Name: "db", Size: smallest}
	f, err := p.disks.begin(unfinished)
	require.NoError(t, err)
	defer f.Close() // still locked while the next volume of the name is created
	require.NoError(t, os.Remove(p.disks.link("main", "db")))
	v := create(t, p, "db", smallest)
	require.True(t, p.disks.has(unfinished.ID, making))
	f.Close()
	require.NoError(t, p.tidy(t.Context()))
	require.Equal(t, v, found(t, p, "db"))
	m.clean(t)
}

func TestAVolumeBeingCreatedOrDeletedIsNeverDamaged(t *testing.T) {
	m := newMachine(t, t.TempDir())
	p, reader := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for range 150 {
			v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: smallest})
			if err == nil {
				err = p.Delete(t.Context(), v.ID)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	id := "vol-0123456789abcdef"
	for {
		v, err := reader.Find(t.Context(), "db")
		if err == nil {
			id = v.ID
		} else {
			require.ErrorIs(t, err, providers.ErrNotFound)
		}
		if err := reader.Mark(t.Context(), id, "key", "x"); err != nil {
			require.ErrorIs(t, err, providers.ErrNotFound)
		}
		list(t, reader)
		select {
		case err := <-done:
			require.NoError(t, err)
			return
		default:
		}
	}
}

func TestAnAttachedVolumeWithoutImageIsNotDeleted(t *testing.T) {
	m := newMachine(t, t.TempDir())
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	v := create(t, a, "db", smallest)
	device := attach(t, a, v)
	defer run(t, "losetup", "-d", "/dev/"+device)
	require.NoError(t, os.Remove(a.disks.path(v.ID, ready)))
	require.ErrorIs(t, b.Delete(t.Context(), v.ID), providers.ErrHeld)
	_, err := b.Create(t.Context(), providers.Spec{Name: "db", Size: smallest})
	require.Error(t, err, "a second volume of the name")
}

func TestEmptyDirectoriesNeedNoBackup(t *testing.T) {
	m := newMachine(t, t.TempDir())
	madeWithSnapshot(t, m.provider(t, "a", "main"))
	require.NoError(t, os.Remove(filepath.Join(m.dir, "unfinished")))
	require.NoError(t, os.Remove(filepath.Join(m.dir, "snapshots", "unfinished")))
	create(t, m.provider(t, "a", "main"), "more", smallest)
}
