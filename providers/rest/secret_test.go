package rest

import (
	"html"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/secret"
)

func TestATokenIsOneOfTwoSettings(t *testing.T) {
	for _, wrong := range []struct {
		env  func(string) string
		word string
	}{
		{env(), "neither"},
		{env("NIMBUS_TOKEN", " \n"), "neither"},
		{env("NIMBUS_TOKEN", password, "NIMBUS_TOKEN_FILE", "/run/token"), "leave one"},
		{env("NIMBUS_TOKEN", password+"\nX-Evil: 1"), "more than one line"},
		{env("NIMBUS_TOKEN", password+"ü"), "characters"},
	} {
		_, err := secret.From(wrong.env, "NIMBUS_TOKEN")
		require.ErrorIs(t, err, providers.ErrInvalid)
		sentence(t, err, "NIMBUS_TOKEN", "NIMBUS_TOKEN_FILE", wrong.word)
	}
	token, err := secret.From(env("NIMBUS_TOKEN", "  "+password+"\n"), "NIMBUS_TOKEN")
	require.NoError(t, err)
	value, err := token.Value()
	require.NoError(t, err)
	assert.Equal(t, password, value)
}

func TestATokenInAFileCanBeReplaced(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	token, err := secret.From(env("NIMBUS_TOKEN_FILE", file), "NIMBUS_TOKEN")
	require.NoError(t, err, "the file may come later")
	c, cloud := reached(Config{Token: token}, ok)

	unusable := func(word string) {
		_, _, err := ask(t.Context(), c, "GET", "")
		require.ErrorContains(t, err, word)
		asked := len(cloud.asked)
		err = c.NoAnswer(t.Context(), "the list of volumes", err)
		require.NotErrorIs(t, err, providers.ErrUnavailable, "the cloud is not to blame")
		sentence(t, err, "NIMBUS_TOKEN_FILE", word, "Nimbus", "the list of volumes")
		assert.Len(t, cloud.asked, asked)
	}
	unusable("readable")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	unusable("empty")
	assert.Empty(t, cloud.asked)
	for _, value := range []string{"first", "second", "second", "first"} {
		require.NoError(t, os.WriteFile(file, []byte(value+"\n"), 0o600))
		_, _, err = ask(t.Context(), c, "GET", "")
		require.NoError(t, err)
		assert.Equal(t, "Bearer "+value, cloud.asked[len(cloud.asked)-1].authorization)
	}
	assert.Equal(t, "… and …", c.Clean("first and second"), "an answer may repeat the one of before")
	require.NoError(t, os.Remove(file))
	unusable("readable")
}

func TestCleanRemovesEscapedTokensToo(t *testing.T) {
	token := token(t)
	for _, shape := range []string{password, url.QueryEscape(password), url.PathEscape(password), html.EscapeString(password), `dop_v1_s3cr3t/+\"\u0026\u003cx\u003e`} {
		assert.Equal(t, "it was … there", token.Clean("it was\n"+shape+"\tthere"))
	}
	assert.LessOrEqual(t, len([]rune(token.Clean(strings.Repeat("long ", 1000)))), 301)
	cut := strings.Repeat(" ", 64<<10-5) + password
	assert.NotContains(t, token.Clean(cut), "dop")
	c, _ := reached(Config{Token: token, Secrets: func() []string { return []string{"pass", "password"} }}, ok)
	assert.Equal(t, "… … …", c.Clean("password pass "+password), "the longer one whole")
	c, _ = reached(Config{}, ok)
	assert.Equal(t, "text", c.Clean("text"))
}

func TestRecentTokensAreRemovedFromTexts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	token, err := secret.From(env("NIMBUS_TOKEN_FILE", file), "NIMBUS_TOKEN")
	require.NoError(t, err)
	for _, value := range []string{"token-1", "token-2", "token-1", "token-1", "token-3", "token-4", "token-2"} {
		require.NoError(t, os.WriteFile(file, []byte(value), 0o600))
		is, err := token.Value()
		require.NoError(t, err)
		assert.Equal(t, value, is)
	}
	for range 5 { // it is read for each request
		_, err := token.Value()
		require.NoError(t, err)
	}
	assert.Equal(t, "… … … …", token.Clean("token-1 token-2 token-3 token-4"))
	require.NoError(t, os.WriteFile(file, []byte("token-5"), 0o600))
	_, err = token.Value()
	require.NoError(t, err)
	assert.Equal(t, "token-1 … … … …", token.Clean("token-1 token-2 token-3 token-4 token-5"), "what was replaced long ago is no password")
}
