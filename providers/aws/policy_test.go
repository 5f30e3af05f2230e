package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	api "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
)

type policyStatement struct {
	Sid, Effect      string
	Action, Resource any
	Condition        map[string]any `json:",omitempty"`
}

func (s policyStatement) actions() (all []string) {
	if one, is := s.Action.(string); is {
		return []string{one}
	}
	for _, a := range s.Action.([]any) {
		all = append(all, a.(string))
	}
	return all
}

type policyDocument struct {
	Version   string
	Statement []policyStatement
}

// ours is the policy in the documentation.
func ours(t *testing.T) (doc policyDocument) {
	t.Helper()
	text, err := os.ReadFile("../../docs/aws-policy.json")
	require.NoError(t, err)
	// With the name of the cluster instead of "default", as the documentation says.
	require.NoError(t, json.Unmarshal(bytes.ReplaceAll(text, []byte(`cluster": "default"`), []byte(`cluster": "main"`)), &doc))
	return doc
}

// without returns the policy without one action of one statement.
func (doc policyDocument) without(sid, action string) (less policyDocument) {
	less.Version = doc.Version
	for _, s := range doc.Statement {
		if s.Sid == sid {
			left := slices.DeleteFunc(s.actions(), func(a string) bool { return a == action })
			if len(left) == 0 {
				continue
			}
			s.Action = left
		}
		less.Statement = append(less.Statement, s)
	}
	return less
}

func (doc policyDocument) on(t *testing.T) func(*ec2.Config) {
	t.Helper()
	text, err := json.Marshal(doc)
	require.NoError(t, err)
	return func(cfg *ec2.Config) { cfg.Policy = text }
}

// wholeLife makes every call of the contract, and returns the first refusal.
func wholeLife(ctx context.Context, w *world) error {
	node := w.node("a")
	p := w.on(node)
	tags := map[string]string{"team": "storage"}
	v, err := p.Create(ctx, providers.Spec{Name: "db", Size: gib, Tags: tags, Record: providers.Record{"layout": "data"}})
	if err != nil {
		return err
	}
	var snap *providers.Snapshot
	var copied *providers.Volume
	for _, step := range []func() error{
		func() error { _, err := p.Find(ctx, "db"); return err },
		func() error { _, err := p.NodeState(ctx, node); return err },
		func() error { return providertest.Attach(ctx, p, v.ID) },
		func() error { return providertest.Attach(ctx, p, v.ID) },
		func() error { return p.Mark(ctx, v.ID, "formatted", "ext4") },
		func() error { _, err := p.Modify(ctx, v.ID, providers.Change{Size: 2 * gib}); return err },
		func() (err error) {
			snap, err = p.Snapshot(ctx, v.ID, providers.SnapshotSpec{Description: "copy"})
			return err
		},
		func() error { return p.Detach(ctx, v.ID, node, false) },
		func() error { time.Sleep(10 * time.Second); return nil },
		func() (err error) {
			copied, err = p.Create(ctx, providers.Spec{Name: "copy", Snapshot: snap.ID})
			return err
		},
		func() error { return p.Forget(ctx, v.ID) },
		func() error { _, err := p.Adopt(ctx, v.ID, providers.Spec{Name: "back", Tags: tags}); return err },
		func() error { _, err := p.List(ctx); return err },
		func() error { return p.DeleteSnapshot(ctx, snap.ID) },
		func() error { return p.Delete(ctx, copied.ID) },
		func() error { return p.Delete(ctx, v.ID) },
		// Again, when the volume and its tags are gone.
		func() error { time.Sleep(time.Minute); return nil },
		func() error { return p.Detach(ctx, v.ID, node, false) },
		func() error { return w.on(node).Detach(ctx, v.ID, node, true) },
		func() error { return p.Delete(ctx, v.ID) },
		func() error { return w.on(node).Delete(ctx, v.ID) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func TestTheDocumentedPolicyIsSufficient(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		require.NoError(t, wholeLife(t.Context(), w))
		assert.Zero(t, w.volumes())
	}, ours(t).on(t))
}

func TestTheDocumentedPolicyIsMinimal(t *testing.T) {
	doc := ours(t)
	for _, s := range doc.Statement {
		for _, action := range s.actions() {
			t.Run(s.Sid+" without "+action, func(t *testing.T) {
				inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
					err := wholeLife(t.Context(), w)
					providertest.Sentence(t, err, action, "IAM policy", "docs/aws.md")
					for _, verdict := range []error{providers.ErrNotFound, providers.ErrInvalid, providers.ErrHeld} {
						require.NotErrorIs(t, err, verdict)
					}
				}, doc.without(s.Sid, action).on(t))
			})
		}
	}
}

