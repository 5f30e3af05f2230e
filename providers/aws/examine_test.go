package aws

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/test/cloud"
)

// dryOnly lets nothing through that would change something, and counts dry runs.
type dryOnly struct {
	http.RoundTripper
	t *testing.T

	mu  sync.Mutex
	dry map[string]int
}

func (d *dryOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodPost {
		return d.RoundTripper.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	require.NoError(d.t, err)
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, err := url.ParseQuery(string(body))
	require.NoError(d.t, err)
	action := form.Get("Action")
	if form.Get("DryRun") == "true" {
		d.mu.Lock()
		d.dry[action]++
		d.mu.Unlock()
	} else {
		assert.True(d.t, strings.HasPrefix(action, "Describe"), "%s is no dry run", action)
	}
	return d.RoundTripper.RoundTrip(r)
}

// examined makes a volume and a snapshot of it, and returns what a new process finds.
func examined(t *testing.T, w *world) (found []providers.Finding, dry map[string]int) {
	t.Helper()
	node := w.node("a")
	p := w.on(node)
	v := w.create(p, "db")
	_, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "copy"})
	require.NoError(t, err)
	return w.examine(t, node)
}

func (w *world) examine(t *testing.T, node string) (found []providers.Finding, dry map[string]int) {
	t.Helper()
	way := &dryOnly{RoundTripper: w.front.Transport(node), t: t, dry: map[string]int{}}
	return w.onWith(way).Examine(t.Context()), way.dry
}

func codes(found []providers.Finding) (codes []string) {
	for _, f := range found {
		if f.Severity != providers.OK {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

func TestDoctorTriesEachActionOfThePolicyInADryRun(t *testing.T) {
	doc := ours(t)
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		found, dry := examined(t, w)
		assert.Empty(t, codes(found), "%v", found)
		for _, s := range doc.Statement {
			for _, action := range s.actions() {
				assert.NotZero(t, dry[strings.TrimPrefix(action, "ec2:")], action)
			}
		}
	}, doc.on(t))
}

func TestDoctorNamesEachActionThatThePolicyLacks(t *testing.T) {
	doc := ours(t)
	for _, s := range doc.Statement {
		for _, action := range s.actions() {
			if s.Sid == "AdoptVolumesThatAreNobodys" {
				continue // there is no such volume to try it on
			}
			t.Run(s.Sid+" without "+action, func(t *testing.T) {
				var node string
				inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
					// Made by somebody who may, in the same cloud.
					node = w.node("a")
					w.byHand(func(r *cloud.Request) error {
						tags := map[string]string{}
						for _, tag := range tagList(w.on(node).marks(providers.Spec{Name: "db"})) {
							tags[*tag.Key] = *tag.Value
						}
						v, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: gib, Type: "gp3"}, Zone: region + "a", Tags: tags})
						if err != nil {
							return err
						}
						_, err = r.CreateSnapshot(v.ID, "copy", tags)
						return err
					})
					found, _ := w.examine(t, node)
					require.Equal(t, []string{"permission-missing"}, codes(found), "%v", found)
					for _, f := range found {
						if f.Code != "" {
							assert.Contains(t, f.Message, action)
							assert.Contains(t, f.Remedy, "docs/aws.md")
						}
					}
				}, doc.without(s.Sid, action).on(t))
			})
		}
	}
}

func TestDoctorSaysWhatCannotBeTriedInAnEmptyCluster(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		found, dry := w.examine(t, w.node("a"))
		assert.Empty(t, codes(found))
		assert.Zero(t, dry["AttachVolume"])
		assert.Contains(t, found[2].Message, "can be tried when the cluster has one")
	})
}
