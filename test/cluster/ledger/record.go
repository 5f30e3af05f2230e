// Package ledger proves what a volume has kept and that it had one writer at a time.
//
// A Writer appends records to a file on the volume. Each is durable before it is acknowledged to a Collector outside. The
// Collector compares all claims of writers and the contents of files with what was acknowledged.
//
// Every acknowledged record must be in the file, once and in order, and at most one unacknowledged record may follow. Records
// are chained by checksum, and a writer reads the file only when it starts. So two concurrent writers give different records
// the same number, which the Collector notices.
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

// ErrCorrupt is the error of a ledger with lost, duplicate, reordered or damaged records that a crash cannot explain.
var ErrCorrupt = errors.New("the ledger is corrupt")

// Sum is the checksum of a record and, through the chain, of all before it. Record 0 does not exist and has the sum zero.
type Sum [sha256.Size]byte

// String returns enough digits to distinguish records.
func (s Sum) String() string { return hex.EncodeToString(s[:6]) }

// MarshalText returns all digits.
func (s Sum) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(s[:])), nil }

// UnmarshalText parses the result of MarshalText.
func (s *Sum) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(s) {
		return fmt.Errorf("a checksum cannot have %d characters", len(text))
	}
	_, err := hex.Decode(s[:], text)
	return err
}

// Summary summarises a ledger. Records are numbered from 1.
type Summary struct {
	Last   uint64 `json:"last"`   // 0 for an empty ledger
	Sum    Sum    `json:"sum"`    // sum of Last
	Before Sum    `json:"before"` // sum of Last - 1
	Torn   int    `json:"torn"`   // bytes of an incomplete record at the end
}

// The format of a record, big endian, with sizes in bytes:
//
//	magic 4, length of the payload 4, number 8, time 8 (ns since 1970), previous sum 32, payload, sum 32
//
// It contains the previous sum so that a complete record can be recognised anywhere in a file.
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

// parse parses the record at the start of b. The size is 0 if there is no complete record.
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

// Verify reads a whole ledger. An incomplete or damaged last record, as after a crash, is counted in Torn and is no error. If
// it was acknowledged, Collector.Check reports it. Any other damage is ErrCorrupt.
func Verify(r io.Reader) (Summary, error) {
	s, _, err := verify(r)
	return s, err
}

// verify also returns the length of the complete records.
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

// torn returns why b, which does not start with a complete record, cannot be the result of a crash. Each record was durable
// before the next one was written, so a crash leaves one incomplete record at most, and no complete one.
func torn(b []byte) error {
	if len(b) > maxRecord {
		return errors.New("a damaged record and more bytes than one record has")
	}
	for from := 0; ; {
		found := bytes.Index(b[from:], []byte(magic))
		if found < 0 {
			return nil
		}
		from += found
		if seq, _, _, size := parse(b[from:]); size > 0 {
			return fmt.Errorf("%d bytes of a damaged record before record %d", from, seq)
		}
		from++
	}
}
