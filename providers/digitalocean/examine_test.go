package digitalocean

import (
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
)

func TestDoctorMissesTheScopesThatItCanTry(t *testing.T) {
	scopes := documentedScopes(t)
	for _, lacks := range []string{"", "tag:read", "droplet:read", "block_storage:read", "snapshot:read", "block_storage_snapshot:read", "account:read"} {
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
			if lacks == "" || lacks == "account:read" { // which only a look at the quota needs
				assert.Empty(t, codes)
				return
			}
			assert.Equal(t, []string{"permission-missing"}, codes, "without %s", lacks)
		})
	}
}

func TestDoctorFindsAQuotaThatIsUsedUp(t *testing.T) {
	for limit, want := range map[int]string{100: "", 11: "", 10: "quota-low", 9: "quota-reached"} {
		inWorld(t, cloud.Config{}, front.Config{Volumes: limit}, func(t *testing.T, w *world) {
			node := w.node()
			for i := range 9 {
				w.create(w.on(node), "db"+strconv.Itoa(i))
			}
			found := w.on(node).Examine(t.Context())
			i := slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == "quota" })
			assert.Equal(t, want, found[i].Code)
			assert.Contains(t, found[i].Message, fmt.Sprintf("9 of %d volumes", limit))
		})
	}
}
