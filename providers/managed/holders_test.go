package managed

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestAnAnswerOlderThanTheAttachDoesNotDenyIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holders
		assert.True(t, h.denies("v", "a", time.Now()), "nothing is known")
		h.took("v", "a")
		early := time.Now().Add(providers.MaxStale - 1)
		assert.False(t, h.denies("v", "a", early))
		assert.True(t, h.denies("v", "b", early), "another node")
		assert.True(t, h.denies("w", "a", early), "another volume")
		assert.True(t, h.confirms("v", "a", early))
		time.Sleep(time.Minute)
		assert.False(t, h.denies("v", "a", early), "what counts is when it was asked")
		assert.True(t, h.denies("v", "a", early.Add(1)))

		h.took("v", "a")
		h.left("v", "a")
		assert.True(t, h.denies("v", "a", time.Now()))
		h.took("v", "a")
		h.took("v", "b")
		assert.True(t, h.denies("v", "a", time.Now()))
		assert.False(t, h.denies("v", "b", time.Now()))
	})
}

func TestAnAnswerOlderThanTheDetachConfirmsNoAttachment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holders
		here, refusal := providers.Attachment{Node: "a", State: providers.Attached}, errors.New("attached already")
		require.NoError(t, h.refused(here, "v", "a", time.Now(), refusal), "nothing is known")
		h.left("v", "a")
		early := time.Now().Add(providers.MaxStale - 1)
		err := h.refused(here, "v", "a", early, refusal)
		require.ErrorIs(t, err, providers.ErrBusy)
		require.ErrorIs(t, err, refusal)
		require.NoError(t, h.refused(here, "v", "a", early.Add(1), refusal))
		require.NoError(t, h.refused(here, "w", "a", early, refusal), "another volume")
		there := providers.Attachment{Node: "b", State: providers.Attached}
		require.ErrorIs(t, h.refused(there, "v", "a", early, refusal), providers.ErrHeld)
		assert.True(t, h.confirms("v", "b", early), "another node")
		h.took("v", "a")
		require.NoError(t, h.refused(here, "v", "a", early, refusal), "it is attached again")
	})
}

func TestOldAttachesAndDetachesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holders
		for i := range 1000 {
			h.left(strconv.Itoa(i), "a")
		}
		time.Sleep(forgotten + 1)
		h.took("v", "a")
		assert.Len(t, h.last, 1)
	})
}
