package linode_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/linode"
)

// world is a front end and one of its instances.
type world struct {
	t        *testing.T
	cloud    *cloud.Cloud
	front    *linode.Front
	instance string
}

// inWorld runs a test under synctest.Test. It begins at midnight of 1 January 2000.
func inWorld(t *testing.T, cfg cloud.Config, test func(*testing.T, *world)) {
	t.Helper()
	cfg.Zones, cfg.ID = []string{"eu-central", "us-east"}, linode.ID
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		test(t, &world{
			t: t, cloud: c, front: linode.New(linode.Config{Cloud: c, Plain: []string{"us-east"}}),
			instance: c.AddInstance(cloud.Instance{Type: "g6-standard-2"}).ID,
		})
	})
}

// send sends a request with the instance's token. Headers are pairs of name and value.
func (w *world) send(method, url, body string, headers ...string) (status int, header http.Header, answer string) {
	w.t.Helper()
	if strings.HasPrefix(url, "/") {
		url = "https://api.linode.com/v4" + url
	}
	headers = append([]string{"Authorization", "Bearer " + w.front.Token(w.instance)}, headers...)
	status, header, answer, err := httpsim.Send(w.t.Context(), w.front.Transport(w.instance), method, url, body, headers...)
	require.NoError(w.t, err)
	return status, header, answer
}

// says checks the response to a request. In the wanted text, {v} is the volume's ID and {i} the instance's.
func (w *world) says(volume string, status int, want, method, path, body string, headers ...string) {
	w.t.Helper()
	fill := strings.NewReplacer("{v}", volume, "{i}", w.instance)
	answered, header, got := w.send(method, fill.Replace(path), fill.Replace(body), headers...)
	assert.Equal(w.t, status, answered, "%s %s: %s", method, path, got)
	assert.JSONEq(w.t, fill.Replace(want), got, "%s %s", method, path)
	assert.Equal(w.t, "application/json", header.Get("Content-Type"))
}

// refuses is says for an error about a field, which may be "".
func (w *world) refuses(volume string, status int, field, reason, method, path, body string, headers ...string) {
	w.t.Helper()
	problem := map[string]string{"reason": reason}
	if field != "" {
		problem["field"] = field
	}
	want, err := json.Marshal(map[string]any{"errors": []any{problem}})
	require.NoError(w.t, err)
	w.says(volume, status, string(want), method, path, body, headers...)
}

// create creates a volume of 10 GiB and returns its ID.
func (w *world) create(label string, tags ...string) string {
	w.t.Helper()
	body, err := json.Marshal(map[string]any{"label": label, "region": "eu-central", "size": 10, "tags": tags})
	require.NoError(w.t, err)
	status, _, content := w.send("POST", "/volumes", string(body))
	require.Equal(w.t, http.StatusOK, status, content)
	return cloudtest.JSONField(w.t, content, "id").(json.Number).String()
}

