package mount

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestBlkidOutput(t *testing.T) {
	for out, want := range map[string]Contents{
		"":                                   {},
		"DEVNAME=/dev/x\n":                   {},
		"TYPE=ext4\nUSAGE=filesystem\n":      {FSType: "ext4", Found: []string{"ext4"}},
		"USAGE=filesystem\nTYPE=xfs":         {FSType: "xfs", Found: []string{"xfs"}},
		"TYPE=crypto_LUKS\nUSAGE=crypto\n":   {Found: []string{"crypto_LUKS"}},
		"TYPE=ext4\n":                        {Found: []string{"ext4"}},
		"PTTYPE=gpt\n":                       {Found: []string{"gpt"}},
		"TYPE=\nUSAGE=filesystem\n":          {},
		"LABEL=TYPE=xfs\nTYPE=swap\nUSAGE=x": {Found: []string{"swap"}},
	} {
		assert.Equal(t, want, parseBlkid(out), "%q", out)
	}
}

func TestWipefsOutput(t *testing.T) {
	for out, want := range map[string][]string{
		"":                                       nil,
		"\n":                                     nil,
		"0x438,862c02d9,,ext4\n":                 {"ext4"},
		"0x0,,a,label,with,commas,LUKS\n0x4,,,x": {"LUKS", "x"},
		"0x200,,,gpt\n0x3fffe00,,,gpt\n":         {"gpt"},
		"# offset,uuid,label,type\n":             {unknownData},
		"0x1,,,":                                 {unknownData},
		"nonsense":                               {"nonsense"},
	} {
		assert.Equal(t, want, parseWipefs(out), "%q", out)
	}
}

func FuzzBlkid(f *testing.F) {
	f.Add("DEVNAME=/dev/loop0\nTYPE=ext4\nUSAGE=filesystem\n")
	f.Add("PTTYPE=gpt\n")
	f.Fuzz(func(t *testing.T, out string) {
		c := parseBlkid(out)
		assert.False(t, c.Blank, "the parser alone proves nothing")
		if c.FSType != "" {
			assert.Contains(t, c.Found, c.FSType)
		}
	})
}

func FuzzWipefs(f *testing.F) {
	f.Add("0x438,uuid,,ext4\n")
	f.Add("# offset,uuid,label,type\n")
	f.Fuzz(func(t *testing.T, out string) {
		found := parseWipefs(out)
		assert.Equal(t, strings.TrimSpace(out) == "", len(found) == 0, "any output is a signature")
		assert.NotContains(t, found, "")
	})
}

func FuzzExt4Superblock(f *testing.F) {
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, sb []byte) {
		if _, size, err := ext4Blocks(sb); err == nil {
			assert.GreaterOrEqual(t, size, uint64(1024))
		}
	})
}

func TestTheEdgesOfADisk(t *testing.T) {
	for size, want := range map[int64][2]span{
		512:           {{0, 512}, {0, 512}},
		mib:           {{0, mib}, {0, mib}},
		mib + 512:     {{0, mib}, {0, mib + 512}},
		10*mib + 4096: {{0, mib}, {9*mib + 4096, mib}},
		10*mib + 512:  {{0, mib}, {9 * mib, mib + 512}},
	} {
		first, last := edgesOf(size)
		assert.Equal(t, want, [2]span{first, last}, size)
		assert.Equal(t, size, last.offset+last.length)
	}
}
