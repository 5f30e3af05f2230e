package rest

import (
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Tokens are the bearer tokens of instances, by which a front knows who asks.
type Tokens struct {
	word func(instance string) string

	mu  sync.Mutex
	all map[string]*token
}

type token struct {
	instance string
	revoked  bool
	scopes   []string // nil is all
}

// NewTokens returns tokens that look as word has them, always the same for the same instance.
func NewTokens(word func(instance string) string) *Tokens {
	return &Tokens{word: word, all: map[string]*token{}}
}

// Token is what an instance's requests are known by. It may do everything.
func (t *Tokens) Token(instance string) string {
	value := t.word(instance)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all[value] == nil {
		t.all[value] = &token{instance: instance}
	}
	return value
}

// Revoke makes a token worthless.
func (t *Tokens) Revoke(value string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[value].revoked = true
}

// Restrict leaves a token these scopes.
func (t *Tokens) Restrict(value string, scopes ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[value].scopes = append([]string{}, scopes...)
}

// Bearer tells whose token a request has, and whether that is good for anything.
func (t *Tokens) Bearer(r *http.Request) (instance string, good bool) {
	has := t.of(r)
	return has.instance, !has.revoked
}

// May tells whether the token of a request has one of these scopes.
func (t *Tokens) May(r *http.Request, scopes ...string) bool {
	has := t.of(r).scopes
	return has == nil || slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(has, s) })
}

func (t *Tokens) of(r *http.Request) token {
	value, is := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	t.mu.Lock()
	defer t.mu.Unlock()
	if !is || t.all[value] == nil {
		return token{revoked: true}
	}
	return *t.all[value]
}
