package openstack

import (
	"errors"
	"strconv"
	"strings"

	"github.com/blockvol/blockvol/test/cloud/rest"
)

// metadataFilter returns the filter by metadata, which is a Python dictionary literal.
func metadataFilter(r *rest.Request) (map[string]string, error) {
	text := r.HTTP.URL.Query().Get("metadata")
	if text == "" {
		return nil, nil
	}
	wanted, err := pythonDict(text)
	if err != nil {
		return nil, bad("Invalid filter metadata=%s: %v", text, err)
	}
	return wanted, nil
}

// matches reports whether metadata match a filter, ignoring case and trailing spaces, as the databases of most clouds do.
func matches(metadata, wanted map[string]string) bool {
	for key, value := range wanted {
		is, there := metadata[key]
		if !there || !strings.EqualFold(strings.TrimRight(is, " "), strings.TrimRight(value, " ")) {
			return false
		}
	}
	return true
}

var errLiteral = errors.New("malformed node or string")

// pythonDict parses a dictionary of strings.
func pythonDict(text string) (map[string]string, error) {
	dict := map[string]string{}
	rest, opened := strings.CutPrefix(strings.TrimSpace(text), "{")
	if !opened {
		return nil, errLiteral
	}
	for {
		rest = strings.TrimLeft(rest, " ,")
		if rest == "}" {
			return dict, nil
		}
		key, after, err := pythonString(rest)
		if err != nil {
			return nil, err
		}
		after, colon := strings.CutPrefix(strings.TrimLeft(after, " "), ":")
		if !colon {
			return nil, errLiteral
		}
		if dict[key], rest, err = pythonString(strings.TrimLeft(after, " ")); err != nil {
			return nil, err
		}
	}
}

// pythonString parses a quoted string at the beginning of a text.
func pythonString(text string) (value, rest string, err error) {
	if text == "" || text[0] != '\'' && text[0] != '"' {
		return "", "", errLiteral
	}
	quote := text[0]
	var b strings.Builder
	for text = text[1:]; text != ""; {
		if text[0] == quote {
			return b.String(), text[1:], nil
		}
		if text[0] == '\n' {
			return "", "", errLiteral
		}
		c, wide, tail, err := strconv.UnquoteChar(text, quote)
		if err != nil {
			return "", "", errLiteral
		}
		if wide || c < 0x80 {
			b.WriteRune(c)
		} else {
			b.WriteByte(byte(c))
		}
		text = tail
	}
	return "", "", errLiteral
}
