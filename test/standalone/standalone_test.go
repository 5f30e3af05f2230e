package standalone_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/test/standalone"
)

func TestFatalfEndsTryAndEndStillCleansUp(t *testing.T) {
	var done []string
	note := func(what string) func() { return func() { done = append(done, what) } }
	var test standalone.T
	assert.False(t, test.Try(func() {
		test.Cleanup(note("first"))
		test.Cleanup(func() { test.Fatalf("(expected message)") })
		test.Cleanup(note("last"))
		test.Fatalf("(expected message)")
		note("never")()
	}))
	assert.True(t, test.Failed())
	assert.False(t, test.End())
	assert.Equal(t, []string{"last", "first"}, done)
}

func TestTryAndEndReportSuccess(t *testing.T) {
	var test standalone.T
	assert.True(t, test.Try(func() {}))
	assert.True(t, test.End())
}

func TestOtherPanicsAreNotRecovered(t *testing.T) {
	var test standalone.T
	assert.PanicsWithValue(t, "a defect", func() { test.Try(func() { panic("a defect") }) })
}
