// Package standin stands in for a test where there is none: in a program, or around all tests of a package.
package standin

import (
	"fmt"
	"os"
	"slices"
)

// Test has what engines and clusters need of a test. What fails is said on standard error.
type Test struct {
	Log func(format string, args ...any) // nil: standard error

	failed   bool
	cleanups []func()
}

// Helper does nothing.
func (t *Test) Helper() {}

// Failed tells whether anything has failed.
func (t *Test) Failed() bool { return t.failed }

// Cleanup has a function called by End.
func (t *Test) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// Logf says what may be of interest.
func (t *Test) Logf(format string, args ...any) {
	if t.Log != nil {
		t.Log(format, args...)
		return
	}
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Fatalf says what has failed and ends what Try runs.
func (t *Test) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	t.failed = true
	panic(t)
}

// Try does something, and tells whether it came to its end, which Fatalf would have prevented.
func (t *Test) Try(do func()) (well bool) {
	defer func() {
		if stopped := recover(); stopped != nil && stopped != any(t) {
			panic(stopped)
		}
	}()
	do()
	return true
}

// End cleans up, the last thing first, and tells whether nothing has ever failed.
func (t *Test) End() (well bool) {
	for len(t.cleanups) > 0 {
		last := t.cleanups[len(t.cleanups)-1]
		t.cleanups = slices.Delete(t.cleanups, len(t.cleanups)-1, len(t.cleanups))
		t.Try(last)
	}
	return !t.failed
}
