package digitalocean_test

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/digitalocean"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// world is a cloud with a droplet.
type world struct {
	cloudtest.Client
	t       *testing.T
	cloud   *cloud.Cloud
	front   *digitalocean.Front
	droplet string
}

var times = cloud.Times{Attach: 5 * time.Second, Detach: 5 * time.Second, Modify: 4 * time.Second, Snapshot: 3 * time.Second, Stop: time.Second, Terminate: time.Second}

// inWorld runs a test under synctest.Test. An action takes some seconds.
func inWorld(t *testing.T, cfg cloud.Config, front digitalocean.Config, test func(*testing.T, *world)) {
	t.Helper()
	cfg.Zones, cfg.ID, cfg.Times = []string{"nyc1", "ams3"}, digitalocean.ID, times
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		front.Cloud = c
		w := &world{t: t, cloud: c, front: digitalocean.New(front)}
		w.droplet = w.node("nyc1")
		w.Client = cloudtest.Client{T: t, Transport: w.front.Transport(w.droplet), URL: "https://api.digitalocean.com", Token: w.front.Token(w.droplet)}
		test(t, w)
	})
}

func (w *world) node(region string) string {
	return w.cloud.AddInstance(cloud.Instance{Zone: region}).ID
}

func (w *world) create(name string) string {
	w.t.Helper()
	return w.Must("POST", "/v2/volumes", `{"name": "`+name+`", "region": "nyc1", "size_gigabytes": 10}`, "volume", "id").(string)
}

func (w *world) attach(volume, droplet string) {
	w.t.Helper()
	w.Must("POST", "/v2/volumes/"+volume+"/actions", `{"type": "attach", "droplet_id": `+droplet+`}`)
}

func (w *world) droplets(volume string) any {
	w.t.Helper()
	return w.Must("GET", "/v2/volumes/"+volume, "", "volume", "droplet_ids")
}

const nyc1 = `{"name": "Region nyc1", "slug": "nyc1", "sizes": ["s-1vcpu-1gb", "s-2vcpu-4gb"],
	"features": ["private_networking", "backups", "ipv6", "metadata", "storage"], "available": true}`

func TestAnswersMatchTheReference(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		status, _, answer := w.Send("POST", "/v2/volumes", `{"size_gigabytes": 10, "name": "example", "description": "Block store for examples",
			"region": "nyc1", "tags": ["aninterestingtag"]}`)
		assert.Equal(t, http.StatusCreated, status)
		id := w.cloud.Volumes()[0].ID
		volume := `{"id": "` + id + `", "region": ` + nyc1 + `, "droplet_ids": [], "name": "example", "description": "Block store for examples",
			"size_gigabytes": 10, "created_at": "2000-01-01T00:00:00Z", "filesystem_type": "", "filesystem_label": "", "tags": ["aninterestingtag"]}`
		assert.JSONEq(t, `{"volume": `+volume+`}`, answer)
		_, _, answer = w.Send("GET", "/v2/volumes?name=example&region=nyc1", "")
		assert.JSONEq(t, `{"volumes": [`+volume+`], "links": {}, "meta": {"total": 1}}`, answer)

		status, _, answer = w.Send("POST", "/v2/volumes/"+id+"/actions", `{"type": "attach", "droplet_id": `+w.droplet+`, "region": "nyc1"}`)
		assert.Equal(t, http.StatusAccepted, status)
		action := func(status, end string) string {
			return `{"action": {"id": 2400000000, "status": "` + status + `", "type": "attach_volume", "started_at": "2000-01-01T00:00:00Z", "completed_at": ` + end + `,
				"resource_id": null, "resource_type": "volume", "region": ` + nyc1 + `, "region_slug": "nyc1"}}`
		}
		assert.JSONEq(t, action("in-progress", "null"), answer)
		time.Sleep(6 * time.Second)
		_, _, answer = w.Send("GET", "/v2/volumes/"+id+"/actions/2400000000", "")
		assert.JSONEq(t, action("completed", `"2000-01-01T00:00:06Z"`), answer)
		assert.Equal(t, []any{json.Number(w.droplet)}, w.droplets(id))

		status, _, answer = w.Send("POST", "/v2/volumes/"+id+"/snapshots", `{"name": "nightly", "tags": ["one"]}`)
		assert.Equal(t, http.StatusCreated, status)
		snap := w.cloud.Snapshots()[0].ID
		assert.JSONEq(t, `{"snapshot": {"id": "`+snap+`", "name": "nightly", "created_at": "2000-01-01T00:00:06Z", "regions": ["nyc1"], "resource_id": "`+id+`",
			"resource_type": "volume", "min_disk_size": 10, "size_gigabytes": 2.5, "tags": ["one"]}}`, answer)

		status, _, answer = w.Send("GET", "/v2/volumes/none", "")
		assert.Equal(t, http.StatusNotFound, status)
		assert.JSONEq(t, `{"id": "not_found", "message": "The resource you requested could not be found.", "request_id": "`+cloudtest.JSONField(t, answer, "request_id").(string)+`"}`, answer)
		status, _, answer = w.Send("DELETE", "/v2/volumes/"+w.create("other"), "")
		assert.Equal(t, http.StatusNoContent, status)
		assert.Empty(t, answer)
	})
}

