package sanitize

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestATextBecomesOneShortLine(t *testing.T) {
	assert.Equal(t, "a b c d", Clip(" a\nb\tc\x00\u202ed "))
	assert.Equal(t, strings.Repeat("é", 300)+"…", Clip(strings.Repeat("é", 1000)))
	assert.Equal(t, strings.Repeat("é", 300), Clip(strings.Repeat("é", 300)))
	assert.Empty(t, Clip(" \n"))
}

func TestCleanRemovesEscapedSecretsToo(t *testing.T) {
	const secret = `p<4>+s/"&`
	for _, shape := range []string{secret, "p%3C4%3E%2Bs%2F%22%26", "p%3C4%3E+s%2F%22&", "p&lt;4&gt;+s/&#34;&amp;", `p\u003c4\u003e+s/\"\u0026`} {
		assert.Equal(t, "(…)", Clean("("+shape+")", nil, "", secret))
	}
	assert.Equal(t, "… …", Clean("abcdef abc", nil, "abc", "abcdef"), "none leaves the end of another")
	assert.Equal(t, "key=…", Clean("key=123", regexp.MustCompile(`\d+`)))
	assert.Empty(t, Clean(strings.Repeat(" ", 64<<10-2)+secret, nil, secret), "nor a part that is cut off")
	assert.Equal(t, "as it is", Clean("as it is", nil, ""))
}

func TestTheCauseIsTheInnermostThatSaysSomething(t *testing.T) {
	assert.Equal(t, "EOF", Cause(fmt.Errorf("decoding: %w", fmt.Errorf("reading: %w", io.EOF))))
	assert.Equal(t, "refused: down", Cause(fmt.Errorf("SDK: %w", &url.Error{Op: "Get", URL: "https://x.test?secret", Err: fmt.Errorf("refused: %w", errors.New("down"))})))
	assert.Equal(t, "outer", Cause(Error("outer", errors.New(""))))
	err := Error("in few words", io.EOF)
	require.ErrorIs(t, err, io.EOF)
	assert.EqualError(t, err, "in few words")
}
