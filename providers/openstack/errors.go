package openstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// refusal is an answer that refuses a request. The sentinel is its meaning for any request; the caller may know more.
type refusal struct {
	status   int
	code     string // the cloud's: "itemNotFound"
	message  string // the cloud's, may contain secrets
	text     string // for the operator
	sentinel error  // may be nil
}

func (e *refusal) Error() string { return e.text }
func (e *refusal) Unwrap() error { return e.sentinel }

// refused returns whether err is a refusal with one of these statuses.
func refused(err error, statuses ...int) bool {
	var r *refusal
	return errors.As(err, &r) && slices.Contains(statuses, r.status)
}

// says returns whether the message of a refusal contains these words, in lower case.
func says(err error, words string) bool {
	var r *refusal
	return errors.As(err, &r) && strings.Contains(strings.ToLower(r.message), words)
}

// missing returns whether Nova or Cinder itself does not know that ID. A 404 may also be about a path, or from a proxy.
func missing(err error, id string) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == http.StatusNotFound && r.code == "itemNotFound" && says(err, id)
}

// unknown returns the error for another 404: it proves nothing about the ID.
func unknown(kind, id string, err error) error {
	var r *refusal
	if errors.As(err, &r) {
		err = sanitize.Error(strings.TrimPrefix(r.text, providers.ErrNotFound.Error()+": "), nil)
	}
	return fmt.Errorf("%w: it is not known whether %s %s exists: %w", providers.ErrUnavailable, kind, id, err)
}

var requestID = regexp.MustCompile(`\s*\(Request-ID: req-[0-9a-f-]+\)`)

// messageOf reads the error of a service: {"itemNotFound": {"code": 404, "message": "…"}}, of Keystone {"error": {…}}. Any other
// body is not from a service, but from a proxy.
func messageOf(body []byte) (code, message string, is bool) {
	var faults map[string]json.RawMessage
	if json.Unmarshal(body, &faults) != nil {
		return "", "", false
	}
	for code, content := range faults {
		var fault struct {
			Message *string `json:"message"`
		}
		if json.Unmarshal(content, &fault) == nil && fault.Message != nil {
			return code, requestID.ReplaceAllString(*fault.Message, ""), true
		}
	}
	return "", "", false
}

// explain translates an error of the SDK into one of the contract, with a sentence for the operator.
func (p *Provider) explain(ctx context.Context, action string, err error) error {
	var answer gophercloud.ErrUnexpectedResponseCode
	if !errors.As(err, &answer) {
		return p.client.NoAnswer(ctx, action, err)
	}
	code, message, is := messageOf(answer.Body)
	if !is || answer.Actual < http.StatusBadRequest {
		cause := sanitize.Error(fmt.Sprintf("status %d, %q", answer.Actual, p.client.Clean(string(answer.Body))), err)
		return p.client.NoAnswer(ctx, action, cause)
	}
	r := &refusal{status: answer.Actual, code: code, message: message}
	r.text = fmt.Sprintf("%s refuses %s: %s (%d)", cloudName, action, p.client.Clean(message), answer.Actual)
	as := func(sentinel error, advice string) error {
		r.sentinel = sentinel
		r.text = fmt.Sprintf("%v: %s%s", sentinel, r.text, advice)
		return r
	}
	switch {
	case r.status == http.StatusUnauthorized:
		r.sentinel = providers.ErrCredentials
		r.text += ": a new token is not accepted: the services may be misconfigured, or the credentials have just been revoked"
	case r.status == http.StatusForbidden && says(r, "disk devices"):
		return as(providers.ErrAttachLimit, ": run the service on another node")
	case r.status == http.StatusForbidden && says(r, "quota"), r.status == http.StatusRequestEntityTooLarge && says(r, "exceed"):
		return as(providers.ErrNoSpace, ": remove what is not needed, or ask the cloud's operator for a higher quota")
	case r.status == http.StatusForbidden:
		r.sentinel = providers.ErrDenied
		r.text += ": the role of the credentials does not allow it: they need the role member in the project"
	case r.status == http.StatusNotFound:
		return as(providers.ErrNotFound, "")
	case r.status == http.StatusRequestEntityTooLarge:
		return as(providers.ErrBusy, "")
	case r.status >= http.StatusInternalServerError:
		return as(providers.ErrUnavailable, ": try again, and check the cloud's status page if the error persists")
	}
	return r
}

// explainLogin is explain for Keystone.
func (p *Provider) explainLogin(ctx context.Context, action string, err error) error {
	err = p.explain(ctx, action, err)
	var r *refusal
	if !errors.As(err, &r) || r.status >= http.StatusInternalServerError {
		return err
	}
	said := fmt.Sprintf("Keystone says: %s (%d)", p.client.Clean(r.message), r.status)
	switch r.status {
	case http.StatusUnauthorized:
		return sanitize.Error("the credentials are not accepted: "+said+": check "+p.cfg.settings+", and that they have not expired or been revoked", providers.ErrCredentials)
	case http.StatusNotFound:
		return errors.New("OS_AUTH_URL is not the URL of Keystone version 3: " + said)
	}
	return fmt.Errorf("no token: %s: check OS_AUTH_URL, %s", said, p.cfg.settings)
}

// invalid returns ErrInvalid for a refusal that the specification caused.
func invalid(err error, advice string) error {
	var r *refusal
	if !refused(err, http.StatusBadRequest, http.StatusNotFound) || errors.Is(err, providers.ErrNoSpace) || !errors.As(err, &r) {
		return err
	}
	return fmt.Errorf("%w: %s%s", providers.ErrInvalid, strings.TrimPrefix(r.text, providers.ErrNotFound.Error()+": "), advice)
}
