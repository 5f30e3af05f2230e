package rest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/quote"
)

// Token is the secret that proves to a cloud who asks: an API token, or a password.
type Token struct {
	setting string
	file    string // where it is read each time, so that it can be replaced without a restart; empty: it stays as it is

	mu    sync.Mutex
	known []string // newest first
}

// TokenFrom takes the token from the setting or from the file that setting_FILE names. A file is not read before the token is
// used.
// Errors: providers.ErrInvalid if none of both is set, or both, or if it cannot be a token.
func TokenFrom(getenv func(string) string, setting string) (*Token, error) {
	value, file := getenv(setting), getenv(setting+providers.FileSuffix)
	switch {
	case value != "" && file != "":
		return nil, fmt.Errorf("%w: both %s and %s are set: leave one of them out", providers.ErrInvalid, setting, setting+providers.FileSuffix)
	case file != "":
		return &Token{setting: setting, file: file}, nil
	case strings.TrimSpace(value) == "":
		return nil, fmt.Errorf("%w: neither %s nor %s is set: set one of them", providers.ErrInvalid, setting, setting+providers.FileSuffix)
	}
	t := &Token{setting: setting}
	if err := t.learn(value); err != nil {
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	}
	return t, nil
}

// tokenError says why there is no token.
type tokenError struct {
	text  string
	cause error
}

func (e *tokenError) Error() string { return e.text }
func (e *tokenError) Unwrap() error { return e.cause }

// Value is the token as it is now. An error is a sentence for the operator.
func (t *Token) Value() (string, error) {
	if t.file != "" {
		content, err := os.ReadFile(t.file)
		if err != nil {
			return "", &tokenError{fmt.Sprintf("%s cannot be read: %v: the file must be readable where blockvol runs; the plugin sees the host's state directory as /data/state", t.setting+providers.FileSuffix, err), err}
		}
		if err := t.learn(string(content)); err != nil {
			return "", err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[0], nil
}

// learn takes a value, without the blanks around it.
func (t *Token) learn(value string) error {
	value = strings.TrimSpace(value)
	switch {
	case value == "":
		return &tokenError{text: fmt.Sprintf("the file that %s names is empty: it must hold the token", t.setting+providers.FileSuffix)}
	case strings.ContainsFunc(value, func(c rune) bool { return unicode.IsControl(c) || c > unicode.MaxASCII }):
		return &tokenError{text: fmt.Sprintf("what %s or %s holds is no token: it has more than one line, or characters that none has", t.setting, t.setting+providers.FileSuffix)}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	const most = 4 // an answer of now may repeat the token of before
	if !slices.Contains(t.known, value) {
		t.known = slices.Insert(t.known, 0, value)
		t.known = t.known[:min(len(t.known), most)]
	} else {
		t.known = slices.Insert(slices.DeleteFunc(t.known, func(known string) bool { return known == value }), 0, value)
	}
	return nil
}

// Clean takes the token out of a text, as it is and as it was lately, and makes that one line of bounded length.
func (t *Token) Clean(text string) string { return quote.Clean(text, nil, t.seen()...) }

// seen are the values that a text may repeat. A nil Token has none.
func (t *Token) seen() []string {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.known)
}
