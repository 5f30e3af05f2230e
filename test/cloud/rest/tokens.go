package rest

import (
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Tokens are the bearer tokens of instances.
type Tokens struct {
	word func(instance string) string

	mu  sync.Mutex
	all map[string]*token
}

type token struct {
	instance string
	revoked  bool
	scopes   []string // nil: all scopes
}

// NewTokens returns tokens in the format of word, which are the same in each run.
func NewTokens(word func(instance string) string) *Tokens {
	return &Tokens{word: word, all: map[string]*token{}}
}

// Token returns an instance's token. It has all scopes.
func (t *Tokens) Token(instance string) string {
	value := t.word(instance)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[value] == nil {
		t.all[value] = &token{instance: instance}
	}
	return value
}

// Revoke revokes a token.
func (t *Tokens) Revoke(value string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[value].revoked = true
}

// Restrict limits a token to these scopes.
func (t *Tokens) Restrict(value string, scopes ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[value].scopes = append([]string{}, scopes...)
}

// Bearer returns the instance of a request's token and whether the token is valid.
func (t *Tokens) Bearer(r *http.Request) (instance string, good bool) {
	has := t.of(r)
	return has.instance, !has.revoked
}

// May reports whether a request's token has one of these scopes.
func (t *Tokens) May(r *http.Request, scopes ...string) bool {
	has := t.of(r).scopes
	return has == nil || slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(has, s) })
}

// Scopes returns the scopes of a request's token; nil if it has all.
func (t *Tokens) Scopes(r *http.Request) []string { return t.of(r).scopes }

func (t *Tokens) of(r *http.Request) token {
	value, is := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t.mu.Lock()
	defer t.mu.Unlock()
	if !is || t.all[value] == nil {
		return token{revoked: true}
	}
	return *t.all[value]
}
