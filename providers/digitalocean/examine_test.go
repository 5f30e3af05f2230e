package digitalocean

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
)

func TestDoctorMissesTheScopesThatItCanTry(t *testing.T) {
	scopes := documentedScopes(t)
	for _, lacks := range []string{"", "tag:read", "droplet:read", "block_storage:read"} {
		inWorld(t, cloud.Config{}, front.Config{}, func(t *testing.T, w *world) {
			node := w.node()
			w.create(w.on(node), "db")
			w.front.Restrict(w.front.Token(node), slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == lacks })...)
			w.calls()
			var codes []string
			for _, f := range w.on(node).Examine(t.Context()) {
				if f.Severity != providers.OK {
					codes = append(codes, f.Code)
				}
			}
			if lacks == "" {
				assert.Empty(t, codes)
				return
			}
			assert.Equal(t, []string{"permission-missing"}, codes, "without %s", lacks)
		})
	}
}
