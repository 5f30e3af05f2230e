package providers

import (
	"fmt"
	"regexp"
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
