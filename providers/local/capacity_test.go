package local

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// checkLedger checks that the ledger, if there is one, is not too high. Descriptions have the reserve.
func checkLedger(t *testing.T, p *Provider) {
	t.Helper()
	l := p.readLedger()
	if l == nil {
		return
	}
	free, err := p.freeSpace()
	require.NoError(t, err)
	promised, err := p.promised()
	require.NoError(t, err)
	require.LessOrEqual(t, l.left(free), free-promised+1<<20, "the ledger is too high: %+v", l)
}

// ramDisk returns an empty file system of that size.
func ramDisk(t testing.TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.FormatInt(size, 10)))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// addHugeImage adds an image by hand that is larger than the file system. The next measurement finds it.
func addHugeImage(t *testing.T, p *Provider) {
	t.Helper()
	file := p.disks.path(p.disks.newID(), ready)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 1<<40))
}

func TestCreateReadsNoOtherImage(t *testing.T) {
	p := newMachine(t, ramDisk(t, 1<<30)).provider(t, "a", "main")
	create(t, p, "first", smallest) // measures
	addHugeImage(t, p)
	create(t, p, "second", smallest)
}

func TestTheLedgerIsMeasuredAgainWhenItCannotBeTrusted(t *testing.T) {
	for name, spoil := range map[string]func(p *Provider, l *ledger) error{
		"after an hour": func(p *Provider, l *ledger) error {
			l.Measured = l.Measured.Add(-measureEvery)
			return p.writeLedger(l)
		},
		"with the clock":     func(p *Provider, l *ledger) error { l.Measured = l.Measured.Add(time.Hour); return p.writeLedger(l) },
		"with the boot":      func(p *Provider, l *ledger) error { l.Boot = "before"; return p.writeLedger(l) },
		"when it is torn":    func(p *Provider, _ *ledger) error { return os.Truncate(p.ledgerFile(), 40) },
		"when it is removed": func(p *Provider, _ *ledger) error { return os.Remove(p.ledgerFile()) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newMachine(t, ramDisk(t, 1<<30)).provider(t, "a", "main")
			create(t, p, "first", smallest)
			addHugeImage(t, p)
			require.NoError(t, spoil(p, p.readLedger()))
			_, err := p.Create(t.Context(), providers.Spec{Name: "second", Size: smallest})
			require.ErrorIs(t, err, providers.ErrNoSpace)
		})
	}
}

// One of the engines may promise more than there is.
func TestEnginesShareTheLedger(t *testing.T) {
	m := newMachine(t, ramDisk(t, 1<<30))
	a, b := m.provider(t, "a", "main"), m.provider(t, "b", "main")
	create(t, a, "first", 300<<20)
	b.overcommit = true
	create(t, b, "second", 600<<20)
	_, err := a.Create(t.Context(), providers.Spec{Name: "third", Size: 200 << 20})
	require.ErrorIs(t, err, providers.ErrNoSpace)
	require.NoError(t, b.Delete(t.Context(), found(t, a, "first").ID))
	create(t, a, "third", 200<<20)
}

