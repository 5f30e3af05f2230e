// Package sanitize makes what a cloud said, or the way to it, fit for sentences of our own: short, on one line, without secrets.
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

// Clip makes a text one line of at most 300 characters, all of them printable.
func Clip(text string) string {
	const most = 300
	text = strings.Join(strings.FieldsFunc(text, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }), " ")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// Clean is Clip without the secrets, plain or escaped for a URL, JSON or HTML, and without what matches hidden, which may be
// nil: what a hostile or careless answer may repeat of the request is taken out. A secret may have 8 KiB.
func Clean(text string, hidden *regexp.Regexp, secrets ...string) string {
	const most, longest = 64 << 10, 8 << 10 // what is looked at, and what a secret can be long that is cut there
	cut := len(text) > most
	if cut {
		text = text[:most]
	}
	// One that begins as another does must not leave the other's end.
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

// Cause is the text of the innermost error that says more than that something failed. It is not cleaned.
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

// Error says text and still matches what err does.
func Error(text string, err error) error { return &quoted{text, err} }

type quoted struct {
	text string
	err  error
}

func (q *quoted) Error() string { return q.text }
func (q *quoted) Unwrap() error { return q.err }
