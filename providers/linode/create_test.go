package linode

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

func TestACreateIsOneRequestBetweenReads(t *testing.T) {
	inWorld(t, cloud.Config{Times: slow}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		w.create(p, "db")
		calls := w.calls()
		assert.Equal(t, 2, calls[listing], "before, and whether it is the only one")
		assert.Equal(t, 1, calls[creating])
		assert.LessOrEqual(t, calls[looking], 6, "while it is being made")
	})
}

func TestAVolumeIsWhatWasAskedFor(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		for name, c := range map[string]struct {
			spec providers.Spec
			gibs int64
		}{
			"default": {providers.Spec{}, 20},
			"least":   {providers.Spec{Size: 1}, 10},
			"rounded": {providers.Spec{Size: 10*gib + 1}, 11},
			"most":    {providers.Spec{Size: 16384 * gib}, 16384},
			"secret":  {providers.Spec{Size: 10 * gib, Encrypted: true}, 10},
			"tagged":  {providers.Spec{Size: 10 * gib, Tags: map[string]string{"team": "db", "Costly": ""}}, 10},
		} {
			c.spec.Name = name
			v, err := p.Create(t.Context(), c.spec)
			require.NoError(t, err)
			assert.Equal(t, c.gibs*gib, v.Size, name)
			assert.Equal(t, map[string]string{"zone": region, "encrypted": strconv.FormatBool(c.spec.Encrypted)}, v.Details)
			truth, _ := w.cloud.Volume(v.ID)
			assert.Equal(t, c.spec.Encrypted, truth.Encrypted)
			if c.spec.Tags != nil {
				assert.Contains(t, truth.Tags["tags"], `"Costly"`)
				assert.Contains(t, truth.Tags["tags"], `"team:db"`)
			}
		}
	})
}

func TestTheLongestNamesFitIntoTags(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		rec := providers.Record{"abcdefghijklmn-9": strings.Repeat("é", 127) + "x", "layout": "data"}
		p := w.on(w.node(), func(cfg *Config) { cfg.Cluster = strings.Repeat("Ü", 127) })
		name := strings.Repeat("数", 85)
		v, err := p.Create(t.Context(), providers.Spec{Name: name, Record: rec})
		require.NoError(t, err) // the front refuses what does not fit
		assert.Equal(t, rec, v.Record)
		list, err := p.List(t.Context())
		require.NoError(t, err)
		require.Len(t, list, 1)
		assert.Equal(t, name, list[0].Name)
	})
}

// A label stays with its disk, since it is the device's serial.
func TestAForgottenDiskKeepsItsLabelAndTheNextOneHasAnother(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		serials := map[string]bool{}
		var ids []string
		for range 3 {
			v := w.create(p, "db")
			serials[v.Serial] = true
			require.NoError(t, p.Forget(t.Context(), v.ID))
			ids = append(ids, v.ID)
		}
		assert.Len(t, serials, 3)
		v, err := p.Adopt(t.Context(), ids[0], providers.Spec{Name: "other"})
		require.NoError(t, err)
		assert.True(t, serials[v.Serial])
		assert.Equal(t, 3, w.calls()[creating]-3, "each refused label is one request")
	})
}

// Node a has seen that the first label is taken; before it takes the second, the disk that has the first is deleted and b
// makes a volume of that name.
func TestTwoVolumesOfOneNameDoNotComeToBe(t *testing.T) {
	for _, aFirst := range []bool{false, true} {
		t.Run(fmt.Sprint("a is first: ", aFirst), func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				a, b := w.node(), w.node()
				pb := w.on(b)
				old := w.create(pb, "db")
				require.NoError(t, pb.Forget(t.Context(), old.ID))
				var made [2]*providers.Volume
				create := func(i int, p *Provider) {
					v, err := p.Create(t.Context(), providers.Spec{Name: "db"})
					assert.NoError(t, err)
					made[i] = v
				}
				foundNothing, created, posts := make(chan bool), make(chan bool), 0
				pa := w.on(a, func(cfg *Config) {
					cfg.Transport = httpsim.Before(cfg.Transport, func(r *http.Request) {
						if r.Method != http.MethodPost {
							return
						}
						if posts++; posts == 2 {
							close(foundNothing)
							<-created
						}
					})
				})
				providertest.AtOnce(func() { create(0, pa) }, func() {
					<-foundNothing
					forgotten, err := pb.Get(t.Context(), old.ID)
					assert.NoError(t, err)
					assert.NoError(t, pb.destroy(t.Context(), forgotten))
					if !aFirst {
						create(1, pb)
						close(created)
						return
					}
					// b has looked before a made its volume, and makes its own after.
					late := w.on(b, func(cfg *Config) {
						cfg.Transport = httpsim.Before(cfg.Transport, func(r *http.Request) {
							if r.Method == http.MethodPost {
								close(created)
								synctest.Wait() // until a has its volume
							}
						})
					})
					create(1, late)
				})
				require.NotNil(t, made[0])
				require.NotNil(t, made[1])
				assert.Equal(t, made[0].ID, made[1].ID)
				found, err := w.on(a).Find(t.Context(), "db")
				require.NoError(t, err)
				assert.Equal(t, made[0].ID, found.ID)
				var left []string
				for _, v := range w.cloud.Volumes() {
					if v.State == cloud.Available && v.ID != found.ID {
						left = append(left, v.ID)
						assert.JSONEq(t, `["bvf:cluster:main","bvf:name:db"]`, v.Tags["tags"], "it is listed among the disks that are no volumes")
					}
				}
				assert.Len(t, left, 1, "the other disk is not deleted")
				assert.Equal(t, 1, w.calls()["DELETE /v4/volumes/{id}"], "of the forgotten disk")
			})
		})
	}
}

