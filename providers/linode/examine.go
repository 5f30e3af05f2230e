package linode

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// tryPermissions looks at the scopes of the token, which Linode tells with each answer (API reference, "Response headers"). It makes no
// request of its own.
func (p *Provider) tryPermissions(context.Context) (tried string, refusals []error) {
	told := p.scopes.Load()
	if told == nil {
		return "Linode lets the token read; whether it may write cannot be tried without a change", nil
	}
	scopes := strings.FieldsFunc(*told, func(c rune) bool { return c == ' ' || c == ',' })
	for _, needed := range []string{"volumes:read_write", "linodes:read_write"} {
		if !slices.Contains(scopes, "*") && !slices.Contains(scopes, needed) {
			refusals = append(refusals, sanitize.Error(fmt.Sprintf("the token lacks the scope %s: it has %s", needed, p.rest.Clean(*told)), providers.ErrDenied))
		}
	}
	return "the token has the scopes volumes:read_write and linodes:read_write", refusals
}