func TestVolumesHaveLimits(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(_ *testing.T, w *world) {
		w.create("taken")
		for body, status := range map[string]int{
			`{"name": "a", "region": "nyc1", "size_gigabytes": 1}`:                                                    201,
			`{"name": "` + strings.Repeat("b", 64) + `", "region": "nyc1", "size_gigabytes": 16384}`:                  201,
			`{"name": "taken", "region": "ams3", "size_gigabytes": 1}`:                                                201,
			`{"name": "taken", "region": "nyc1", "size_gigabytes": 1}`:                                                409,
			`{"name": "` + strings.Repeat("b", 65) + `", "region": "nyc1", "size_gigabytes": 1}`:                      422,
			`{"name": "1a", "region": "nyc1", "size_gigabytes": 1}`:                                                   422,
			`{"name": "A", "region": "nyc1", "size_gigabytes": 1}`:                                                    422,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 0}`:                                                    422,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 16385}`:                                                422,
			`{"name": "c", "region": "lon1", "size_gigabytes": 1}`:                                                    422,
			`{"name": "c", "size_gigabytes": 1}`:                                                                      422,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 1, "filesystem_type": "btrfs"}`:                        422,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 1, "filesystem_label": "x"}`:                           422,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 1, "tags": ["no blanks"]}`:                             422,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 1, "snapshot_id": "none"}`:                             404,
			`{"name": "c", "region": "nyc1", "size_gigabytes": 1, "colour": "red"}`:                                   400,
			`{"name": "c", "region": "nyc1", "size_gigabytes": "1"}`:                                                  400,
			`{"name": "d", "region": "nyc1", "size_gigabytes": 1, "filesystem_type": "ext4", "snapshot_id": ""}`:      201,
			`{"name": "e", "region": "nyc1", "size_gigabytes": 1, "tags": ["` + strings.Repeat("x", 255) + `", "T"]}`: 201,
		} {
			w.Refused(status, "", "POST", "/v2/volumes", body)
		}
	})
}

func TestVolumeIsOnOneDropletAndDropletHasOneActionAtATime(t *testing.T) {
	for name, early := range map[string]bool{"shown when it is there": false, "shown early": true} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, digitalocean.Config{Early: early}, func(t *testing.T, w *world) {
				a, b, other := w.create("a"), w.create("b"), w.node("nyc1")
				attach := func(droplet string) string { return `{"type": "attach", "droplet_id": ` + droplet + `}` }
				detach := strings.Replace(attach(w.droplet), "attach", "detach", 1)
				w.attach(a, w.droplet)
				assert.Len(t, w.droplets(a), map[bool]int{false: 0, true: 1}[early], "pending")
				w.Refused(422, "pending event", "POST", "/v2/volumes/"+b+"/actions", attach(w.droplet))
				w.Refused(422, "pending event", "POST", "/v2/volumes/"+a+"/actions", attach(other))
				w.Refused(422, "pending event", "POST", "/v2/volumes/"+a+"/actions", detach)
				w.Refused(409, "attached to a Droplet", "DELETE", "/v2/volumes/"+a, "")
				w.attach(b, other)
				time.Sleep(6 * time.Second)
				assert.Equal(t, []any{json.Number(w.droplet)}, w.droplets(a))
				assert.Equal(t, []any{a}, w.Must("GET", "/v2/droplets/"+w.droplet, "", "droplet", "volume_ids"))
				w.Refused(422, "This volume is already attached", "POST", "/v2/volumes/"+a+"/actions", attach(w.droplet))
				w.Refused(422, "This volume is already attached", "POST", "/v2/volumes/"+a+"/actions", attach(other))
				w.Refused(422, "Attachment not found", "POST", "/v2/volumes/"+b+"/actions", detach)
				w.Refused(409, "attached to a Droplet", "DELETE", "/v2/volumes/"+a, "")
				w.Must("POST", "/v2/volumes/"+a+"/actions", detach)
				assert.Len(t, w.droplets(a), map[bool]int{false: 0, true: 1}[early], "pending")
				w.Refused(422, "pending event", "POST", "/v2/volumes/"+a+"/actions", attach(other))
				time.Sleep(6 * time.Second)
				assert.Empty(t, w.droplets(a))
				w.Refused(422, "Attachment not found", "POST", "/v2/volumes/"+a+"/actions", detach)
				w.Must("DELETE", "/v2/volumes/"+a, "")
			})
		})
	}
}

