package recent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestAReadThatMayBeOlderThanTheAttachDoesNotDenyIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Holders
		assert.True(t, h.Denies("v", "a", time.Now()), "nothing is known")
		h.Took("v", "a")
		early := time.Now().Add(lag - 1)
		assert.False(t, h.Denies("v", "a", early))
		assert.True(t, h.Denies("v", "b", early), "another node")
		assert.True(t, h.Denies("w", "a", early), "another volume")
		time.Sleep(time.Minute)
		assert.False(t, h.Denies("v", "a", early), "what counts is when it was asked")
		assert.True(t, h.Denies("v", "a", early.Add(1)))

		h.Took("v", "a")
		h.Left("v")
		assert.True(t, h.Denies("v", "a", time.Now()))
		h.Took("v", "a")
		h.Took("v", "b")
		assert.True(t, h.Denies("v", "a", time.Now()))
		assert.False(t, h.Denies("v", "b", time.Now()))
	})
}
