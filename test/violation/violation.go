// Package violation marks what must never happen, however slow the machine: lost records, two writers, a damaged file system.
// A test run whose output shows a violation is never repeated, see test/gate.
package violation

import "fmt"

// Prefix begins the text of every violation.
const Prefix = "VIOLATION: "

// Of marks an error, unless it is nil, as a violation.
func Of(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(Prefix+"%w", err)
}

// Textf formats the text of a violation, as the message of an assertion.
func Textf(format string, args ...any) string { return fmt.Sprintf(Prefix+format, args...) }