func TestTrailingSlashAndPathOfAction(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		volume := w.Must("POST", "/v2/volumes/", `{"name": "db", "region": "nyc1", "size_gigabytes": 10}`, "volume", "id").(string)
		droplet := w.droplet
		action := w.Must("POST", "/v2/volumes/"+volume+"/actions/", `{"type": "attach", "droplet_id": `+droplet+`}`, "action", "id").(json.Number)
		assert.Equal(t, "attach_volume", w.Must("GET", "/v2/actions/"+action.String(), "", "action", "type"))
		w.Refused(404, "could not be found", "GET", "/v2/actions/1", "")
	})
}

func TestInvalidActionsAreRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(_ *testing.T, w *world) {
		id, far := w.create("a"), w.node("ams3")
		for body, status := range map[string]int{
			`{"type": "attach", "droplet_id": ` + far + `}`:                         422,
			`{"type": "attach", "droplet_id": ` + w.droplet + `, "region": "ams3"}`: 422,
			`{"type": "attach", "droplet_id": 1}`:                                   404,
			`{"type": "attach", "droplet_id": "` + w.droplet + `"}`:                 400,
			`{"type": "attach"}`: 422,
			`{"type": "detach"}`: 422,
			`{"type": "move", "droplet_id": ` + w.droplet + `}`:                           422,
			`{"type": "resize", "size_gigabytes": 10, "region": "nyc1"}`:                  422,
			`{"type": "resize", "size_gigabytes": 9, "region": "nyc1"}`:                   422,
			`{"type": "resize", "size_gigabytes": 16385, "region": "nyc1"}`:               422,
			`{"type": "resize", "size_gigabytes": 11}`:                                    422,
			`{"type": "resize", "size_gigabytes": 11, "region": "nyc1", "droplet_id": 1}`: 422,
			`{"type": "attach", "droplet_id": ` + w.droplet + `, "volume_id": "x"}`:       400,
			`{"type": "attach", "droplet_id": ` + w.droplet + `, "size_gigabytes": 1} `:   422,
		} {
			w.Refused(status, "", "POST", "/v2/volumes/"+id+"/actions", body)
		}
		w.Refused(404, "", "POST", "/v2/volumes/none/actions", `{"type": "attach", "droplet_id": `+w.droplet+`}`)
	})
}

func TestDropletLimitsVolumes(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{Most: 2}, func(_ *testing.T, w *world) {
		for _, name := range []string{"a", "b"} {
			w.attach(w.create(name), w.droplet)
			time.Sleep(6 * time.Second)
		}
		w.Refused(422, "cannot attach more volumes to the Droplet", "POST", "/v2/volumes/"+w.create("c")+"/actions", `{"type": "attach", "droplet_id": `+w.droplet+`}`)
	})
}

func TestResizeOfAttachedVolumeTakesTime(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		id := w.create("a")
		w.attach(id, w.droplet)
		time.Sleep(6 * time.Second)
		resize := `{"type": "resize", "size_gigabytes": 11, "region": "nyc1"}`
		w.Must("POST", "/v2/volumes/"+id+"/actions", resize)
		assert.Equal(t, json.Number("10"), w.Must("GET", "/v2/volumes/"+id, "", "volume", "size_gigabytes"))
		w.Refused(422, "pending event", "POST", "/v2/volumes/"+id+"/actions", resize)
		time.Sleep(5 * time.Second)
		assert.Equal(t, json.Number("11"), w.Must("GET", "/v2/volumes/"+id, "", "volume", "size_gigabytes"))
	})
}

