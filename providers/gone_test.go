package providers

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAMissingNodeIsGoneOnlyIfThisNodeIsSeen(t *testing.T) {
	here := func(context.Context) (Node, error) { return Node{ID: "7"}, nil }
	seen, failure := false, error(nil)
	shows := func(_ context.Context, node string) (bool, error) {
		assert.Equal(t, "7", node)
		return seen, failure
	}
	state, err := Missing(t.Context(), "X", "server", "8", here, shows)
	require.NoError(t, err)
	assert.Equal(t, Unclear, state.Life)
	assert.Contains(t, state.Evidence, "neither server 8 nor this node 7")

	seen = true
	state, err = Missing(t.Context(), "X", "server", "8", here, shows)
	require.NoError(t, err)
	assert.Equal(t, NodeState{Life: Gone, Evidence: "X knows no server 8"}, state)

	failure = errors.New("no answer")
	state, err = Missing(t.Context(), "X", "server", "8", here, shows)
	require.ErrorIs(t, err, failure)
	assert.Empty(t, state.Life)
	state, err = Missing(t.Context(), "X", "server", "8", func(context.Context) (Node, error) { return Node{}, failure }, shows)
	require.ErrorIs(t, err, failure)
	assert.Empty(t, state.Life)
}
