// Package standalone provides a testing.T for code that runs outside a test: in a program, or in TestMain.
package standalone

import (
	"fmt"
	"os"
	"slices"
)

// T has the methods of testing.T that package engine and package cluster use. Failures go to standard error.
type T struct {
	Log func(format string, args ...any) // nil: standard error

	failed   bool
	cleanups []func()
}

// Helper does nothing.
func (t *T) Helper() {}

// Failed reports whether Fatalf has been called.
func (t *T) Failed() bool { return t.failed }

// Cleanup registers a function for End to call.
func (t *T) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

// Logf logs a message.
func (t *T) Logf(format string, args ...any) {
	if t.Log != nil {
		t.Log(format, args...)
		return
	}
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// Fatalf reports a failure and ends the function that Try runs.
func (t *T) Fatalf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	t.failed = true
	panic(t)
}

// Try calls f and reports whether f returned without a call of Fatalf.
func (t *T) Try(f func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil && p != any(t) {
			panic(p)
		}
	}()
	f()
	return true
}

// End calls the cleanup functions, the last one first, and reports whether nothing has failed.
func (t *T) End() (ok bool) {
	for len(t.cleanups) > 0 {
		last := t.cleanups[len(t.cleanups)-1]
		t.cleanups = slices.Delete(t.cleanups, len(t.cleanups)-1, len(t.cleanups))
		t.Try(last)
	}
	return !t.failed
}
