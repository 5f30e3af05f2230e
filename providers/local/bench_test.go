package local

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

// stocked returns a provider with that many volumes, which were not synced to disk.
func stocked(b *testing.B, volumes int) *Provider {
	b.Helper()
	p, err := New(Config{Dir: b.TempDir(), Node: "a", Cluster: "main", Overcommit: true})
	require.NoError(b, err)
	require.NoError(b, os.MkdirAll(p.disks.names("main"), 0o700))
	for i := range volumes {
		m := meta{
			Version: version, ID: p.disks.newID(), Cluster: "main", Name: fmt.Sprint("v", i), Size: smallest,
			Created: time.Now(), Record: providers.Record{"layout": "data", "fstype": "ext4", "formatted": "yes"},
		}
		data, err := json.Marshal(m)
		require.NoError(b, err)
		require.NoError(b, os.WriteFile(p.disks.path(m.ID, ".json"), data, 0o600))
		require.NoError(b, os.WriteFile(p.disks.path(m.ID, ready), nil, 0o600))
		require.NoError(b, os.Truncate(p.disks.path(m.ID, ready), smallest))
		require.NoError(b, os.Symlink("../../disks/"+m.ID+".json", p.disks.link("main", m.Name)))
	}
	return p
}

func BenchmarkWith10000Volumes(b *testing.B) {
	p := stocked(b, 10_000)
	ctx := b.Context()
	b.Run("Find", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := p.Find(ctx, fmt.Sprint("v", i%10_000)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("List", func(b *testing.B) {
		for b.Loop() {
			if l, err := p.List(ctx); err != nil || len(l) < 10_000 {
				b.Fatal(len(l), err)
			}
		}
	})
	b.Run("CreateAndDelete", func(b *testing.B) {
		p.overcommit = true // 10,000 promises are more than this disk holds; they are summed up all the same
		for b.Loop() {
			v, err := p.Create(ctx, providers.Spec{Name: "new", Size: smallest})
			if err != nil {
				b.Fatal(err)
			}
			if err := p.Delete(ctx, v.ID); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAttachAndDetach(b *testing.B) {
	for _, volumes := range []int{1, 50} {
		b.Run(fmt.Sprint(volumes, " at once"), func(b *testing.B) {
			p := stocked(b, volumes)
			var ids []string
			list, err := p.List(b.Context())
			require.NoError(b, err)
			for _, v := range list {
				ids = append(ids, v.ID)
			}
			each := func(call func(id string) error) {
				var wg sync.WaitGroup
				for _, id := range ids {
					wg.Go(func() {
						if err := call(id); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
			}
			for b.Loop() {
				each(func(id string) error { return providertest.Attach(b.Context(), p, id) })
				each(func(id string) error { return p.Detach(b.Context(), id, "a", false) })
			}
		})
	}
}
