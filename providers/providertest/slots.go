package providertest

import (
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func slotsAreCounted(w *world) {
	a, b := w.on("a"), w.on("b")
	if _, counts := a.(providers.SlotCounter); !counts {
		w.t.Skip("the provider does not know how many disks a node can have")
	}
	slots := func(p providers.Provider) providers.Slots {
		slots, err := p.(providers.SlotCounter).Slots(w.ctx) //nolint:forcetypeassert // checked above
		require.NoError(w.t, err)
		return slots
	}
	none, others := slots(a), slots(b)
	assert.True(w.t, none.Most == 0 || none.Used < none.Most, "%v", none)
	v := w.attach(a, w.create(a, "db"))
	assert.Equal(w.t, providers.Slots{Most: none.Most, Used: none.Used + 1}, slots(a))
	web := w.attach(a, w.create(a, "web"))
	assert.Equal(w.t, providers.Slots{Most: none.Most, Used: none.Used + 2}, slots(a))
	assert.Equal(w.t, others, slots(b), "of another node")
	w.detach(a, v)
	assert.Equal(w.t, providers.Slots{Most: none.Most, Used: none.Used + 1}, slots(a))
	w.detach(a, web)
	assert.Equal(w.t, none, slots(a))
}
