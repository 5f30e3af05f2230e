// Package ledger proves what a volume kept, and that one writer at a time had it: a Writer appends records to a file on the
// volume, each made durable before it is acknowledged to a Collector outside, and the Collector compares what writers
// claim and what files hold with all that was acknowledged.
//
// Whatever happens to nodes and networks, every acknowledged record must be in the file, in order, once, and at most one
// record that is not acknowledged may follow. Records are chained by checksum, and a writer reads the file only when it
// starts. So two writers that have the volume at the same time name different records by the same number, and show.
package ledger

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"
)

// ErrCorrupt is what a ledger is that no crash explains: a record is lost, doubled, out of order, or damaged with others
// after it.
var ErrCorrupt = errors.New("the ledger is corrupt")

// Sum is the checksum of a record and, by the chain, of all before it. That of record 0, which there is not, is zero.
type Sum [sha256.Size]byte

// String is long enough to tell records apart.
func (s Sum) String() string { return hex.EncodeToString(s[:6]) }

// MarshalText writes all of it.
func (s Sum) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(s[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Sum) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(s) {
		return fmt.Errorf("%d characters are not a checksum", len(text))
	}
	_, err := hex.Decode(s[:], text)
	return err
}

// Summary is what a ledger holds. Records are numbered from 1.
type Summary struct {
	Last   uint64 `json:"last"`   // 0 if it is empty
	Sum    Sum    `json:"sum"`    // of Last
	Before Sum    `json:"before"` // of Last - 1
	Torn   int    `json:"torn"`   // bytes of an unfinished record at the end
}

// A record, all big endian:
//
//	magic 4, length of the payload 4, number 8, time 8 (ns since 1970), the sum before 32, payload, its own sum 32
//
// It names the sum before it so that it can be told for a whole record wherever it is found.
const (
	magic      = "LDGR"
	head       = len(magic) + 4 + 8 + 8 + sha256.Size
	minPayload = 16
	maxPayload = 4096
	maxRecord  = head + maxPayload + sha256.Size
)

func appendRecord(b []byte, seq uint64, at time.Time, before Sum, payload []byte) ([]byte, Sum) {
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.BigEndian.AppendUint64(b, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixNano()))
	b = append(b, before[:]...)
	b = append(b, payload...)
	sum := Sum(sha256.Sum256(b[start:]))
	return append(b, sum[:]...), sum
}

// parse reads the record that b begins with; size is 0 if it begins with none that is whole.
func parse(b []byte) (seq uint64, before, sum Sum, size int) {
	if len(b) < head || string(b[:len(magic)]) != magic {
		return 0, Sum{}, Sum{}, 0
	}
	payload := binary.BigEndian.Uint32(b[4:])
	if payload < minPayload || payload > maxPayload || len(b) < head+int(payload)+sha256.Size {
		return 0, Sum{}, Sum{}, 0
	}
	content := b[:head+int(payload)]
	sum = Sum(b[len(content):])
	if sha256.Sum256(content) != sum {
		return 0, Sum{}, Sum{}, 0
	}
	return binary.BigEndian.Uint64(b[8:]), Sum(b[24:]), sum, len(content) + sha256.Size
}

// Verify reads a ledger to its end. One unfinished or damaged record at the end is what a crash leaves: it is counted in
// Torn and is no error. If it was acknowledged, Collector.Check finds it missing. All else that is amiss is ErrCorrupt.
func Verify(r io.Reader) (Summary, error) {
	s, _, err := verify(r)
	return s, err
}

// verify also tells the length of the whole records.
func verify(r io.Reader) (s Summary, length int64, err error) {
	in := bufio.NewReaderSize(r, maxRecord+1)
	for {
		b, err := in.Peek(maxRecord + 1)
		if err != nil && !errors.Is(err, io.EOF) {
			return s, length, fmt.Errorf("reading the ledger after record %d: %w", s.Last, err)
		}
		if len(b) == 0 {
			return s, length, nil
		}
		seq, before, sum, size := parse(b)
		if size == 0 {
			if err := torn(b); err != nil {
				return s, length, fmt.Errorf("%w: after record %d, at byte %d: %w", ErrCorrupt, s.Last, length, err)
			}
			s.Torn = len(b)
			return s, length, nil
		}
		if seq != s.Last+1 || before != s.Sum {
			return s, length, fmt.Errorf("%w: record %d (%v) is followed, at byte %d, by record %d, written after %v",
				ErrCorrupt, s.Last, s.Sum, length, seq, before)
		}
		s.Last, s.Sum, s.Before = seq, sum, before
		length += int64(size)
		if _, err := in.Discard(size); err != nil {
			return s, length, err
		}
	}
}

// torn tells why b, which does not begin with a whole record, is not what a crash leaves. Each record was durable before
// the next was written, so that is one record at most, and none that is whole.
func torn(b []byte) error {
	if len(b) > maxRecord {
		return errors.New("a damaged record, and more than one record's bytes")
	}
	for from := 0; ; {
		found := bytes.Index(b[from:], []byte(magic))
		if found < 0 {
			return nil
		}
		from += found
		if seq, _, _, size := parse(b[from:]); size > 0 {
			return fmt.Errorf("%d bytes of a damaged record, and then record %d", from, seq)
		}
		from++
	}
}
