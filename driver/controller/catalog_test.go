package controller

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/providers"
)

func TestAnAnswerToAnOlderQuestionDoesNotUndoAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog(t.Context(), cloud{}, nil)
		before := &providers.Volume{ID: "vol-1", Name: "data", Size: 1 << 30}
		after := &providers.Volume{ID: "vol-1", Name: "data", Size: 2 << 30}
		asked := c.now()
		c.put(after)
		c.learn(asked, "data", before)
		assert.Equal(t, after, c.last("data"))
		c.learn(c.now(), "data", before)
		assert.Equal(t, before, c.last("data"), "an answer to a later question counts")
	})
}
