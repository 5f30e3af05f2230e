package labels

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hard are texts that rules of labels would damage.
var hard = map[string]string{
	"layout":           "data",
	"abcdefghijklmnop": strings.Repeat("é", 127),
	"long":             strings.Repeat("v", 255),
	"empty":            "",
	"space":            "  x  ",
	"punctuation":      `a=b,c;d:e/f\g"h'i<j>k&l%m{n}`,
	"lines":            "a\nb\tc",
	"upper":            "MixedCase",
	"hyphens":          "-a-",
	"underscores":      "name_2_1",
	"bytes":            "\xff\x00",
	"last-":            "plain",
	"-first":           "plain",
	"key0":             "plain",
	"9":                "Not Plain",
}

func TestUnpackReturnsWhatPackStored(t *testing.T) {
	for _, most := range []int{16, 17, 24, 63, 255, 1000} {
		labels := Pack(hard, most)
		texts, unreadable := Unpack(labels)
		assert.Equal(t, hard, texts)
		assert.Empty(t, unreadable)
		for key, value := range labels {
			assert.Regexp(t, `^-?[a-z0-9]([a-z0-9_-]*[a-z0-9])?$`, key)
			assert.LessOrEqual(t, len(key), 24)
			assert.Regexp(t, `^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$`, value)
			assert.LessOrEqual(t, len(value), most)
		}
	}
	assert.Empty(t, Pack(nil, 63))
}

func TestSimpleTextsAreStoredAsTheyAre(t *testing.T) {
	assert.Equal(t, map[string]string{"layout": "data", "name": "db-1"}, Pack(map[string]string{"layout": "data", "name": "db-1"}, 63))
	assert.Equal(t, map[string]string{"name_2_1": "8tpc7dm3jtii1pklm3j8rbn5", "name_2_2": "na9g"}, Pack(map[string]string{"name": "Größe 数据库"}, 24))
}

func TestTagsKeepTextsWholeInAnyOrderAndCase(t *testing.T) {
	for _, most := range []int{50, 255} {
		tags := PackTags("blockvol:", hard, most)
		for _, tag := range tags {
			assert.Regexp(t, `^[a-z0-9:_-]{3,}$`, tag)
			assert.LessOrEqual(t, len(tag), most)
		}
		assert.IsNonDecreasing(t, tags)
		slices.Reverse(tags)
		for i := range tags {
			tags[i] = strings.ToUpper(tags[i])
		}
		tags = append(tags, tags[0], "production", "other:name:x", "blockvol:", "blockvol", "blockvol:noise")
		texts, unreadable := UnpackTags("blockvol:", tags)
		assert.Equal(t, hard, texts)
		assert.Empty(t, unreadable)
	}
	assert.Equal(t, []string{"blockvol:cluster:main"}, PackTags("blockvol:", map[string]string{"cluster": "main"}, 50))

	// What just fits stands as it is, one character more does not.
	fits := strings.Repeat("x", 50-len("blockvol:cluster:"))
	assert.Equal(t, []string{"blockvol:cluster:" + fits}, PackTags("blockvol:", map[string]string{"cluster": fits}, 50))
	assert.Greater(t, len(PackTags("blockvol:", map[string]string{"cluster": fits + "x"}, 50)), 1)
}

func TestUnreadableKeysAreSorted(t *testing.T) {
	texts, unreadable := UnpackTags("x:", []string{"x:d:1", "x:d:2", "x:b:1", "x:b:2", "x:a:1", "x:a:2", "x:c:1", "x:c:2"})
	assert.Empty(t, texts)
	assert.Equal(t, []string{"a", "b", "c", "d"}, unreadable)
}

func TestAnIncompleteTextIsUnreadable(t *testing.T) {
	whole := Pack(map[string]string{"name": strings.Repeat("Größe ", 20)}, 16)
	require.Greater(t, len(whole), 10)
	for missing := range whole {
		damaged := maps.Clone(whole)
		delete(damaged, missing)
		texts, unreadable := Unpack(damaged)
		assert.Empty(t, texts)
		assert.Equal(t, []string{"name"}, unreadable)
	}
	for _, labels := range []map[string]string{
		{"name": "Plain Text"},
		{"name": ""},
		{"name_1_1": "1"},           // no whole byte
		{"name_1_1": "91"},          // bits that are left over
		{"name_1_1": "not base32!"}, // other characters
		{"name_1_1": "C4"},
		{"name_2_1": "c4", "name_3_2": "c4"},
		{"name_2_2": "c4"},
		{"name": "db", "name_1_1": "c4"}, // which?
		{"name_1_1": "c4", "name_2_1": "c4", "name_2_2": ""},
		{"name_999_1": "c4"},
	} {
		texts, unreadable := Unpack(labels)
		assert.Empty(t, texts, labels)
		assert.Equal(t, []string{"name"}, unreadable, labels)
	}
	texts, unreadable := UnpackTags("bv:", []string{"bv:layout:data", "bv:layout:other", "bv:name:db"})
	assert.Equal(t, map[string]string{"name": "db"}, texts)
	assert.Equal(t, []string{"layout"}, unreadable)
}

