package providertest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// Identity checks, in a bubble of testing/synctest, that a setting makes no node of the cloud another one. Start starts a process,
// with the setting at that value, on the node that is self according to its metadata service; mute makes that service silent.
func Identity(t *testing.T, setting, self, other string, start func(set string) providers.Provider, mute func() (unmute func())) {
	t.Helper()
	refused := func(p providers.Provider) {
		t.Helper()
		_, err := p.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid)
		Sentence(t, err, setting+" is "+other, self, "remove "+setting)
	}
	known := func(p providers.Provider, id string) {
		t.Helper()
		node, err := p.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, id, node.ID)
	}
	contradicted := start(other)
	refused(contradicted)
	known(start(self), self)

	unmute := mute()
	refused(contradicted)
	late, right := start(other), start(self)
	known(late, other)
	known(right, self)
	time.Sleep(time.Minute)
	known(late, other)
	unmute()
	time.Sleep(time.Minute)
	refused(late)
	known(right, self)
	defer mute()()
	refused(late)
}
