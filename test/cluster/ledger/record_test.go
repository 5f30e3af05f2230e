package ledger

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// made returns the records of a ledger. They have the minimum size.
func made(n int, seed uint64) (records [][]byte) {
	source := rand.New(rand.NewPCG(seed, 0))
	var before Sum
	for i := range n {
		payload := make([]byte, minPayload+source.IntN(8))
		for j := range payload {
			payload[j] = byte(source.Uint32())
		}
		var record []byte
		record, before = appendRecord(nil, uint64(i+1), time.Unix(int64(i), 0), before, payload)
		records = append(records, record)
	}
	return records
}

func joined(records ...[]byte) []byte { return bytes.Join(records, nil) }

func verified(t *testing.T, b []byte) Summary {
	t.Helper()
	s, err := Verify(bytes.NewReader(b))
	require.NoError(t, err)
	return s
}

func TestVerifyReadsWhatWasWritten(t *testing.T) {
	assert.Equal(t, Summary{}, verified(t, nil))
	records := made(3, 1)
	two := verified(t, joined(records[:2]...))
	three := verified(t, joined(records...))
	assert.EqualValues(t, 3, three.Last)
	assert.Equal(t, two.Sum, three.Before)
	assert.Zero(t, three.Torn)

	_, err := Verify(io.MultiReader(bytes.NewReader(records[0]), iotest.ErrReader(assert.AnError)))
	require.ErrorIs(t, err, assert.AnError)
	require.NotErrorIs(t, err, ErrCorrupt)
}

func TestTruncationIsFoundAtEveryByte(t *testing.T) {
	records := made(3, 1)
	whole := joined(records[:2]...)
	want := verified(t, whole)
	for n := 1; n < len(records[2]); n++ {
		want.Torn = n
		assert.Equal(t, want, verified(t, joined(whole, records[2][:n])))
	}
	// The length may be on the disk without the content.
	want.Torn = len(records[2])
	for n := range records[2] {
		cut := joined(whole, records[2][:n], make([]byte, len(records[2])-n))
		if !bytes.HasSuffix(cut, records[2]) {
			assert.Equal(t, want, verified(t, cut))
		}
	}
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	records := made(5, 1)
	ledger := joined(records...)
	lastBegins := len(ledger) - len(records[4])
	for i := range ledger {
		for bit := range 8 {
			ledger[i] ^= 1 << bit
			s, err := Verify(bytes.NewReader(ledger))
			if i >= lastBegins { // in the last record, it looks like a crash
				require.NoError(t, err)
				require.EqualValues(t, 4, s.Last, "byte %d", i)
				require.Positive(t, s.Torn)
			} else {
				require.ErrorIs(t, err, ErrCorrupt, "byte %d", i)
			}
			ledger[i] ^= 1 << bit
		}
	}
}

func TestDamageThatNoCrashCausesIsCorrupt(t *testing.T) {
	r, other := made(4, 1), made(4, 2)
	misnumbered, _ := appendRecord(nil, 3, time.Now(), verified(t, r[0]).Sum, make([]byte, minPayload))
	for name, ledger := range map[string][]byte{
		"one lost":                        joined(r[0], r[2], r[3]),
		"the first lost":                  joined(r[1], r[2]),
		"one duplicated":                  joined(r[0], r[1], r[1], r[2]),
		"the last duplicated":             joined(r[0], r[1], r[1]),
		"two swapped":                     joined(r[0], r[2], r[1], r[3]),
		"one of another ledger":           joined(r[0], other[1], r[2]),
		"the last of another ledger":      joined(r[0], r[1], other[2]),
		"one with another number":         joined(r[0], misnumbered),
		"an incomplete one in the middle": joined(r[0], r[1][:40], r[2]),
		"one of zeros in the middle":      joined(r[0], make([]byte, len(r[1])), r[2]),
		"more zeros than a record has":    joined(r[0], make([]byte, maxRecord+1)),
	} {
		_, err := Verify(bytes.NewReader(ledger))
		require.ErrorIs(t, err, ErrCorrupt, name)
	}
}

// FuzzDamage checks that a damaged ledger is never taken for the same one, and never read as longer.
func FuzzDamage(f *testing.F) {
	records := made(6, 1)
	ledger := joined(records...)
	sums := map[Sum]uint64{{}: 0}
	for i := range records {
		s, err := Verify(bytes.NewReader(joined(records[:i+1]...)))
		require.NoError(f, err)
		sums[s.Sum] = s.Last
	}
	f.Add(uint(10), uint(4), []byte{1})
	f.Add(uint(len(records[0])), uint(len(records[1])), []byte{})
	f.Add(uint(len(ledger)), uint(0), records[5])
	f.Add(uint(len(ledger)-3), uint(3), make([]byte, 50))
	f.Fuzz(func(t *testing.T, at, remove uint, insert []byte) {
		at %= uint(len(ledger) + 1)
		remove %= uint(len(ledger)) - at + 1
		damaged := slices.Concat(ledger[:at], insert, ledger[at+remove:])
		s, err := Verify(bytes.NewReader(damaged))
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		last, known := sums[s.Sum]
		require.True(t, known)
		require.Equal(t, last, s.Last)
		if s.Last == 6 && s.Torn == 0 {
			require.Equal(t, ledger, damaged)
		}
	})
}