func TestAttachCanEndAsErrored(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		id := w.create("a")
		w.cloud.Inject(cloud.Rule{Action: "POST /v2/volumes/{id}/actions", Fault: cloud.NeverFinish, Times: 1})
		w.attach(id, w.droplet)
		time.Sleep(time.Hour)
		assert.Equal(t, "in-progress", w.Must("GET", "/v2/volumes/"+id+"/actions/2400000000", "", "action", "status"))
		w.front.Fail(id)
		assert.Equal(t, "errored", w.Must("GET", "/v2/volumes/"+id+"/actions/2400000000", "", "action", "status"))
		time.Sleep(6 * time.Second)
		w.attach(id, w.droplet)
	})
}

func TestSnapshotHasTheVolumesSize(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		id := w.create("a")
		snap := w.Must("POST", "/v2/volumes/"+id+"/snapshots", `{"name": "s"}`, "snapshot", "id").(string)
		w.Refused(409, "", "POST", "/v2/volumes/"+id+"/snapshots", `{"name": "s"}`)
		from := func(region string) string {
			return `{"name": "b", "region": "` + region + `", "size_gigabytes": 20, "snapshot_id": "` + snap + `"}`
		}
		w.Refused(422, "pending event", "POST", "/v2/volumes", from("nyc1"))
		w.Refused(422, "pending event", "DELETE", "/v2/volumes/"+id, "")
		time.Sleep(4 * time.Second)
		w.Refused(422, "", "POST", "/v2/volumes", from("ams3"))
		assert.Equal(t, json.Number("10"), w.Must("POST", "/v2/volumes", from("nyc1"), "volume", "size_gigabytes"), "the requested size is ignored")
		for _, path := range []string{"/v2/snapshots?resource_type=volume", "/v2/volumes/" + id + "/snapshots"} {
			assert.Len(t, w.Must("GET", path, "", "snapshots"), 1)
		}
		assert.Empty(t, w.Must("GET", "/v2/snapshots?resource_type=droplet", "", "snapshots"))
		w.Must("DELETE", "/v2/snapshots/"+snap, "")
		w.Refused(404, "", "DELETE", "/v2/snapshots/"+snap, "")
		w.Refused(404, "", "GET", "/v2/snapshots/"+snap, "")
	})
}

func TestTagsKeepTheCapitalsOfTheirCreator(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		id := w.create("a")
		resources := func(id, kind string) string {
			return `{"resources": [{"resource_id": "` + id + `", "resource_type": "` + kind + `"}]}`
		}
		volume := resources(id, "volume")
		w.Refused(404, "", "POST", "/v2/tags/PROD/resources", volume)
		w.Must("POST", "/v2/tags", `{"name": "PROD"}`)
		w.Refused(422, "", "POST", "/v2/tags", `{"name": "prod"}`)
		w.Refused(422, "", "POST", "/v2/tags", `{"name": "pr od"}`)
		w.Refused(404, "", "POST", "/v2/tags/prod/resources", volume)
		w.Refused(404, "", "POST", "/v2/tags/PROD/resources", resources("none", "volume"))
		w.Refused(404, "", "POST", "/v2/tags/PROD/resources", resources(id, "droplet"))
		w.Refused(422, "", "POST", "/v2/tags/PROD/resources", `{"resources": []}`)
		for range 2 {
			w.Must("POST", "/v2/tags/PROD/resources", volume)
			assert.Equal(t, []any{"PROD"}, w.Must("GET", "/v2/volumes/"+id, "", "volume", "tags"))
		}
		tags := w.Must("POST", "/v2/volumes", `{"name": "b", "region": "nyc1", "size_gigabytes": 1, "tags": ["prod", "new"]}`, "volume", "tags")
		assert.Equal(t, []any{"PROD", "new"}, tags)
		for range 2 {
			w.Must("DELETE", "/v2/tags/PROD/resources", volume)
			assert.Empty(t, w.Must("GET", "/v2/volumes/"+id, "", "volume", "tags"))
		}
	})
}