func TestVolumeMatchesTheReference(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Create: time.Second, Attach: time.Second, Detach: time.Second, Modify: time.Second}}, func(t *testing.T, w *world) {
		status, _, body := w.send("POST", "/volumes", `{"label": "my-volume", "region": "eu-central", "size": 20, "encryption": "enabled", "tags": ["example tag", "data"]}`)
		require.Equal(t, http.StatusOK, status, body)
		id := w.cloud.Volumes()[0].ID
		golden := func(status string, size int, holder string) string {
			return fmt.Sprintf(`{"id": {v}, "label": "my-volume", "status": %q, "size": %d, "region": "eu-central", %s,
				"filesystem_path": "/dev/disk/by-id/scsi-0Linode_Volume_my-volume", "tags": ["data", "example tag"], "hardware_type": "nvme",
				"encryption": "enabled", "created": "2000-01-01T00:00:00", "updated": "2000-01-01T00:00:00"}`, status, size, holder)
		}
		const free, coming, held = `"linode_id": null, "linode_label": null, "io_ready": false`,
			`"linode_id": {i}, "linode_label": "linode{i}", "io_ready": false`, `"linode_id": {i}, "linode_label": "linode{i}", "io_ready": true`
		w.says(id, 200, strings.ReplaceAll(body, "\n", ""), "GET", "/volumes/{v}", "")
		w.says(id, 200, golden("creating", 20, free), "GET", "/volumes/{v}", "")
		time.Sleep(2 * time.Second)
		w.says(id, 200, golden("active", 20, coming), "POST", "/volumes/{v}/attach", `{"linode_id": {i}, "persist_across_boots": false}`)
		time.Sleep(2 * time.Second)
		w.says(id, 200, golden("active", 20, held), "GET", "/volumes/{v}", "")
		w.says(id, 200, `{}`, "POST", "/volumes/{v}/detach", `{}`)
		w.says(id, 200, golden("active", 20, coming), "GET", "/volumes/{v}", "")
		time.Sleep(2 * time.Second)
		w.says(id, 200, golden("resizing", 20, free), "POST", "/volumes/{v}/resize", `{"size": 30}`)
		time.Sleep(2 * time.Second)
		w.says(id, 200, `{"data": [`+golden("active", 30, free)+`], "page": 1, "pages": 1, "results": 1}`, "GET", "/volumes", "")
		w.says(id, 200, `{}`, "DELETE", "/volumes/{v}", "")
		w.refuses(id, 404, "", "Not found", "GET", "/volumes/{v}", "")
		w.says(id, 200, `{"data": [], "page": 1, "pages": 1, "results": 0}`, "GET", "/volumes", "")
		assert.Equal(t, "my-volume", w.front.Serial(w.create("my-volume")))
	})
}

func TestInstanceMatchesTheReference(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		status := func() (shown string) {
			_, _, body := w.send("GET", "/linode/instances/"+w.instance, "")
			var i struct {
				ID             json.Number
				Status, Region string
			}
			require.NoError(t, json.Unmarshal([]byte(body), &i))
			assert.Equal(t, w.instance, i.ID.String())
			assert.Equal(t, "eu-central", i.Region)
			return i.Status
		}
		assert.Equal(t, "running", status())
		w.front.Show(w.instance, "migrating")
		assert.Equal(t, "migrating", status())
		w.front.Show(w.instance, "")
		w.cloud.Stop(w.instance)
		assert.Equal(t, "offline", status())
		w.cloud.Terminate(w.instance)
		w.refuses("", 404, "", "Not found", "GET", "/linode/instances/{i}", "")
	})
}

func TestInvalidRequestsAreRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		id := w.create("taken")
		for _, c := range []struct{ field, reason, method, path, body string }{
			{"label", "Label must be unique among your Volumes", "POST", "/volumes", `{"label": "taken", "region": "eu-central"}`},
			{"size", "Must be 10-16384", "POST", "/volumes", `{"label": "small", "region": "eu-central", "size": 9}`},
			{"size", "Must be 10-16384", "POST", "/volumes", `{"label": "large", "region": "eu-central", "size": 16385}`},
			{"region", "region is not valid", "POST", "/volumes", `{"label": "far", "region": "atlantis"}`},
			{"region", "Either linode_id or region must be given", "POST", "/volumes", `{"label": "nowhere"}`},
			{"encryption", "Encryption is not available in this region", "POST", "/volumes", `{"label": "plain", "region": "us-east", "encryption": "enabled"}`},
			{"encryption", "Must be one of enabled, disabled", "POST", "/volumes", `{"label": "odd", "region": "us-east", "encryption": "yes"}`},
			{"tags", "Length must be 3-50 characters", "POST", "/volumes", `{"label": "tagged", "region": "us-east", "tags": ["ab"]}`},
			{"tags", "Length must be 3-50 characters", "PUT", "/volumes/{v}", `{"tags": ["` + strings.Repeat("x", 51) + `"]}`},
			{"", `The request is not valid: json: unknown field "type"`, "PUT", "/volumes/{v}", `{"type": "x"}`},
			{"", "Storage volumes can only be resized up", "POST", "/volumes/{v}/resize", `{"size": 10}`},
			{"size", "Must be 10-16384", "POST", "/volumes/{v}/resize", `{"size": 16385}`},
			{"linode_id", "Linode not found", "POST", "/volumes/{v}/attach", `{"linode_id": 1, "persist_across_boots": false}`},
			{"config_id", "config_id must not be given unless the attachment persists across boots", "POST", "/volumes/{v}/attach", `{"linode_id": {i}, "config_id": 1, "persist_across_boots": false}`},
			{"", "Volume {v} is not attached to a Linode", "POST", "/volumes/{v}/detach", `{}`},
			{"", `The request is not valid: json: unknown field "linode_id"`, "POST", "/volumes/{v}/detach", `{"linode_id": {i}}`},
			{"page_size", "Must be 25-500", "GET", "/volumes?page_size=501", ""},
			{"page_size", "Must be 25-500", "GET", "/volumes?page_size=24", ""},
			{"page", "Must be a number", "GET", "/volumes?page=x", ""},
			{"label", "Unknown query parameter", "GET", "/volumes?label=taken", ""},
		} {
			w.refuses(id, 400, c.field, strings.ReplaceAll(c.reason, "{v}", id), c.method, c.path, c.body)
		}
		for _, label := range []string{"a", "1a", "a--b", "a__b", "a b", strings.Repeat("x", 33), ""} {
			status, _, _ := w.send("POST", "/volumes", `{"label": "`+label+`", "region": "eu-central"}`)
			assert.Equal(t, 400, status, label)
		}
		w.refuses(id, 404, "", "Not found", "GET", "/volumes/1", "")
		w.refuses(id, 404, "", "Not found", "GET", "/volumes?page=2", "")
		w.refuses(id, 404, "", "Not found", "GET", "/regions", "")
		assert.Len(t, w.cloud.Volumes(), 1)
	})
}

