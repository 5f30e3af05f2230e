package metadata

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

// machine is a metadata service that takes so long for what it says.
type machine struct {
	id    string // "" for none
	takes time.Duration
	asked atomic.Int32
}

func (m *machine) ask(ctx context.Context) (providers.Node, error) {
	m.asked.Add(1)
	select {
	case <-time.After(m.takes):
	case <-ctx.Done():
		return providers.Node{}, ctx.Err()
	}
	if m.id == "" {
		return providers.Node{}, errors.New("no route to host")
	}
	return providers.Node{ID: m.id, Zone: "north"}, nil
}

func (m *machine) with(set string) *Identity { return NewIdentity("server", "NIMBUS_ID", set, m.ask) }

func TestAMachineIsWhatItsMetadataServiceSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, set := range []string{"", "1"} {
			m := &machine{id: "1", takes: 3 * time.Second}
			i := m.with(set)
			for range 3 {
				node, err := i.Node(t.Context())
				require.NoError(t, err)
				assert.Equal(t, providers.Node{ID: "1", Zone: "north"}, node)
			}
			assert.EqualValues(t, 1, m.asked.Load())
		}
		_, err := (&machine{}).with("").Node(t.Context())
		require.Error(t, err)
	})
}

func TestASettingThatTheMetadataServiceContradictsIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{id: "1", takes: 3 * time.Second}
		i := m.with("2")
		for range 3 {
			node, err := i.Node(t.Context())
			require.ErrorIs(t, err, providers.ErrInvalid)
			assert.Empty(t, node)
			providertest.Sentence(t, err, "NIMBUS_ID is 2", "this server is 1", "remove NIMBUS_ID")
		}
	})
}

func TestASettingStandsInForAMetadataServiceThatIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{takes: 7 * time.Second}
		i := m.with("2")
		begin := time.Now()
		for range 1000 {
			node, err := i.Node(t.Context())
			require.NoError(t, err)
			assert.Equal(t, providers.Node{ID: "2"}, node)
			time.Sleep(100 * time.Millisecond)
		}
		assert.Less(t, time.Since(begin), 112*time.Second, "the first question, and a quarter of a second of each of the others")
		assert.InDelta(t, 9, m.asked.Load(), 1)
		time.Sleep(m.takes) // the last question ends
	})
}

// The service may come up after the plugin, and slowly: what it says counts whenever it says it.
func TestAMetadataServiceThatAnswersLateIsHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{takes: 7 * time.Second}
		i := m.with("2")
		node, err := i.Node(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "2", node.ID)
		m.id = "1"
		time.Sleep(identityPause)
		_, err = i.Node(t.Context())
		require.NoError(t, err, "the question is under way")
		time.Sleep(m.takes)
		_, err = i.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid)
		m.id, m.takes = "", 0
		time.Sleep(time.Hour)
		_, err = i.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid, "it has said so")

		m = &machine{}
		i = m.with("2")
		_, err = i.Node(t.Context())
		require.NoError(t, err)
		m.id, m.takes = "1", 10*time.Millisecond
		time.Sleep(identityPause)
		_, err = i.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid, "a service that is up answers before the call goes on")
	})
}

func TestNobodyGoesOnWithASettingBeforeTheFirstQuestionHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{id: "1", takes: 7 * time.Second}
		i := m.with("2")
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := i.Node(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
		}
		_, err := i.Node(t.Context())
		require.ErrorIs(t, err, providers.ErrInvalid)
		assert.EqualValues(t, 1, m.asked.Load())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		i = m.with("1")
		_, err = i.Node(ctx)
		require.ErrorIs(t, err, context.Canceled)
		time.Sleep(m.takes) // the question ends
		_, err = i.Node(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
}