func TestListsComeInPages(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		for i := range 45 {
			w.create("v" + strconv.Itoa(i))
		}
		for query, want := range map[string]struct {
			count int
			links string
		}{
			"":              {20, `{"pages": {"next": "page=2", "last": "page=3"}}`},
			"?page=2":       {20, `{"pages": {"first": "page=1", "prev": "page=1", "next": "page=3", "last": "page=3"}}`},
			"?page=3":       {5, `{"pages": {"first": "page=1", "prev": "page=2"}}`},
			"?page=9":       {0, `{"pages": {"first": "page=1", "prev": "page=8"}}`},
			"?per_page=200": {45, `{}`},
			"?region=ams3":  {0, `{}`},
			"?name=v3":      {1, `{}`},
			"?name=v":       {0, `{}`},
		} {
			_, _, answer := w.Send("GET", "/v2/volumes"+query, "")
			var got struct {
				Volumes []any           `json:"volumes"`
				Links   json.RawMessage `json:"links"`
			}
			require.NoError(t, json.Unmarshal([]byte(answer), &got))
			assert.Len(t, got.Volumes, want.count, query)
			assert.JSONEq(t, want.links, strings.ReplaceAll(string(got.Links), "https://api.digitalocean.com/v2/volumes?", ""), query)
		}
		for _, query := range []string{"?per_page=201", "?per_page=0", "?page=0", "?page=x"} {
			w.Refused(422, "", "GET", "/v2/volumes"+query, "")
		}
		w.Refused(400, "colour", "GET", "/v2/volumes?colour=red", "")
	})
}

func TestTokenHasScopes(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		w.Must("POST", "/v2/volumes", `{"name": "a", "region": "nyc1", "size_gigabytes": 1, "tags": ["x"]}`)
		other := w.node("nyc1")
		token := w.front.Token(other)
		assert.NotEqual(t, w.front.Token(w.droplet), token)
		w.cloud.Inject(cloud.Rule{Caller: other, Fault: cloud.Fail, Code: "503 not now", Times: 1})
		w.Must("GET", "/v2/volumes", "")
		status, _, answer := w.SendAs(token, "GET", "/v2/volumes", "")
		assert.Equal(t, http.StatusServiceUnavailable, status)
		assert.Contains(t, answer, "not now")

		w.front.Restrict(token, "block_storage:read", "block_storage:create")
		status, _, answer = w.SendAs(token, "GET", "/v2/volumes", "")
		assert.Equal(t, http.StatusOK, status)
		assert.Contains(t, answer, `"tags":null`)
		status, _, _ = w.SendAs(token, "GET", "/v2/droplets/"+other, "")
		assert.Equal(t, http.StatusForbidden, status)
		status, _, _ = w.SendAs(token, "POST", "/v2/volumes", `{"name": "b", "region": "nyc1", "size_gigabytes": 1, "tags": ["x"]}`)
		assert.Equal(t, http.StatusForbidden, status)
		w.front.Revoke(token)
		for _, bad := range []string{token, "", "guess"} {
			status, _, answer = w.SendAs(bad, "GET", "/v2/volumes", "")
			assert.Equal(t, http.StatusUnauthorized, status)
			assert.Contains(t, answer, "Unable to authenticate you.")
		}
	})
}

func TestRateLimit(t *testing.T) {
	inWorld(t, cloud.Config{Limits: digitalocean.Limits}, digitalocean.Config{}, func(t *testing.T, w *world) {
		for left := 249; left >= 0; left-- {
			status, header, _ := w.Send("GET", "/v2/volumes", "")
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, strconv.Itoa(left), header.Get("ratelimit-remaining"))
			require.Equal(t, "250", header.Get("ratelimit-limit"))
		}
		status, header, answer := w.Send("GET", "/v2/volumes", "")
		assert.Equal(t, http.StatusTooManyRequests, status)
		assert.Contains(t, answer, "too_many_requests")
		assert.Equal(t, "1", header.Get("retry-after"))
		assert.Equal(t, strconv.FormatInt(time.Now().Unix()+1, 10), header.Get("ratelimit-reset"))
		time.Sleep(time.Second)
		w.Must("GET", "/v2/volumes", "")
	})
}

