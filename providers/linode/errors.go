package linode

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// translate translates a refusal. Linode has no error codes, so this looks for words in its text; the error always has the text.
func (p *Provider) translate(action string, o outcome) error {
	said, plain := make([]string, len(o.reasons)), true // plain: it is about no field of the request
	for i, r := range o.reasons {
		said[i] = r.Reason
		if r.Field != "" {
			said[i] = r.Field + ": " + r.Reason
		}
		plain = plain && r.Field == ""
	}
	shown := p.rest.Clean(strings.Join(said, "; "))
	word := strings.ToLower(strings.Join(said, "; "))
	as := func(what error, advice string) error {
		return fmt.Errorf("%w: Linode refuses %s: %q%s", what, action, shown, advice)
	}
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(word, w) {
				return true
			}
		}
		return false
	}
	power := strings.Contains(action, "to shut down") || strings.Contains(action, "to boot")
	attaching, making := strings.Contains(action, "to attach"), strings.Contains(action, "to create")
	switch {
	case o.status == http.StatusUnauthorized:
		return sanitize.Error(fmt.Sprintf("the token is not accepted by Linode (%s): see that LINODE_TOKEN or LINODE_TOKEN_FILE holds a personal access token that has neither expired nor been revoked", shown), providers.ErrCredentials)
	case o.status == http.StatusForbidden:
		return sanitize.Error(fmt.Sprintf("the token may not do that: Linode refuses %s (%s): it needs the scopes volumes:read_write and linodes:read_write, and its user access to the cluster's volumes and Linodes", action, shown), providers.ErrDenied)
	case o.status == http.StatusNotFound:
		return fmt.Errorf("%w: Linode answers %s with %q", providers.ErrNotFound, action, shown)
	case o.status >= http.StatusInternalServerError:
		return fmt.Errorf("%w: Linode could not carry out %s (status %d, %q): try again, and see https://status.linode.com if it stays so", providers.ErrUnavailable, action, o.status, shown)
	case power && !has("busy", "migrat"):
		return as(managed.ErrPowered, "") // as far as Linode tells
	case has("busy", "must be running", "not running", "status of active", "not active", "migrat"):
		return as(providers.ErrBusy, "")
	case making && has("unique"):
		return as(managed.ErrTaken, "")
	case making && strings.HasPrefix(word, "region: "):
		return as(providers.ErrInvalid, ": only regions with Block Storage have volumes, run the service in one of them")
	case has("not attached"):
		return as(managed.ErrNotAttached, "")
	case has("already attached", "must be detached", "is attached"):
		return as(managed.ErrAttached, "")
	case attaching && has("maximum", "too many", "limit"):
		return as(providers.ErrAttachLimit, ": run the service on another node, or take a plan with more memory, which holds more volumes")
	case making && plain && has("maximum", "too many", "limit", "quota"):
		return as(providers.ErrNoSpace, ": remove what is not needed, or ask Linode for a higher limit")
	}
	return as(providers.ErrInvalid, "")
}