func TestAttachmentRules(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Attach: time.Second, Detach: time.Second, Stop: time.Second}}, func(t *testing.T, w *world) {
		const attach = `{"linode_id": {i}, "persist_across_boots": false}`
		one, two := w.create("one"), w.create("two")
		status, _, _ := w.send("POST", "/volumes/"+one+"/attach", strings.ReplaceAll(attach, "{i}", w.instance))
		require.Equal(t, 200, status)
		w.refuses(two, 400, "", "Linode busy.", "POST", "/volumes/{v}/attach", attach)
		w.refuses(one, 400, "", "Linode busy.", "POST", "/volumes/{v}/detach", "")
		time.Sleep(2 * time.Second)
		w.refuses(one, 400, "", "Volume "+one+" is already attached", "POST", "/volumes/{v}/attach", attach)
		w.refuses(one, 400, "", "Volume must be detached before it can be deleted", "DELETE", "/volumes/{v}", "")
		status, _, _ = w.send("POST", "/volumes/"+one+"/detach", "")
		require.Equal(t, 200, status)
		w.refuses(one, 400, "", "Linode busy.", "POST", "/volumes/{v}/detach", "")
		w.refuses(two, 400, "", "Linode busy.", "POST", "/volumes/{v}/attach", attach)
		time.Sleep(2 * time.Second)

		far := w.cloud.AddInstance(cloud.Instance{Zone: "us-east"}).ID
		w.refuses(two, 400, "linode_id", "The Volume and the Linode must be in the same region.", "POST", "/volumes/{v}/attach", strings.ReplaceAll(attach, "{i}", far))
		for i := range 6 { // 8 slots, two of them for the instance's own disks
			status, _, body := w.send("POST", "/volumes/"+w.create(fmt.Sprint("v", i))+"/attach", strings.ReplaceAll(attach, "{i}", w.instance))
			require.Equal(t, 200, status, body)
			time.Sleep(2 * time.Second)
		}
		w.refuses(two, 400, "", "You have reached the maximum number of Volumes (6) for this Linode", "POST", "/volumes/{v}/attach", attach)
		w.cloud.Stop(w.instance)
		time.Sleep(2 * time.Second)
		w.refuses(two, 400, "linode_id", "The Linode must be running", "POST", "/volumes/{v}/attach", attach)
	})
}