func TestPiecesLeftOfAnotherTextAreIgnored(t *testing.T) {
	before := Pack(map[string]string{"origin": "A short one"}, 16)
	after := Pack(map[string]string{"origin": strings.Repeat("A long one", 9)}, 16)
	left := slices.Sorted(maps.Keys(after))[1:]
	for _, key := range left {
		before[key] = after[key]
	}
	texts, unreadable := Unpack(before)
	assert.Equal(t, map[string]string{"origin": "A short one"}, texts)
	assert.Empty(t, unreadable)
}

func TestOthersLabelsAreIgnored(t *testing.T) {
	texts, unreadable := Unpack(map[string]string{
		"Name": "x", "name.x": "x", "name_1": "x", "name_1_1_1": "c4", "name_0_0": "c4", "name_01_1": "c4",
		"name_1000_1": "c4", "name_-1_1": "c4", "": "x", "abcdefghijklmnopq": "x", "kubernetes.io/name": "x", "n+2": "x",
	})
	assert.Empty(t, texts)
	assert.Empty(t, unreadable)
}

func FuzzPack(f *testing.F) {
	for key, text := range hard {
		f.Add(key, text, 16)
		f.Add(key, text, 63)
	}
	word := regexp.MustCompile(`^[a-z0-9-]{1,16}$`)
	f.Fuzz(func(t *testing.T, key, text string, most int) {
		if !word.MatchString(key) || len(text) > 255 || most < 16 {
			t.Skip()
		}
		want := map[string]string{key: text, "other": text + text[:min(len(text), 1)]}
		if key == "other" {
			delete(want, "other")
			want[key] = text
		}
		texts, unreadable := Unpack(Pack(want, most))
		assert.Equal(t, want, texts)
		assert.Empty(t, unreadable)
		if most = min(most, 300); most >= 50 {
			texts, unreadable = UnpackTags("blockvol:", PackTags("blockvol:", want, most))
			assert.Equal(t, want, texts)
			assert.Empty(t, unreadable)
		}
	})
}

// Whatever stands in a cloud's labels: what is read from it is packed and read as the same.
func FuzzUnpack(f *testing.F) {
	f.Add("layout", "data", "name_2_1", "c4", "name_2_2", "c4")
	f.Add("name_1_1", "c4", "name", "db", "name_2_1", "")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		texts, unreadable := Unpack(map[string]string{k1: v1, k2: v2, k3: v3})
		for _, key := range unreadable {
			assert.NotContains(t, texts, key)
		}
		again, unreadable := Unpack(Pack(texts, 63))
		assert.Equal(t, texts, again)
		assert.Empty(t, unreadable)
	})
}

// These names are in clouds now.
func TestNamesNeverChange(t *testing.T) {
	for _, golden := range []struct {
		cluster, name string
		most          int
		want          string
	}{
		{"main", "db", 32, "db-8j5bl2am3cen1far"},
		{"main", "DB", 32, "db-jdajlofq7rffpo7f"},
		{"blue", "db", 64, "db-21j9ue1l5r15o16t"},
		{"main", "postgres-data-of-the-shop_v2.1", 32, "postgres-data-o-7t2r1gf9rfmqi9gd"},
		{"main", "2024", 64, "v-2024-nhhub1bndqdvv1j4"},
		{"main", "Größe", 64, "gr-e-vebcdd77ebrqpr4b"},
		{"main", "", 20, "v-on8rksoo4tpb1qn4"},
	} {
		assert.Equal(t, golden.want, Name(golden.cluster, golden.name, golden.most))
	}
	assert.Regexp(t, "^v-9-", Name("main", "9", 64), "it begins with a letter")
	for turn, want := range map[int]string{0: "db-8j5bl2am3cen1far", 1: "db-o5at1mm7ntkgkku8", 12: "db-1198u0tp2imh4mdb"} {
		assert.Equal(t, want, NameAt(turn, "main", "db", 32))
	}
	assert.Equal(t, "44caba89561b1d70bd5bc32f0f7ccc747f2e7584ddf08ba9cbd5480e21f24313", Digest("main", "db"))
	assert.NotEqual(t, Digest("a", "bc"), Digest("ab", "c"))
}

func FuzzName(f *testing.F) {
	f.Add("main", "db", "mai", "ndb", 32)
	f.Add("main", "a--b__c", "main", "a-b-c", 20)
	f.Add("", "数据库", "", "\xff", 64)
	f.Add("", "x---------------y", "", "İ", 32)
	shape := regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*-[0-9a-v]{16}$`)
	f.Fuzz(func(t *testing.T, c1, n1, c2, n2 string, most int) {
		if most < 20 {
			t.Skip()
		}
		one, two := Name(c1, n1, most), Name(c2, n2, most)
		for _, name := range []string{one, two} {
			assert.Regexp(t, shape, name)
			assert.LessOrEqual(t, len(name), most)
		}
		if same := c1 == c2 && n1 == n2; same != (one == two) {
			t.Errorf("%q of %q is %s, and %q of %q is %s", n1, c1, one, n2, c2, two)
		}
	})
}
