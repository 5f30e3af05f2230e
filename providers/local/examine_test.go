package local

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/providers"
)

func TestDoctorFindsWhatIsWrongWithTheImages(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(t *testing.T, p *Provider)
		want  string
	}{
		"nothing":      {func(*testing.T, *Provider) {}, ""},
		"no directory": {func(t *testing.T, p *Provider) { t.Helper(); require.NoError(t, os.RemoveAll(p.disks.dir+"/disks")) }, "images-unreadable"},
		"read-only": {func(t *testing.T, p *Provider) {
			t.Helper()
			require.NoError(t, unix.Mount("", p.dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}, "images-read-only"},
		"full": {func(t *testing.T, p *Provider) {
			t.Helper()
			require.ErrorIs(t, os.WriteFile(filepath.Join(p.dir, "file"), make([]byte, 256<<20), 0o600), unix.ENOSPC)
		}, "images-full"},
		"overcommitted":            {func(t *testing.T, p *Provider) { t.Helper(); addHugeImage(t, p) }, "images-overcommitted"},
		"overcommitted on purpose": {func(t *testing.T, p *Provider) { t.Helper(); addHugeImage(t, p); p.overcommit = true }, ""},
		"no loop devices":          {func(_ *testing.T, p *Provider) { p.dev = "/nowhere" }, "loop-devices-missing"},
		"no sysfs":                 {func(_ *testing.T, p *Provider) { p.sysfs = "/nowhere" }, "loop-devices-unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newMachine(t, ramDisk(t, 256<<20)).provider(t, "a", "main")
			before := create(t, p, "db", smallest)
			c.plant(t, p)
			var codes []string
			for _, f := range p.Examine(t.Context()) {
				assert.Equal(t, f.Severity == providers.OK, f.Remedy == "", "%v", f)
				if f.Severity != providers.OK {
					codes = append(codes, f.Code)
				}
			}
			if c.want == "" {
				assert.Empty(t, codes)
				assert.NotNil(t, before)
				return
			}
			assert.Equal(t, []string{c.want}, codes)
		})
	}
}
