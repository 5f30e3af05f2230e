package standin_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/test/standin"
)

func TestWhatFailsEndsAtOnceAndIsCleanedUpAllTheSame(t *testing.T) {
	var done []string
	note := func(what string) func() { return func() { done = append(done, what) } }
	var test standin.Test
	assert.False(t, test.Try(func() {
		test.Cleanup(note("first"))
		test.Cleanup(func() { test.Fatalf("(this is meant to be said)") })
		test.Cleanup(note("last"))
		test.Fatalf("(this too)")
		note("never")()
	}))
	assert.True(t, test.Failed())
	assert.False(t, test.End())
	assert.Equal(t, []string{"last", "first"}, done)
}

func TestWhatGoesWellIsWell(t *testing.T) {
	var test standin.Test
	assert.True(t, test.Try(func() {}))
	assert.True(t, test.End())
}

func TestOtherPanicsPass(t *testing.T) {
	var test standin.Test
	assert.PanicsWithValue(t, "a defect", func() { test.Try(func() { panic("a defect") }) })
}
