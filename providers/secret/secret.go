// Package secret reads a cloud's credentials from a setting, or from the file that a setting names.
package secret

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Secret is an API token, or a password.
type Secret struct {
	setting string
	file    string // read at each use, so that it can be replaced without a restart; empty: the setting has the value

	mu    sync.Mutex
	known []string // newest first
}

// From takes the secret from the setting, or from the file that setting_FILE names, which is read at each use.
// Errors: providers.ErrInvalid if neither or both are set, or if the value cannot be a token.
func From(getenv func(string) string, setting string) (*Secret, error) {
	value, file, err := settings(getenv, setting)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	case file != "":
		return &Secret{setting: setting, file: file}, nil
	case value == "":
		return nil, fmt.Errorf("%w: neither %s nor %s is set: set one of them", providers.ErrInvalid, setting, setting+providers.FileSuffix)
	}
	s := &Secret{setting: setting}
	if err := s.learn(value); err != nil {
		return nil, fmt.Errorf("%w: %w", providers.ErrInvalid, err)
	}
	return s, nil
}

// Read returns what the setting is, or what is in the file that setting_FILE names, of any form; empty if neither is set.
func Read(getenv func(string) string, setting string) (string, error) {
	value, file, err := settings(getenv, setting)
	if err == nil && file != "" {
		return content(setting, file)
	}
	return value, err
}

func settings(getenv func(string) string, setting string) (value, file string, err error) {
	value, file = strings.TrimSpace(getenv(setting)), getenv(setting+providers.FileSuffix)
	if value != "" && file != "" {
		err = fmt.Errorf("both %s and %s are set: leave one of them out", setting, setting+providers.FileSuffix)
	}
	return value, file, err
}

// content returns what is in a file, without the white space around it.
func content(setting, file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", &Error{fmt.Sprintf("%s cannot be read: %v: the file must be readable where blockvol runs; the plugin sees the host's state directory as /data/state", setting+providers.FileSuffix, err), err}
	}
	return strings.TrimSpace(string(content)), nil
}

// Error says why there is no secret.
type Error struct {
	text  string
	cause error
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.cause }

// Is makes an Error match providers.ErrCredentials.
func (e *Error) Is(target error) bool { return target == providers.ErrCredentials }

// Value returns the current value. Its error is a sentence for the operator.
func (s *Secret) Value() (string, error) {
	if s.file != "" {
		value, err := content(s.setting, s.file)
		if err != nil {
			return "", err
		}
		if err := s.learn(value); err != nil {
			return "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[0], nil
}

// learn stores a value.
func (s *Secret) learn(value string) error {
	switch {
	case value == "":
		return &Error{text: fmt.Sprintf("the file that %s names is empty: it must hold the token", s.setting+providers.FileSuffix)}
	case strings.ContainsFunc(value, func(c rune) bool { return unicode.IsControl(c) || c > unicode.MaxASCII }):
		return &Error{text: fmt.Sprintf("what %s or %s holds is no token: it has more than one line, or characters that none has", s.setting, s.setting+providers.FileSuffix)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 4 // a late answer may repeat an earlier token
	if !slices.Contains(s.known, value) {
		s.known = slices.Insert(s.known, 0, value)
		s.known = s.known[:min(len(s.known), most)]
	} else {
		s.known = slices.Insert(slices.DeleteFunc(s.known, func(known string) bool { return known == value }), 0, value)
	}
	return nil
}

// Clean removes the current and recent values from a text, and makes it one line of bounded length.
func (s *Secret) Clean(text string) string { return sanitize.Clean(text, nil, s.Values()...) }

// Values returns the values that a text may repeat: the current one and those before it. A nil Secret has none.
func (s *Secret) Values() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.known)
}
