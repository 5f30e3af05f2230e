package providertest

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// Sentence asserts that an error is what every error for the operator must be: one line of bounded length, with these words.
func Sentence(t *testing.T, err error, words ...string) {
	t.Helper()
	require.Error(t, err)
	for _, word := range words {
		require.ErrorContains(t, err, word)
	}
	assert.NotContains(t, err.Error(), "\n")
	assert.Less(t, len(err.Error()), 1000)
}

// AtOnce makes the calls in goroutines of their own, and waits.
func AtOnce(calls ...func()) {
	var all sync.WaitGroup
	for _, call := range calls {
		all.Go(call)
	}
	all.Wait()
}

// Attach asks for a volume to be attached to the provider's own node.
func Attach(ctx context.Context, p providers.Provider, id string) error {
	node, err := p.Node(ctx)
	if err != nil {
		return err
	}
	return p.Attach(ctx, id, node.ID)
}
