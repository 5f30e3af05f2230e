package digitalocean

import (
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	front "github.com/blockvol/blockvol/test/cloud/digitalocean"
)

// documentedScopes are those that docs/digitalocean.md asks for.
func documentedScopes(t *testing.T) (scopes []string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/digitalocean.md")
	require.NoError(t, err)
	for _, scope := range regexp.MustCompile("`([a-z_]+:(read|create|delete|update))`").FindAllStringSubmatch(string(page), -1) {
		if !slices.Contains(scopes, scope[1]) {
			scopes = append(scopes, scope[1])
		}
	}
	require.NotEmpty(t, scopes)
	return scopes
}

// life does all that blockvol does.
func life(t *testing.T, w *world, node string) error {
	t.Helper()
	ctx, p, other := t.Context(), w.on(node), w.node()
	v, err := p.Create(ctx, providers.Spec{Name: "db", Size: gib, Record: providers.Record{"uid": "0"}})
	if err != nil {
		return err
	}
	var snap *providers.Snapshot
	for _, step := range []func() error{
		func() error { return p.Mark(ctx, v.ID, "uid", "999") },
		func() error { return providertest.Attach(ctx, p, v.ID) },
		func() error { _, err := p.List(ctx); return err },
		func() error { _, err := p.NodeState(ctx, node); return err },
		func() error { _, err := p.Modify(ctx, v.ID, providers.Change{Size: 2 * gib}); return err },
		func() error { return p.Detach(ctx, v.ID, node, false) },
		func() (err error) {
			snap, err = p.Snapshot(ctx, v.ID, providers.SnapshotSpec{Description: "nightly"})
			return err
		},
		func() error { _, err := p.Create(ctx, providers.Spec{Name: "copy", Snapshot: snap.ID}); return err },
		func() error { return p.DeleteSnapshot(ctx, snap.ID) },
		func() error { return p.Forget(ctx, v.ID) },
		func() error { _, err := p.Adopt(ctx, v.ID, providers.Spec{Name: "db"}); return err },
		func() error { return p.Delete(ctx, v.ID) },
		func() error { return p.PowerOff(ctx, other) },
		func() error { return p.PowerOn(ctx, other) },
	} {
		time.Sleep(time.Minute)
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func TestTheDocumentedScopesAreEnoughAndNoneTooMuch(t *testing.T) {
	scopes := documentedScopes(t)
	for _, lacks := range append([]string{""}, scopes...) {
		inWorld(t, cloud.Config{Times: slow}, front.Config{}, func(t *testing.T, w *world) {
			node := w.node()
			w.front.Restrict(w.front.Token(node), slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == lacks })...)
			err := life(t, w, node)
			if lacks == "" || lacks == "account:read" { // which is doctor's alone
				require.NoError(t, err)
				return
			}
			require.NotErrorIs(t, err, providers.ErrNotFound)
			providertest.Sentence(t, err, "scope")
		})
	}
}
