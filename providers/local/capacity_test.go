package local

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

// neverTooMuch asserts that the ledger, if there is one, has no more to promise than there is.
func neverTooMuch(t *testing.T, p *Provider) {
	t.Helper()
	l := p.readLedger()
	if l == nil {
		return
	}
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(p.dir, &st))
	free := int64(st.Bavail) * st.Bsize
	promised, err := p.promised()
	require.NoError(t, err)
	require.LessOrEqual(t, l.left(free), free-promised, "the ledger has more to promise than there is: %+v", l)
}

// ramDisk returns an empty directory with room for that many bytes.
func ramDisk(t testing.TB, size int64) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+strconv.FormatInt(size, 10)))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

// overTheRest is an image that somebody put there by hand, larger than the file system. Whoever measures the space finds it.
func overTheRest(t *testing.T, p *Provider) {
	t.Helper()
	file := p.disks.path(p.disks.newID(), ready)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 1<<40))
}

func TestACreateLooksAtNoOtherImage(t *testing.T) {
	p := newMachine(t, ramDisk(t, 1<<30)).provider(t, "a", "main")
	create(t, p, "first", smallest) // measures
	overTheRest(t, p)
	create(t, p, "second", smallest)
}

func TestWhatIsKnownOfTheSpaceExpires(t *testing.T) {
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
			overTheRest(t, p)
			require.NoError(t, spoil(p, p.readLedger()))
			_, err := p.Create(t.Context(), providers.Spec{Name: "second", Size: smallest})
			require.ErrorIs(t, err, providers.ErrNoSpace)
		})
	}
}

// Engines that share a directory have one ledger, also if one of them may promise more than there is.
func TestAnEngineKnowsWhatAnotherHasPromised(t *testing.T) {
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

// TestTheLedgerNeverHasMoreToPromiseThanThereIs makes random changes while volumes are written to, and either give back space
// or share the disk with another program. What is refused does not fit.
func TestTheLedgerNeverHasMoreToPromiseThanThereIs(t *testing.T) {
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
				neverTooMuch(t, p)
			}
			assert.Positive(t, refused)
		})
	}
}