// TestTheLedgerNeverPromisesTooMuch makes random changes while volumes are written to, and either give back space or share
// the disk with another program. It also checks that what is refused does not fit.
func TestTheLedgerNeverPromisesTooMuch(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			const size = 192 << 20
			dir := ramDisk(t, size)
			p := newMachine(t, filepath.Join(dir, "volumes")).provider(t, "a", "main")
			other, err := os.Create(filepath.Join(dir, "other"))
			require.NoError(t, err)
			defer other.Close()
			rnd := rand.New(rand.NewPCG(seed, 0))
			volumes := map[string]*providers.Volume{}
			taken := int64(0) // by promises and the other program
			refused := 0
			asked := func(v *providers.Volume, more int64, err error) {
				if err == nil {
					volumes[v.Name] = v
					taken += more
					return
				}
				refused++
				require.ErrorIs(t, err, providers.ErrNoSpace)
				require.Greater(t, taken+more, int64(size-size/100-1<<20)) // descriptions and directories take some of it
			}
			for range 300 {
				name, want := fmt.Sprint("v", rnd.IntN(10)), int64(16+rnd.IntN(16))<<20
				v := volumes[name]
				change := rnd.IntN(8)
				switch {
				case v == nil && change < 4:
					v, err := p.Create(t.Context(), providers.Spec{Name: name, Size: want})
					asked(v, want, err)
				case v == nil && seed%2 == 1:
					n := int64(rnd.IntN(32)) << 20
					info, err := other.Stat()
					require.NoError(t, err)
					require.NoError(t, errors.Join(other.Truncate(0), unix.Fallocate(int(other.Fd()), 0, 0, max(n, 1))))
					taken += n - info.Size()
				case v == nil:
				case change == 0:
					require.NoError(t, p.Delete(t.Context(), v.ID))
					taken -= v.Size
					delete(volumes, name)
				case change == 1 && want > v.Size:
					got, err := p.Modify(t.Context(), v.ID, providers.Change{Size: want})
					asked(got, want-v.Size, err)
				default:
					mode := uint32(unix.FALLOC_FL_KEEP_SIZE)
					if change == 2 && seed%2 == 0 {
						mode |= unix.FALLOC_FL_PUNCH_HOLE
					}
					f, err := os.OpenFile(p.disks.path(v.ID, ready), os.O_RDWR, 0)
					require.NoError(t, err)
					err = unix.Fallocate(int(f.Fd()), mode, int64(rnd.IntN(8))<<20, int64(1+rnd.IntN(8))<<20)
					require.NoError(t, errors.Join(err, f.Close()))
				}
				checkLedger(t, p)
			}
			assert.Positive(t, refused)
		})
	}
}

func TestVolumesThatWouldNotFitAreRefused(t *testing.T) {
	for _, fstype := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) {
			dir := mounted(t, fstype, 512<<20)
			m := newMachine(t, dir)
			p := m.provider(t, "a", "main")
			v := create(t, p, "db", 200<<20)
			_, err := p.Create(t.Context(), providers.Spec{Name: "more", Size: 300 << 20})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			for _, word := range []string{"300 MiB", "200 MiB are promised", "free in " + dir, "LOCAL_OVERCOMMIT"} {
				require.ErrorContains(t, err, word)
			}
			notFound(t, p, "more")
			_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 500 << 20})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			require.Equal(t, v, found(t, p, "db"))

			// Written space is no longer promised, and no longer free.
			before, err := p.promised()
			require.NoError(t, err)
			image, err := os.OpenFile(p.disks.path(v.ID, ready), os.O_RDWR, 0)
			require.NoError(t, err)
			_, err = image.Write(make([]byte, 150<<20))
			require.NoError(t, errors.Join(err, image.Sync(), image.Close()))
			after, err := p.promised()
			require.NoError(t, err)
			assert.InDelta(t, 150<<20, before-after, 1<<20)

			// A snapshot needs the same space again, even if it is shared: the volume may be overwritten.
			_, err = p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "one"})
			require.NoError(t, err)
			_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: 150 << 20})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			_, err = p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "two"})
			require.ErrorIs(t, err, providers.ErrNoSpace)
			require.NoError(t, p.DeleteSnapshot(t.Context(), firstSnapshot(p)))
			_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: 150 << 20})
			require.NoError(t, err)

			p.overcommit = true
			create(t, p, "promises", 1<<30)
			assert.Len(t, list(t, p), 3)
		})
	}
}

func TestNothingIsLostOnAFullFileSystem(t *testing.T) {
	dir := mounted(t, "ext4", 64<<20)
	m := newMachine(t, dir)
	p := m.provider(t, "a", "main")
	p.overcommit = true
	v := create(t, p, "db", smallest)
	attach(t, p, v)
	fill, err := os.Create(filepath.Join(dir, "fill"))
	require.NoError(t, err)
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = fill.Write(make([]byte, size))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
	}
	require.NoError(t, fill.Close())

	require.ErrorIs(t, p.Mark(t.Context(), v.ID, "key", strings.Repeat("x", 255)), providers.ErrNoSpace)
	_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: smallest})
	require.ErrorIs(t, err, providers.ErrNoSpace)
	notFound(t, p, "more")
	require.Equal(t, "db", list(t, p)[0].Name)

	require.NoError(t, os.Remove(fill.Name()))
	require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
	require.NoError(t, p.Mark(t.Context(), v.ID, "key", "x"))
	create(t, p, "more", smallest)
	m.clean(t)
}
