// Package violation marks results that must never occur, however slow the machine: lost records, two writers, a damaged file
// system.
//
// Test runs with a violation in their output are not repeated, see test/gate.
package violation

import "fmt"

// Prefix is the start of every violation.
const Prefix = "VIOLATION: "

// Of marks err as a violation, unless it is nil.
func Of(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(Prefix+"%w", err)
}

// Textf formats a violation as the message of an assertion.
func Textf(format string, args ...any) string { return fmt.Sprintf(Prefix+format, args...) }
