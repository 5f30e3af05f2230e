package providers

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhatARefusalMeansToANode(t *testing.T) {
	refusal := errors.New("no")
	for held, want := range map[Attachment]error{
		{}:                               ErrBusy,
		{State: Attached}:                ErrBusy, // it is not known where
		{Node: "a", State: Attached}:     nil,
		{Node: "a", State: Attaching}:    nil,
		{Node: "a", State: AttachFailed}: nil,
		{Node: "a", State: Detaching}:    ErrBusy,
		{Node: "b", State: Attached}:     ErrHeld,
		{Node: "b", State: Attaching}:    ErrHeld,
		{Node: "b", State: Detaching}:    ErrHeld,
		{Node: "b", State: AttachFailed}: ErrHeld,
	} {
		err := held.Refused("1", "a", refusal)
		require.ErrorIs(t, err, want)
	}
	var other *HeldError
	require.ErrorAs(t, Attachment{Node: "b", State: Attached}.Refused("1", "", refusal), &other)
	assert.Equal(t, HeldError{Volume: "1", Node: "b"}, *other)
	require.ErrorIs(t, Attachment{}.Refused("1", "", refusal), refusal)
}
