package openstack

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/openstack"
)

func TestDoctorFindsAQuotaThatIsUsedUp(t *testing.T) {
	for limit, want := range map[int64]string{100: "", 11: "", 10: "quota-low", 9: "quota-reached"} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			p := w.on(w.node())
			_, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: 9 * gib})
			require.NoError(t, err)
			found := p.Examine(t.Context())
			i := slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == "quota" })
			require.GreaterOrEqual(t, i, 0, "%v", found)
			assert.Equal(t, want, found[i].Code)
		}, func(cfg *front.Config) { cfg.Gigabytes = limit })
	}
}