func TestListsAreFiltered(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		w.create("one", "red", "round")
		w.create("two", "Red")
		w.create("three", "blue", "round")
		for filter, want := range map[string][]string{
			`{"tags": "red"}`:                                                    {"one", "two"},
			`{"label": "two"}`:                                                   {"two"},
			`{"label": "two", "tags": "blue"}`:                                   nil,
			`{"+or": [{"label": "two"}, {"tags": "blue"}]}`:                      {"two", "three"},
			`{"+and": [{"tags": "red"}, {"tags": "round"}]}`:                     {"one"},
			`{"tags": {"+contains": "oun"}}`:                                     {"one", "three"},
			`{"label": {"+neq": "one"}, "+order_by": "label", "+order": "desc"}`: {"two", "three"},
			`{}`: {"one", "two", "three"},
		} {
			_, _, body := w.send("GET", "/volumes?page=1&page_size=500", "", "X-Filter", filter)
			var page struct{ Data []struct{ Label string } }
			require.NoError(t, json.Unmarshal([]byte(body), &page))
			var got []string
			for _, v := range page.Data {
				got = append(got, v.Label)
			}
			assert.Equal(t, want, got, filter)
		}
		w.refuses("", 400, "", "Cannot filter on linode_id", "GET", "/volumes", "", "X-Filter", `{"linode_id": "1"}`)
		w.refuses("", 400, "", "Cannot parse X-Filter", "GET", "/volumes", "", "X-Filter", `["one"]`)
		w.refuses("", 400, "", "Unknown operator +like", "GET", "/volumes", "", "X-Filter", `{"label": {"+like": "x"}}`)
	})
}

func TestListsHavePages(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		for i := range 60 {
			w.create(fmt.Sprint("v", i))
		}
		for page, want := range map[int]int{1: 25, 2: 25, 3: 10} {
			_, _, body := w.send("GET", fmt.Sprintf("/volumes?page=%d&page_size=25", page), "")
			var got struct {
				Data                 []any
				Page, Pages, Results int
			}
			require.NoError(t, json.Unmarshal([]byte(body), &got))
			assert.Len(t, got.Data, want)
			assert.Equal(t, []int{page, 3, 60}, []int{got.Page, got.Pages, got.Results})
		}
	})
}

func TestTokensAreChecked(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		id := w.create("db")
		w.refuses("", 401, "", "Invalid Token", "GET", "/volumes", "", "Authorization", "Bearer x")
		w.front.Restrict(w.front.Token(w.instance), "volumes:read_only")
		const denied = "Your OAuth token is not authorized to use this endpoint."
		w.refuses(id, 403, "", denied, "PUT", "/volumes/{v}", `{"tags": []}`)
		w.refuses(id, 403, "", denied, "GET", "/linode/instances/{i}", "")
		status, _, _ := w.send("GET", "/volumes", "")
		assert.Equal(t, 200, status)
		w.front.Restrict(w.front.Token(w.instance), "volumes:read_write", "linodes:read_only")
		w.refuses(id, 403, "", denied, "POST", "/volumes/{v}/attach", `{"linode_id": {i}}`)
		w.front.Revoke(w.front.Token(w.instance))
		w.refuses("", 401, "", "Invalid Token", "GET", "/volumes", "")
	})
}

func TestLimitsAreInTheHeaders(t *testing.T) {
	inWorld(t, cloud.Config{Limits: linode.Limits}, func(t *testing.T, w *world) {
		_, header, _ := w.send("GET", "/volumes", "")
		assert.Equal(t, "200", header.Get("X-RateLimit-Limit"))
		assert.Equal(t, "199", header.Get("X-RateLimit-Remaining"))
		assert.NotEmpty(t, header.Get("X-RateLimit-Reset"))
		_, header, _ = w.send("GET", "/linode/instances/"+w.instance, "")
		assert.Equal(t, "800", header.Get("X-RateLimit-Limit"))
		for range 199 {
			w.send("GET", "/volumes", "")
		}
		w.refuses("", 429, "", "Too many requests", "GET", "/volumes", "")
		_, header, _ = w.send("GET", "/volumes", "")
		assert.NotEmpty(t, header.Get("Retry-After"))
		assert.Equal(t, "0", header.Get("X-RateLimit-Remaining"))
		time.Sleep(time.Minute)
		status, _, _ := w.send("GET", "/volumes", "")
		assert.Equal(t, 200, status)
	})
}

