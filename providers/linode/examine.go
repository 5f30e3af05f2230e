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
	if p.scopes.Load() == nil {
		return "Linode lets the token read; whether it may write cannot be tried without a change", nil
	}
	for _, needed := range []string{"volumes:read_write", "linodes:read_write"} {
		if _, lack := p.lacks(needed); lack != nil {
			refusals = append(refusals, lack)
		}
	}
	return "the token has the scopes volumes:read_write and linodes:read_write", refusals
}

// lacks returns an error if the token does not have the scope, as far as Linode has told its scopes.
func (p *Provider) lacks(needed string) (told bool, lack error) {
	all := p.scopes.Load()
	if all == nil {
		return false, nil
	}
	scopes := strings.FieldsFunc(*all, func(c rune) bool { return c == ' ' || c == ',' })
	if slices.Contains(scopes, "*") || slices.Contains(scopes, needed) {
		return true, nil
	}
	return true, sanitize.Error(fmt.Sprintf("the token lacks the scope %s: it has %s", needed, p.rest.Clean(*all)), providers.ErrDenied)
}
