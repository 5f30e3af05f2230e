package hetzner

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
)

// Refusals that this package acts upon, besides those of packages providers and managed.
var (
	errServerLocked = fmt.Errorf("%w: another change of the server is under way", providers.ErrBusy)
	errProtected    = errors.New("volume is protected from deletion")
	errTaken        = fmt.Errorf("%w: %w at Hetzner Cloud", providers.ErrInvalid, managed.ErrTaken)
	errLimit        = fmt.Errorf("%w: a limit is reached", providers.ErrNoSpace)
)

// refusal is an error that Hetzner Cloud itself answered with.
type refusal struct {
	kind   error  // what it means, nil if nothing in particular
	said   string // in Hetzner's words
	advice string // what to do, may be empty
	about  error  // providers.ErrCredentials or ErrDenied, which the text does not name; or nil
}

func (r *refusal) Error() string {
	text := r.said
	if r.kind != nil {
		text = r.kind.Error() + ": " + text
	}
	if r.advice != "" {
		text += ": " + r.advice
	}
	return text
}

func (r *refusal) Unwrap() error { return r.kind }

func (r *refusal) Is(target error) bool { return r.about != nil && target == r.about }

// explain translates an error of send into the contract's errors and a sentence for the operator.
func (p *Provider) explain(ctx context.Context, request string, err error) error {
	var said *apiError
	if !errors.As(err, &said) {
		return p.client.NoAnswer(ctx, request, err)
	}
	return p.refused("Hetzner Cloud refuses "+request, said.code, said.message)
}

// failed explains an action that ended in an error.
func (p *Provider) failed(change string, a *schema.Action) error {
	var said schema.ActionError
	if a.Error != nil {
		said = *a.Error
	}
	return p.refused("Hetzner Cloud could not "+change, said.Code, said.Message)
}

// refused translates an error code (API reference, "Errors").
func (p *Provider) refused(what, code, message string) error {
	r := &refusal{said: fmt.Sprintf("%s: %s (%s)", what, p.client.Clean(message), p.client.Clean(code))}
	switch code {
	case "unauthorized":
		r.about = providers.ErrCredentials
		r.advice = fmt.Sprintf("the token is wrong, or has been revoked: make one in the project's console, and set %s or the file that %s_FILE names", tokenSetting, tokenSetting)
	case "forbidden", "token_readonly":
		r.about = providers.ErrDenied
		r.advice = "the token may not do that: make one with the permission to read and write"
	case "not_found":
		r.kind = providers.ErrNotFound
	case "locked":
		r.kind = managed.ErrVolumeBusy
		if strings.Contains(message, "server") && !strings.Contains(message, "volume") {
			r.kind = errServerLocked
		}
	case "conflict", "maintenance", "unavailable", "resource_unavailable", "timeout", "bad_gateway":
		r.kind = providers.ErrBusy
	case "volume_already_attached":
		r.kind = managed.ErrAttached
	case "protected":
		r.kind = errProtected
	case "uniqueness_error":
		r.kind = errTaken
	case "resource_limit_exceeded", "limit_exceeded_error", "limit_reached":
		r.kind, r.advice = errLimit, "remove what is not needed, or ask Hetzner for a higher limit"
	case "no_space_left_in_location":
		r.kind, r.advice = providers.ErrNoSpace, "try again later, or another location with -o zone=…"
	case "invalid_input", "json_error", "unsupported_error":
		r.kind = providers.ErrInvalid
	case "resource_locked":
		r.advice = "Hetzner's support has to unlock it"
	}
	return r
}