func TestDropletsAreShown(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		status := func() any { return w.Must("GET", "/v2/droplets/"+w.droplet, "", "droplet", "status") }
		volume := w.create("a")
		w.attach(volume, w.droplet)
		time.Sleep(6 * time.Second)
		assert.Equal(t, "active", status())
		w.cloud.Stop(w.droplet)
		assert.Equal(t, "active", status())
		time.Sleep(2 * time.Second)
		assert.Equal(t, "off", status())
		assert.Equal(t, []any{json.Number(w.droplet)}, w.droplets(volume), "a stopped droplet keeps its volumes")
		w.cloud.Start(w.droplet)
		assert.Equal(t, "new", status())
		time.Sleep(2 * time.Second)
		w.cloud.Terminate(w.droplet)
		assert.Equal(t, "active", status())
		time.Sleep(10 * time.Second)
		w.Refused(404, "", "GET", "/v2/droplets/"+w.droplet, "")
		assert.Empty(t, w.droplets(volume))
	})
}

func TestMetadataIdentifiesTheDroplet(t *testing.T) {
	inWorld(t, cloud.Config{Latency: time.Hour}, digitalocean.Config{}, func(t *testing.T, w *world) {
		get := func(path string) (int, string) {
			status, _, answer, err := httpsim.Send(t.Context(), w.front.Transport(w.droplet), http.MethodGet, "http://"+httpsim.MetadataHost+path, "")
			require.NoError(t, err)
			return status, answer
		}
		begin := time.Now()
		for path, want := range map[string]string{"/metadata/v1/id": w.droplet, "/metadata/v1/region": "nyc1", "/metadata/v1/hostname": "droplet-" + w.droplet} {
			status, got := get(path)
			assert.Equal(t, http.StatusOK, status)
			assert.Equal(t, want, got)
		}
		status, _ := get("/metadata/v1/colour")
		assert.Equal(t, http.StatusNotFound, status)
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "503", Times: 1})
		status, _ = get("/metadata/v1/id")
		assert.Equal(t, http.StatusServiceUnavailable, status)
		assert.Zero(t, time.Since(begin), "the API's latency does not apply")
		assert.Empty(t, w.cloud.Calls())
	})
}

func TestPowerIsCutAndComesBack(t *testing.T) {
	inWorld(t, cloud.Config{}, digitalocean.Config{}, func(t *testing.T, w *world) {
		path := "/v2/droplets/" + w.droplet
		status := func() any { return w.Must("GET", path, "", "droplet", "status") }
		const off, on, pending = `{"type": "power_off"}`, `{"type": "power_on"}`, "Droplet already has a pending event."
		volume := w.create("db")
		w.attach(volume, w.droplet)
		w.Refused(422, pending, "POST", path+"/actions", off)
		time.Sleep(6 * time.Second)
		code, _, answer := w.Send("POST", path+"/actions", off)
		assert.Equal(t, http.StatusCreated, code)
		action := cloudtest.JSONField(t, answer, "action", "id").(json.Number).String()
		assert.JSONEq(t, `{"action": {"id": `+action+`, "status": "in-progress", "type": "power_off", "started_at": "2000-01-01T00:00:06Z", "completed_at": null,
			"resource_id": `+w.droplet+`, "resource_type": "droplet", "region": `+nyc1+`, "region_slug": "nyc1"}}`, answer)
		assert.Equal(t, "active", status(), "until it is off")
		w.Refused(422, pending, "POST", path+"/actions", off)
		w.Refused(422, pending, "POST", "/v2/volumes/"+volume+"/actions", `{"type": "detach", "droplet_id": `+w.droplet+`}`)
		shown := func(key string) any {
			return w.Must("GET", path+"/actions", "", "actions").([]any)[0].(map[string]any)[key]
		}
		assert.Equal(t, "in-progress", shown("status"))
		time.Sleep(2 * time.Second)
		assert.Equal(t, "off", status())
		assert.Equal(t, "completed", shown("status"))
		w.Refused(422, "already powered off", "POST", path+"/actions", off)
		w.Must("POST", path+"/actions", on)
		assert.Equal(t, "power_on", shown("type"))
		time.Sleep(2 * time.Second)
		assert.Equal(t, "active", status())
		w.Refused(422, "already powered on", "POST", path+"/actions", on)
		w.Refused(404, "", "POST", "/v2/droplets/12/actions", off)
		w.Refused(422, "type", "POST", path+"/actions", `{"type": "rename"}`)
		w.front.Restrict(w.Token, "droplet:read")
		w.Refused(403, "", "POST", path+"/actions", off)
	})
}