func TestMetadataNeedsItsOwnToken(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		const at = "http://169.254.169.254/v1/"
		status := func(method, path string, headers ...string) int {
			status, _, _ := w.send(method, at+path, "", headers...)
			return status
		}
		assert.Equal(t, 401, status("GET", "instance"))
		assert.Equal(t, 400, status("PUT", "token"))
		assert.Equal(t, 400, status("PUT", "token", "Metadata-Token-Expiry-Seconds", "86401"))
		assert.Equal(t, 404, status("GET", "token"))
		got, _, token := w.send("PUT", at+"token", "", "Metadata-Token-Expiry-Seconds", "60")
		require.Equal(t, 200, got)
		got, _, body := w.send("GET", at+"instance", "", "Metadata-Token", token, "Accept", "application/json")
		require.Equal(t, 200, got)
		assert.JSONEq(t, `{"id": `+w.instance+`, "label": "linode`+w.instance+`", "region": "eu-central", "type": "g6-standard-2",
			"host_uuid": "a9d4c0d5e4b1f0a7c1b2d3e4f5061728", "tags": [], "specs": {"vcpus": 2, "memory": 4096, "gpus": 0, "transfer": 4000, "disk": 81920},
			"backups": {"enabled": false, "status": null}, "image": {"id": "linode/debian13", "label": "Debian 13"},
			"account_euuid": "A1B2C3D4-E5F6-47A8-9B0C1D2E3F405162"}`, body)
		_, _, body = w.send("GET", at+"instance", "", "Metadata-Token", token)
		assert.Contains(t, body, "id: "+w.instance+"\n")
		time.Sleep(time.Minute)
		assert.Equal(t, 401, status("GET", "instance", "Metadata-Token", token))
		assert.Empty(t, w.cloud.Calls(), "the API's latency does not apply")
	})
}

func TestStoppedInstanceLosesItsVolumes(t *testing.T) {
	inWorld(t, cloud.Config{DetachOnStop: true}, func(t *testing.T, w *world) {
		id := w.create("db")
		w.send("POST", "/volumes/"+id+"/attach", `{"linode_id": `+w.instance+`, "persist_across_boots": false}`)
		_, _, body := w.send("GET", "/volumes/"+id, "")
		require.Contains(t, body, `"linode_id":`+w.instance)
		w.cloud.Stop(w.instance)
		_, _, body = w.send("GET", "/volumes/"+id, "")
		assert.Contains(t, body, `"linode_id":null`)
		w.cloud.Start(w.instance)
		_, _, body = w.send("GET", "/volumes/"+id, "")
		assert.Contains(t, body, `"linode_id":null`)
	})
}

func TestShutdownAndBoot(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Attach: time.Second, Stop: time.Second, Shutdown: time.Minute}}, func(t *testing.T, w *world) {
		const path = "/linode/instances/{i}"
		busy, nothing := `{"errors": [{"reason": "Linode busy."}]}`, `{}`
		status := func() any {
			_, _, answer := w.send("GET", "/linode/instances/"+w.instance, "")
			return cloudtest.JSONField(t, answer, "status")
		}
		w.says("", 200, nothing, "POST", path+"/shutdown", `{}`)
		assert.Equal(t, "shutting_down", status())
		w.says("", 400, busy, "POST", path+"/shutdown", "")
		time.Sleep(time.Minute)
		assert.Equal(t, "shutting_down", status(), "the system is asked first")
		time.Sleep(2 * time.Second)
		assert.Equal(t, "offline", status())
		w.says("", 400, `{"errors": [{"reason": "Linode {i} is already powered off."}]}`, "POST", path+"/shutdown", "")
		w.says("", 200, nothing, "POST", path+"/boot", `{"config_id": 0}`)
		assert.Equal(t, "booting", status())
		w.says("", 400, busy, "POST", path+"/boot", "")
		time.Sleep(2 * time.Second)
		assert.Equal(t, "running", status())
		w.says("", 400, `{"errors": [{"reason": "Linode {i} is already powered on."}]}`, "POST", path+"/boot", "")
		w.says("", 404, `{"errors": [{"reason": "Not found"}]}`, "POST", "/linode/instances/12/shutdown", "")
		w.front.Restrict(w.front.Token(w.instance), "linodes:read_only")
		w.says("", 403, `{"errors": [{"reason": "Your OAuth token is not authorized to use this endpoint."}]}`, "POST", path+"/shutdown", "")
	})
}
