package digitalocean

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/digitalocean/godo"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Refusals that this package acts upon, besides those of packages providers and managed.
var (
	errMissing  = errors.New("the resource does not exist")
	errConflict = errors.New("the name is taken, or the volume in use")
)

func isMissing(err error) bool { return errors.Is(err, errMissing) }

func isConflict(err error) bool { return errors.Is(err, errConflict) }

// found makes a missing resource providers.ErrNotFound, where it can only be the volume or snapshot that was asked for.
func found(err error) error {
	if isMissing(err) {
		return fmt.Errorf("%w: %w", providers.ErrNotFound, err)
	}
	return err
}

// words tell refusals apart. DigitalOcean documents no error codes; these are the constants of its SDK, and what its own programs
// look for.
var words = []struct {
	said   *regexp.Regexp
	means  error
	advice string
}{
	{regexp.MustCompile(`(?i)pending event`), providers.ErrBusy, ": DigitalOcean does one thing at a time with a droplet or a volume"},
	{regexp.MustCompile(`(?i)already (powered |turned )?(on|off)\b`), managed.ErrPowered, ""},
	{regexp.MustCompile(`(?i)already attached`), managed.ErrAttached, ""},
	{regexp.MustCompile(`(?i)attachment not found`), managed.ErrNotAttached, ""},
	{regexp.MustCompile(`(?i)attach more`), providers.ErrAttachLimit, ": run the service on another node"},
	{regexp.MustCompile(`(?i)not supported for this region`), providers.ErrInvalid, ": run the service in a region that has volumes"},
	{regexp.MustCompile(`(?i)limit exceeded|quota|reached .*limit`), providers.ErrNoSpace, ": remove what is not needed, or ask DigitalOcean for a higher limit"},
	{regexp.MustCompile(`(?i)already exists|attached to a droplet`), errConflict, ""},
}

// explain translates an error of the SDK. whole says that the answer has what it must have; action is what was sent, as a noun: "the
// request to delete volume 12".
func (p *Provider) explain(ctx context.Context, action string, err error, whole bool) error {
	var refused *godo.ErrorResponse
	switch {
	case err == nil && whole:
		return nil
	case err == nil:
		return p.http.Foreign(ctx, action)
	case !errors.As(err, &refused) || refused.Response == nil:
		return p.http.NoAnswer(ctx, action, err)
	}
	status := refused.Response.StatusCode
	said := fmt.Sprintf("DigitalOcean refuses %s: %q (status %d)", action, p.http.Clean(refused.Message), status)
	if refused.RequestID != "" {
		said = strings.TrimSuffix(said, ")") + ", its request " + p.http.Clean(refused.RequestID) + ")"
	}
	as := func(kind error, advice string) error { return fmt.Errorf("%w: %s%s", kind, said, advice) }
	if !strings.Contains(refused.Response.Header.Get("Content-Type"), "json") {
		return fmt.Errorf("%w: what answers %s with status %d is not DigitalOcean's API: check %s, the network and any proxy on the way", providers.ErrUnavailable, action, status, settingAPI)
	}
	switch {
	case status == http.StatusNotFound && idOf(refused) != "not_found":
		return fmt.Errorf("%w: what answers %s with status %d and %q is not DigitalOcean's API, whose errors have an id: check %s, the network and any proxy on the way", providers.ErrUnavailable, action, status, p.http.Clean(refused.Message), settingAPI)
	case status == http.StatusUnauthorized:
		return sanitize.Error(said+": the token is wrong, revoked or expired: put another into "+settingToken+", or into the file that "+settingToken+"_FILE names", providers.ErrCredentials)
	case status >= http.StatusInternalServerError:
		return as(providers.ErrUnavailable, ": this is DigitalOcean's own failure: see its status page, and try again")
	}
	for _, w := range words {
		if w.said.MatchString(refused.Message) {
			return as(w.means, w.advice)
		}
	}
	switch status {
	case http.StatusForbidden:
		return sanitize.Error(said+": the token lacks a scope: docs/digitalocean.md lists those that blockvol needs", providers.ErrDenied)
	case http.StatusNotFound:
		return as(errMissing, "")
	case http.StatusConflict:
		return as(errConflict, "")
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return as(providers.ErrInvalid, "")
	}
	return errors.New(said)
}

// idOf returns the id of an error, which the SDK drops; empty if the answer has none, so that it is not DigitalOcean's.
func idOf(refused *godo.ErrorResponse) string {
	var said struct{ ID string }
	if json.NewDecoder(refused.Response.Body).Decode(&said) != nil { // package rest lets it be read again
		return ""
	}
	return strings.ToLower(said.ID)
}
