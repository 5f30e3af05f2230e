// Package sanitize makes texts from outside safe for errors and logs: short, on one line, without secrets.
package sanitize

import (
	"cmp"
	"encoding/json"
	"errors"
	"html"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Clip makes a text one line of at most 300 printable characters.
func Clip(text string) string {
	const most = 300
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// Clean is Clip after removing the secrets, plain or escaped for a URL, JSON or HTML, and what matches hidden, which may be nil: a
// hostile or careless answer may repeat them from the request. A secret may have up to 8 KiB.
func Clean(text string, hidden *regexp.Regexp, secrets ...string) string {
	const most, longest = 64 << 10, 8 << 10 // bytes of the text that are searched; of a secret that may be cut off there
	cut := len(text) > most
	if cut {
		text = text[:most]
	}
	// The longest first: if one secret is the beginning of another, the rest of the other must not remain.
	for _, secret := range slices.SortedFunc(slices.Values(secrets), func(a, b string) int { return cmp.Compare(len(b), len(a)) }) {
		if secret == "" {
			continue
		}
		quoted, err := json.Marshal(secret)
		if err != nil {
			quoted = []byte(`"` + secret + `"`)
		}
		for _, shape := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), html.EscapeString(secret), strings.Trim(string(quoted), `"`)} {
			text = strings.ReplaceAll(text, shape, "…")
		}
	}
	if hidden != nil {
		text = hidden.ReplaceAllString(text, "…")
	}
	if cut {
		text = text[:max(0, len(text)-longest)]
	}
	return Clip(text)
}

// Cause returns the text of the innermost error that has one. It is not cleaned.
func Cause(err error) string {
	var refused *url.Error
	if errors.As(err, &refused) {
		return refused.Err.Error()
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil || inner.Error() == "" {
			return err.Error()
		}
		err = inner
	}
}

// Error returns an error with that text that matches what err matches.
func Error(text string, err error) error { return &quoted{text, err} }

type quoted struct {
	text string
	err  error
}

func (q *quoted) Error() string { return q.text }
func (q *quoted) Unwrap() error { return q.err }