func TestAQuotaIsNoSpace(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		w.cloud.Inject(cloud.Rule{Action: creating, Fault: cloud.Fail, Code: "Account Limit reached. Please open a support ticket."})
		_, err := w.on(w.node()).Create(t.Context(), providers.Spec{Name: "db"})
		require.ErrorIs(t, err, providers.ErrNoSpace)
		providertest.Sentence(t, err, "Account Limit reached", "higher limit")
	})
}

func TestARegionThatDoesNotExistIsRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		_, err := p.Create(t.Context(), providers.Spec{Name: "db", Zone: "atlantis"})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "region is not valid")
		_, err = p.Create(t.Context(), providers.Spec{Name: "db", Zone: "us-test", Encrypted: true})
		require.ErrorIs(t, err, providers.ErrInvalid)
		providertest.Sentence(t, err, "Encryption is not available")
	})
}

func TestAVolumeThatLinodeCannotMakeEndsInASentence(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		w.cloud.Inject(cloud.Rule{Action: creating, Fault: cloud.NeverFinish})
		ctx, cancel := contextWithin(t)
		defer cancel()
		_, err := w.on(w.node()).Create(ctx, providers.Spec{Name: "db"})
		require.ErrorIs(t, err, ctx.Err())
		providertest.Sentence(t, err, "still being created")
	})
}

// What Linode has made without tags nobody can have found. Anything else is not for Create to delete.
func TestCreateDeletesOnlyWhatNobodyCanHaveBeenGiven(t *testing.T) {
	for name, c := range map[string]struct {
		stored func(tags string) string                    // of the tags that were asked for
		then   func(w *world, node string, id json.Number) // before the next look at the volume
		kept   bool
	}{
		"no tags":                   {stored: func(string) string { return `[]` }},
		"no tags, and attached":     {func(string) string { return `[]` }, func(w *world, node string, id json.Number) { w.attachByHand(node, id) }, true},
		"no tags, and tagged since": {func(string) string { return `[]` }, func(w *world, _ string, id json.Number) { w.retagged(id.String(), "bv:name:mine") }, true},
		"all tags but the record's": {stored: func(tags string) string { return strings.ReplaceAll(tags, "bvr:", "xyz:") }, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				node := w.node()
				p := w.on(node, func(cfg *Config) {
					inner := cfg.Transport
					cfg.Transport = httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
						if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/volumes") {
							return inner.RoundTrip(r)
						}
						var in map[string]any
						body, err := io.ReadAll(r.Body)
						require.NoError(t, err)
						require.NoError(t, json.Unmarshal(body, &in))
						tags, err := json.Marshal(in["tags"])
						require.NoError(t, err)
						in["tags"] = json.RawMessage(c.stored(string(tags)))
						body, err = json.Marshal(in)
						require.NoError(t, err)
						r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
						answer, err := inner.RoundTrip(r)
						if err == nil && c.then != nil {
							body, err = io.ReadAll(answer.Body)
							answer.Body = io.NopCloser(bytes.NewReader(body))
							c.then(w, node, cloudtest.JSONField(t, string(body), "id").(json.Number))
						}
						return answer, err
					})
				})
				_, err := p.Create(t.Context(), providers.Spec{Name: "db", Record: providers.Record{"layout": "data"}})
				providertest.Sentence(t, err, "was made without all of its tags")
				assert.Equal(t, !c.kept, strings.Contains(err.Error(), "has been deleted again"))
				if all := w.cloud.Volumes(); assert.Equal(t, c.kept, len(all) == 1) && c.kept {
					assert.ErrorContains(t, err, "volume "+all[0].ID)
				}
			})
		})
	}
}

// attachByHand attaches a volume as somebody does in the console.
func (w *world) attachByHand(node string, id json.Number) {
	status, _, answer, err := httpsim.Send(w.t.Context(), w.front.Transport(node), http.MethodPost, "https://api.linode.com/v4/volumes/"+id.String()+"/attach",
		`{"linode_id": `+node+`}`, "Authorization", "Bearer "+w.front.Token(node), "Content-Type", "application/json")
	require.NoError(w.t, err)
	require.Equal(w.t, http.StatusOK, status, answer)
}