// The policy prevents damage that a mistake of this program could do.
func TestTheDocumentedPolicyProtectsOtherVolumes(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.node("a")
		p := w.on(node)
		v := w.create(p, "db")
		s, err := p.session.Get(t.Context())
		require.NoError(t, err)
		foreign := map[string]string{}
		w.byHand(func(r *cloud.Request) error {
			for of, tags := range map[string]map[string]string{"nobody": {}, "another cluster": {tagCluster: "other", tagName: "db"}} {
				made, err := r.CreateVolume(cloud.VolumeSpec{Shape: cloud.Shape{Size: gib, Type: "gp3"}, Zone: region + "a", Tags: tags})
				if err != nil {
					return err
				}
				foreign[of] = made.ID
			}
			return nil
		})
		tag := func(key, value string) []types.Tag { return []types.Tag{{Key: &key, Value: &value}} }
		for _, of := range slices.Sorted(maps.Keys(foreign)) {
			id := foreign[of]
			for what, try := range map[string]func() error{
				"attach": func() error {
					_, err := s.api.AttachVolume(t.Context(), &api.AttachVolumeInput{VolumeId: &id, InstanceId: &node, Device: sdk.String("/dev/sdf")})
					return err
				},
				"detach": func() error {
					_, err := s.api.DetachVolume(t.Context(), &api.DetachVolumeInput{VolumeId: &id})
					return err
				},
				"delete": func() error {
					_, err := s.api.DeleteVolume(t.Context(), &api.DeleteVolumeInput{VolumeId: &id})
					return err
				},
				"modify": func() error {
					_, err := s.api.ModifyVolume(t.Context(), &api.ModifyVolumeInput{VolumeId: &id, Size: sdk.Int32(2)})
					return err
				},
				"copy": func() error {
					_, err := s.api.CreateSnapshot(t.Context(), &api.CreateSnapshotInput{VolumeId: &id, TagSpecifications: []types.TagSpecification{{
						ResourceType: types.ResourceTypeSnapshot, Tags: tag(tagCluster, "main"),
					}}})
					return err
				},
				"untag": func() error {
					_, err := s.api.DeleteTags(t.Context(), &api.DeleteTagsInput{Resources: []string{id}, Tags: tag(tagCluster, "other")})
					return err
				},
				"tag": func() error {
					_, err := s.api.CreateTags(t.Context(), &api.CreateTagsInput{Resources: []string{id}, Tags: tag("x", "y")})
					return err
				},
			} {
				assert.Equal(t, "UnauthorizedOperation", codeOf(try()), "%s what is of %s", what, of)
			}
		}
		steal := &api.CreateTagsInput{Resources: []string{foreign["another cluster"]}, Tags: tag(tagCluster, "main")}
		_, err = s.api.CreateTags(t.Context(), steal)
		assert.Equal(t, "UnauthorizedOperation", codeOf(err), "a volume of another cluster cannot be adopted")
		_, err = s.api.CreateVolume(t.Context(), &api.CreateVolumeInput{AvailabilityZone: sdk.String(region + "a"), Size: sdk.Int32(1)})
		assert.Equal(t, "UnauthorizedOperation", codeOf(err), "nor one created without the mark")

		_, err = p.Adopt(t.Context(), foreign["nobody"], providers.Spec{Name: "adopted"})
		require.NoError(t, err)
		require.NoError(t, p.Delete(t.Context(), v.ID))
	}, ours(t).on(t))
}
