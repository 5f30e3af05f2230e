package openstack

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
)

func TestEncodedTextsAreWholeAndStorable(t *testing.T) {
	texts := []string{"", "db", "é", "数据库", "😀", "a😀b", "\uE000", "\uE3FF\uE400", "\uE400\uE000", "\uE7FF", "\uE800\uE400", "\uE802", "\uE803", "\uF8FF", "\U0010FFFF", "😀\uE400", strings.Repeat("😀", 63), strings.Repeat("\uE001", 85)}
	seen := map[string]string{}
	for _, text := range texts {
		code := encode(text)
		assert.Equal(t, text, decode(code), "%q", text)
		assert.LessOrEqual(t, utf8.RuneCountInString(code), max(len(text), 1))
		assert.NotContains(t, seen, code)
		seen[code] = text
		for _, c := range code {
			assert.LessOrEqual(t, c, rune(0xFFFF))
		}
	}
	assert.Equal(t, "db é", encode("db é"), "storable text is unchanged")
}

func FuzzEncode(f *testing.F) {
	f.Add("a😀\uE400")
	f.Fuzz(func(t *testing.T, text string) {
		if utf8.ValidString(text) && decode(encode(text)) != text {
			t.Errorf("%q", text)
		}
	})
}

func TestOnlyVolumesWithAllMarksAreOurs(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v := w.create(p, "db")
		for _, damage := range []map[string]string{
			{keyState: stateForgotten}, {keyState: stateNew}, {keyCluster: ""}, {keyCluster: "MAIN"}, {keyName: "DB"}, {keyDigest: "x"}, unnamed(stateForgotten),
		} {
			require.NoError(t, p.write(t.Context(), v.ID, damage))
			_, err := p.Find(t.Context(), "db")
			require.ErrorIs(t, err, providers.ErrNotFound, "%v", damage)
			list, err := p.List(t.Context())
			require.NoError(t, err)
			assert.Empty(t, list)
			require.NoError(t, w.on(w.node()).Delete(t.Context(), v.ID))
			_, there := w.cloud.Volume(v.ID)
			assert.True(t, there)
			marks := p.marks(providers.Spec{Name: "db"})
			marks[keyState] = stateSettled
			require.NoError(t, p.write(t.Context(), v.ID, marks))
		}
		_, err := p.Find(t.Context(), "db")
		require.NoError(t, err)
	})
}

// Filters are Python dictionaries. A cluster's name must be quoted in them.
func TestClustersOfAnyNameAreListed(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		server := w.node()
		for _, cluster := range []string{`a'b`, `a\`, `a\'b`, `'`, "a\nb", `{"x":1}`, "größe", "数据库 😀", "a&b=c%20", "MAIN", " "} {
			p := w.on(server)
			p.cfg.Cluster = cluster
			p, err := New(p.cfg)
			require.NoError(t, err)
			v := w.create(p, "db")
			list, err := p.List(t.Context())
			require.NoError(t, err, "%q", cluster)
			require.Len(t, list, 1, "%q", cluster)
			assert.Equal(t, v, list[0])
		}
	})
}

// The last page of a list may be empty.
func TestAllPagesOfAListAreRead(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		p.times.lag = time.Millisecond
		const many = 1000
		w.front.SetPage(10)
		for i := range many / 10 {
			w.create(p, fmt.Sprintf("v%04d", i))
		}
		list, err := p.List(t.Context())
		require.NoError(t, err)
		require.Len(t, list, many/10)
		assert.Equal(t, "v0000", list[0].Name)
	})
}

func TestOperatorTagsAreKept(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		v, err := p.Create(t.Context(), providers.Spec{Name: "db", Size: gib, Tags: map[string]string{"owner": "me", "cost centre": "größe"}})
		require.NoError(t, err)
		is, _ := w.cloud.Volume(v.ID)
		assert.Equal(t, "me", is.Tags["owner"])
		assert.Equal(t, "größe", is.Tags["cost centre"])
		assert.Empty(t, v.Record)
	})
}
