package linode

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
)

func TestDoctorNamesTheScopesThatTheTokenLacks(t *testing.T) {
	for _, c := range []struct {
		scopes []string
		lacks  []string
	}{
		{nil, nil},
		{[]string{"volumes:read_write", "linodes:read_write"}, nil},
		{[]string{"volumes:read_write", "linodes:read_only"}, []string{"linodes:read_write"}},
		{[]string{"volumes:read_only", "linodes:read_write"}, []string{"volumes:read_write"}},
		{[]string{"volumes:read_only", "linodes:read_only"}, []string{"volumes:read_write", "linodes:read_write"}},
		{[]string{"volumes:read_write"}, []string{"linodes:read_write"}}, // Linode refuses the first question
	} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			node := w.node()
			if c.scopes != nil {
				w.front.Restrict(w.front.Token(node), c.scopes...)
			}
			var refused []providers.Finding
			for _, f := range w.on(node).Examine(t.Context()) {
				if f.Severity != providers.OK {
					assert.Equal(t, "permission-missing", f.Code)
					refused = append(refused, f)
				}
			}
			require.Len(t, refused, len(c.lacks), "%v: %v", c.scopes, refused)
			for i, scope := range c.lacks {
				assert.Contains(t, refused[i].Message, scope)
			}
		})
	}
}
