package providers

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// maxText is what a name and a value of a Record have at most, in bytes.
const maxText = 255

var recordKey = regexp.MustCompile(`^[a-z][a-z0-9-]{0,15}$`)

// CheckName refuses what is no name of a volume: Spec.Name has 1 to 255 bytes. Errors: ErrInvalid.
func CheckName(name string) error {
	if name == "" || len(name) > maxText {
		return fmt.Errorf("%w: a volume's name has 1 to %d bytes, and this one %d", ErrInvalid, maxText, len(name))
	}
	return nil
}

// CheckRecord refuses entries that Record does not allow. Errors: ErrInvalid.
func CheckRecord(record Record) error {
	for key, value := range record {
		if !recordKey.MatchString(key) || len(value) > maxText {
			return fmt.Errorf("%w: entry %q of the record has %d bytes: keys are lower-case words of up to 16, values have up to %d", ErrInvalid, key, len(value), maxText)
		}
	}
	return nil
}

// CheckOptions refuses what a specification asks for of the kinds and qualities that a cloud's volumes do not have: supports
// are those that they have, as Provider.Supports lists them. Errors: ErrInvalid.
func CheckOptions(cloud string, spec Spec, supports []string) error {
	asked := map[string]bool{
		"type": spec.Type != "", "iops": spec.IOPS != 0, "throughput": spec.Throughput != 0,
		"encrypted": spec.Encrypted, "kms-key": spec.KMSKey != "", "snapshot": spec.Snapshot != "",
	}
	for _, option := range slices.Sorted(maps.Keys(asked)) {
		if asked[option] && !slices.Contains(supports, option) {
			return fmt.Errorf("%w: volumes of %s have no %s to choose: leave it out", ErrInvalid, cloud, option)
		}
	}
	return nil
}

// CheckOnlyGrows refuses a change of anything but the size. Errors: ErrInvalid.
func CheckOnlyGrows(cloud string, change Change) error {
	if change.Type != "" || change.IOPS != 0 || change.Throughput != 0 {
		return fmt.Errorf("%w: of a volume of %s the size can be changed, and nothing else: leave type, iops and throughput out", ErrInvalid, cloud)
	}
	return nil
}

// GiB is the unit of sizes in which clouds sell.
const GiB = 1 << 30

// InGiB is a size in GiB, rounded up.
func InGiB(bytes int64) int64 {
	if bytes%GiB > 0 {
		return bytes/GiB + 1
	}
	return bytes / GiB
}

// Sizes are those that a cloud sells, in GiB.
type Sizes struct {
	Cloud       string // for people
	Least, Most int64  // of a volume
}

// Of is the least size that is sold for so many bytes, in GiB; 0 stays 0. Errors: ErrInvalid.
func (s Sizes) Of(bytes int64) (sold int64, err error) {
	switch {
	case bytes < 0 || bytes > s.Most*GiB:
		return 0, s.Refuse(bytes)
	case bytes == 0:
		return 0, nil
	}
	return max(s.Least, InGiB(bytes)), nil
}

// Refuse is the error for a size that is not sold.
func (s Sizes) Refuse(bytes int64) error {
	return fmt.Errorf("%w: the size is %d bytes, and volumes of %s have %d to %d GiB", ErrInvalid, bytes, s.Cloud, s.Least, s.Most)
}

// Shrinks is the error for a volume that shall have less than it has, which is so many GiB.
func (s Sizes) Shrinks(id string, gib int64) error {
	return fmt.Errorf("%w: volume %s has %d GiB, and volumes of %s cannot shrink: ask for more, or make a new volume and copy", ErrInvalid, id, gib, s.Cloud)
}
