package openstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/gophercloud/gophercloud/v2"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// refusal is an answer that refuses. What the refusal of an action means, whoever asked knows best; what it means in any case
// is said by the sentinel.
type refusal struct {
	status   int
	code     string // the cloud's word for it: "itemNotFound"
	message  string // the cloud's own, not cleaned
	text     string // the sentence
	sentinel error  // may be nil
}

func (e *refusal) Error() string { return e.text }
func (e *refusal) Unwrap() error { return e.sentinel }

// refused tells whether an error is a refusal with one of these statuses.
func refused(err error, statuses ...int) bool {
	var r *refusal
	if errors.As(err, &r) {
		for _, status := range statuses {
			if r.status == status {
				return true
			}
		}
	}
	return false
}

// says tells whether a refusal has these words.
func says(err error, words string) bool {
	var r *refusal
	return errors.As(err, &r) && strings.Contains(strings.ToLower(r.message), words)
}

// missing tells whether an error is Nova's or Cinder's own word that they know nothing of that id. A 404 may also be of a path, or
// of another service on the way.
func missing(err error, id string) bool {
	var r *refusal
	return errors.As(err, &r) && r.status == http.StatusNotFound && r.code == "itemNotFound" && says(err, id)
}

// unknown is the error for a 404 that is not Nova's or Cinder's own word: it says nothing about what was asked for.
func unknown(kind, id string, err error) error {
	var r *refusal
	if errors.As(err, &r) {
		err = sanitize.Error(strings.TrimPrefix(r.text, providers.ErrNotFound.Error()+": "), nil)
	}
	return fmt.Errorf("%w: it is not known whether there is a %s %s: %w", providers.ErrUnavailable, kind, id, err)
}

var requestID = regexp.MustCompile(`\s*\(Request-ID: req-[0-9a-f-]+\)`)

// messageOf is what a service says of an error: {"itemNotFound": {"code": 404, "message": "…"}}, Keystone {"error": {…}}. It is
// none of theirs otherwise, but of something on the way.
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

// explain turns what a service or the way to it answered into the contract's errors and a sentence for the operator.
func (p *Provider) explain(ctx context.Context, action string, err error) error {
	var answer gophercloud.ErrUnexpectedResponseCode
	if !errors.As(err, &answer) {
		return p.way.NoAnswer(ctx, action, err)
	}
	code, message, is := messageOf(answer.Body)
	if !is || answer.Actual < http.StatusBadRequest {
		cause := sanitize.Error(fmt.Sprintf("status %d, %q", answer.Actual, p.way.Clean(string(answer.Body))), err)
		return p.way.NoAnswer(ctx, action, cause)
	}
	r := &refusal{status: answer.Actual, code: code, message: message}
	r.text = fmt.Sprintf("%s refuses %s: %s (%d)", cloudName, action, p.way.Clean(message), answer.Actual)
	as := func(sentinel error, advice string) error {
		r.sentinel = sentinel
		r.text = fmt.Sprintf("%v: %s%s", sentinel, r.text, advice)
		return r
	}
	switch {
	case r.status == http.StatusUnauthorized:
		r.text += ": a token just issued is not accepted: the services may be misconfigured, or the credentials be revoked at this moment"
	case r.status == http.StatusForbidden && says(r, "disk devices"):
		return as(providers.ErrAttachLimit, ": run the service on another node")
	case r.status == http.StatusForbidden && says(r, "quota"), r.status == http.StatusRequestEntityTooLarge && says(r, "exceed"):
		return as(providers.ErrNoSpace, ": remove what is not needed, or ask the cloud's operator for a higher quota")
	case r.status == http.StatusForbidden:
		r.text += ": the credentials' role does not allow it: they need the role member in the project"
	case r.status == http.StatusNotFound:
		return as(providers.ErrNotFound, "")
	case r.status == http.StatusRequestEntityTooLarge:
		return as(providers.ErrBusy, "")
	case r.status >= http.StatusInternalServerError:
		return as(providers.ErrUnavailable, ": try again, and look at the cloud's own status if it stays so")
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
	said := fmt.Sprintf("Keystone says: %s (%d)", p.way.Clean(r.message), r.status)
	switch r.status {
	case http.StatusUnauthorized:
		return errors.New("the credentials are not accepted: " + said + ": check " + p.cfg.settings + ", and that they have not expired or been revoked")
	case http.StatusNotFound:
		return errors.New("OS_AUTH_URL leads to no Keystone of version 3: " + said)
	}
	return fmt.Errorf("there is no token to be had: %s: check OS_AUTH_URL, %s", said, p.cfg.settings)
}

// invalid makes a refusal the specification's fault.
func invalid(err error, advice string) error {
	var r *refusal
	if !errors.As(err, &r) || errors.Is(err, providers.ErrNoSpace) || r.status >= http.StatusInternalServerError {
		return err
	}
	switch r.status {
	case http.StatusBadRequest, http.StatusNotFound:
		text := strings.TrimPrefix(r.text, providers.ErrNotFound.Error()+": ")
		return fmt.Errorf("%w: %s%s", providers.ErrInvalid, text, advice)
	}
	return err
}
