package hetzner_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/hetzner"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// world is a project with a server.
type world struct {
	cloudtest.Client
	t      *testing.T
	cloud  *cloud.Cloud
	front  *hetzner.Front
	server string
}

var times = cloud.Times{Attach: 4 * time.Second, Detach: 4 * time.Second, Modify: 4 * time.Second, Stop: time.Second, Terminate: time.Second}

// inWorld runs a test under synctest.Test. An action takes some seconds; a volume is created at once.
func inWorld(t *testing.T, cfg cloud.Config, front hetzner.Config, test func(*testing.T, *world)) {
	t.Helper()
	cfg.Zones, cfg.ID, cfg.Times = []string{"fsn1", "nbg1"}, hetzner.ID, times
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		front.Cloud = c
		w := &world{t: t, cloud: c, front: hetzner.New(front)}
		w.server = w.node("fsn1")
		w.Client = cloudtest.Client{T: t, Transport: w.front.Transport(w.server), URL: "https://api.hetzner.cloud/v1", Token: w.front.Token(w.server)}
		test(t, w)
	})
}

func (w *world) node(location string) string {
	return w.cloud.AddInstance(cloud.Instance{Zone: location}).ID
}

// refused checks that a request fails with this status and code.
func (w *world) refused(status int, code, method, path, body string) {
	w.t.Helper()
	w.Refused(status, `"code":"`+code+`"`, method, path, body)
}

func (w *world) create(name string) string {
	w.t.Helper()
	w.Must("POST", "/volumes", `{"name": "`+name+`", "location": "fsn1", "size": 10}`)
	all := w.cloud.Volumes()
	return all[len(all)-1].ID
}

func (w *world) attach(volume string) {
	w.t.Helper()
	w.Must("POST", "/volumes/"+volume+"/actions/attach", `{"server": `+w.server+`}`)
}

func (w *world) ids(selector string) (names []string) {
	w.t.Helper()
	for _, v := range w.Must("GET", "/volumes?label_selector="+url.QueryEscape(selector), "", "volumes").([]any) {
		names = append(names, v.(map[string]any)["name"].(string))
	}
	return names
}

func TestAnswersMatchTheReference(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		status, _, answer := w.Send("POST", "/volumes", `{"name": "database-storage", "size": 42, "location": "fsn1", "labels": {"env": "dev", "just-a-key": ""}}`)
		assert.Equal(t, http.StatusCreated, status)
		id := w.cloud.Volumes()[0].ID
		volume := func(server, size, protected, labels string) string {
			return `{"id": ` + id + `, "created": "2000-01-01T00:00:00+00:00", "name": "database-storage", "server": ` + server + `,
				"location": {"id": 1, "name": "fsn1", "description": "Falkenstein DC Park 1", "country": "DE", "city": "Falkenstein",
					"latitude": 50.47612, "longitude": 12.370071, "network_zone": "eu-central"},
				"size": ` + size + `, "linux_device": "/dev/disk/by-id/scsi-0HC_Volume_` + id + `", "protection": {"delete": ` + protected + `},
				"labels": ` + labels + `, "status": "available", "format": null}`
		}
		action := func(n int, command, status, progress, finished, resources string) string {
			return `{"id": ` + strconv.Itoa(1400000000+n) + `, "command": "` + command + `", "status": "` + status + `", "progress": ` + progress + `,
				"started": "2000-01-01T00:00:00+00:00", "finished": ` + finished + `, "resources": [` + resources + `], "error": null}`
		}
		of, on := `{"id": `+id+`, "type": "volume"}`, `{"id": `+w.server+`, "type": "server"}`
		creating := strings.Replace(volume("null", "42", "false", `{"env": "dev", "just-a-key": ""}`), "available", "creating", 1)
		assert.JSONEq(t, `{"volume": `+creating+`, "action": `+action(0, "create_volume", "running", "0", "null", of)+`, "next_actions": []}`, answer)

		_, _, answer = w.Send("PUT", "/volumes/"+id, `{"labels": {"key": "value"}}`)
		assert.JSONEq(t, `{"volume": `+volume("null", "42", "false", `{"key": "value"}`)+`}`, answer)

		status, _, answer = w.Send("POST", "/volumes/"+id+"/actions/change_protection", `{"delete": true}`)
		assert.Equal(t, http.StatusCreated, status)
		assert.JSONEq(t, `{"action": `+action(1, "change_protection", "success", "100", `"2000-01-01T00:00:00+00:00"`, of)+`}`, answer)

		status, _, answer = w.Send("POST", "/volumes/"+id+"/actions/attach", `{"server": `+w.server+`}`)
		assert.Equal(t, http.StatusCreated, status)
		assert.JSONEq(t, `{"action": `+action(2, "attach_volume", "running", "0", "null", on+", "+of)+`}`, answer)
		_, _, answer = w.Send("GET", "/volumes/"+id, "")
		assert.JSONEq(t, `{"volume": `+volume(w.server, "42", "true", `{"key": "value"}`)+`}`, answer)
		_, _, answer = w.Send("GET", "/volumes/"+id+"/actions?status=running", "")
		assert.JSONEq(t, `{"actions": [`+action(2, "attach_volume", "running", "0", "null", on+", "+of)+`], "meta": {"pagination":
			{"page": 1, "per_page": 25, "previous_page": null, "next_page": null, "last_page": 1, "total_entries": 1}}}`, answer)
		time.Sleep(5 * time.Second)
		assert.Equal(t, "success", w.Must("GET", "/actions/1400000002", "", "action", "status"))
		assert.Equal(t, "success", w.Must("GET", "/volumes/"+id+"/actions/1400000002", "", "action", "status"))

		assert.Equal(t, "resize_volume", w.Must("POST", "/volumes/"+id+"/actions/resize", `{"size": 50}`, "action", "command"))
		time.Sleep(5 * time.Second)
		assert.Equal(t, "detach_volume", w.Must("POST", "/volumes/"+id+"/actions/detach", "{}", "action", "command"))
		time.Sleep(5 * time.Second)
		_, _, answer = w.Send("GET", "/volumes", "")
		assert.JSONEq(t, `{"volumes": [`+volume("null", "50", "true", `{"key": "value"}`)+`], "meta": {"pagination":
			{"page": 1, "per_page": 25, "previous_page": null, "next_page": null, "last_page": 1, "total_entries": 1}}}`, answer)

		w.Must("POST", "/volumes/"+id+"/actions/change_protection", `{"delete": false}`)
		status, _, answer = w.Send("DELETE", "/volumes/"+id, "")
		assert.Equal(t, http.StatusNoContent, status)
		assert.Empty(t, answer)
		status, _, answer = w.Send("GET", "/volumes/"+id, "")
		assert.Equal(t, http.StatusNotFound, status)
		assert.JSONEq(t, `{"error": {"code": "not_found", "message": "volume with ID '`+id+`' not found"}}`, answer)
		_, _, answer = w.Send("POST", "/volumes", `{"name": "-", "size": 42, "location": "fsn1"}`)
		assert.JSONEq(t, `{"error": {"code": "invalid_input", "message": "invalid input in field 'name': must be 1 to 64 alphanumeric characters, dashes, underscores and dots, beginning and ending with an alphanumeric character",
			"details": {"fields": [{"name": "name", "messages": ["must be 1 to 64 alphanumeric characters, dashes, underscores and dots, beginning and ending with an alphanumeric character"]}]}}}`, answer)
	})
}

func TestServersAreShownWithTheirStatus(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		status := func() any { return w.Must("GET", "/servers/"+w.server, "", "server", "status") }
		assert.Equal(t, "running", status())
		assert.Equal(t, "fsn1", w.Must("GET", "/servers/"+w.server, "", "server", "location", "name"))
		w.front.Show(w.server, "rebuilding")
		assert.Equal(t, "rebuilding", status())
		w.front.Show(w.server, "")
		w.cloud.Stop(w.server)
		assert.Equal(t, "stopping", status())
		time.Sleep(2 * time.Second)
		assert.Equal(t, "off", status())
		w.cloud.Start(w.server)
		assert.Equal(t, "starting", status())
		time.Sleep(2 * time.Second)
		w.cloud.Terminate(w.server)
		assert.Equal(t, "deleting", status())
		time.Sleep(2 * time.Second)
		w.refused(404, "not_found", "GET", "/servers/"+w.server, "")
		w.refused(404, "not_found", "GET", "/servers/12", "")
	})
}

func TestValuesOutOfRangeAreRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(_ *testing.T, w *world) {
		id := w.create("there")
		for _, c := range []struct {
			status       int
			code         string
			method, path string
			body         string
		}{
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 9}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10241}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1"}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "ash", "size": 10}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "size": 10}`},
			{422, "invalid_input", "POST", "/volumes", `{"location": "fsn1", "size": 10}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a.", "location": "fsn1", "size": 10}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "` + strings.Repeat("a", 65) + `", "location": "fsn1", "size": 10}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10, "labels": {"a": "` + strings.Repeat("b", 64) + `"}}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10, "labels": {"hetzner.cloud/a": "b"}}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10, "labels": {"a": "b c"}}`},
			{422, "invalid_input", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10, "labels": {"": "b"}}`},
			{400, "json_error", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10, "format": "ext4"}`},
			{400, "json_error", "POST", "/volumes", `{"name": "a", "location": "fsn1", "size": 10, "automount": false}`},
			{400, "json_error", "POST", "/volumes", `{"name": "a"`},
			{409, "uniqueness_error", "POST", "/volumes", `{"name": "there", "location": "nbg1", "size": 10}`},
			{422, "invalid_input", "POST", "/volumes/" + id + "/actions/attach", `{}`},
			{422, "invalid_input", "POST", "/volumes/" + id + "/actions/attach", `{"server": ` + w.server + `, "automount": true}`},
			{422, "invalid_input", "POST", "/volumes/" + id + "/actions/attach", `{"server": ` + w.node("nbg1") + `}`},
			{404, "not_found", "POST", "/volumes/" + id + "/actions/attach", `{"server": 12}`},
			{404, "not_found", "POST", "/volumes/12/actions/attach", `{"server": ` + w.server + `}`},
			{422, "invalid_input", "POST", "/volumes/" + id + "/actions/detach", ``},
			{422, "invalid_input", "POST", "/volumes/" + id + "/actions/resize", `{"size": 10}`},
			{422, "invalid_input", "POST", "/volumes/" + id + "/actions/resize", `{"size": 10241}`},
			{422, "invalid_input", "GET", "/volumes?per_page=51", ""},
			{422, "invalid_input", "GET", "/volumes?page=0", ""},
			{422, "invalid_input", "GET", "/volumes?region=x", ""},
			{422, "invalid_input", "GET", "/volumes?sort=size", ""},
			{422, "invalid_input", "GET", "/volumes?label_selector=a+in+(b", ""},
			{422, "invalid_input", "GET", "/volumes?label_selector=a=b%20c", ""},
			{404, "not_found", "GET", "/nothing", ""},
			{404, "not_found", "GET", "/actions/12", ""},
		} {
			w.refused(c.status, c.code, c.method, c.path, c.body)
		}
	})
}

func TestRunningActionLocksVolumeAndServer(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		a, b := w.create("a"), w.create("b")
		attachA, attachB := "/volumes/"+a+"/actions/attach", "/volumes/"+b+"/actions/attach"
		there := `{"server": ` + w.server + `}`
		lockedNow := func() {
			t.Helper()
			assert.Equal(t, true, w.Must("GET", "/servers/"+w.server, "", "server", "locked"))
			w.refused(423, "locked", "POST", attachB, there)
			w.refused(423, "locked", "POST", attachA, there)
			w.refused(423, "locked", "POST", "/volumes/"+a+"/actions/detach", "")
			w.refused(423, "locked", "POST", "/volumes/"+a+"/actions/resize", `{"size": 20}`)
			w.refused(423, "locked", "PUT", "/volumes/"+a, `{"labels": {}}`)
			w.refused(423, "locked", "DELETE", "/volumes/"+a, "")
			time.Sleep(5 * time.Second)
		}
		w.attach(a)
		lockedNow()
		w.refused(409, "volume_already_attached", "POST", attachA, there)
		w.refused(409, "resource_in_use", "DELETE", "/volumes/"+a, "")
		w.Must("POST", "/volumes/"+a+"/actions/resize", `{"size": 20}`)
		lockedNow()
		w.Must("POST", "/volumes/"+a+"/actions/detach", "")
		lockedNow()
		w.attach(b)
		time.Sleep(5 * time.Second)
		w.Must("POST", "/volumes/"+a+"/actions/change_protection", `{"delete": true}`)
		w.refused(403, "protected", "DELETE", "/volumes/"+a, "")
	})
}

func TestServerLimitsVolumes(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{Most: 2}, func(_ *testing.T, w *world) {
		for _, name := range []string{"a", "b"} {
			w.attach(w.create(name))
			time.Sleep(5 * time.Second)
		}
		w.refused(422, "limit_exceeded_error", "POST", "/volumes/"+w.create("c")+"/actions/attach", `{"server": `+w.server+`}`)
	})
}

func TestAttachCanFail(t *testing.T) {
	for _, late := range []bool{false, true} {
		inWorld(t, cloud.Config{}, hetzner.Config{Late: late}, func(t *testing.T, w *world) {
			id := w.create("a")
			w.attach(id)
			server := w.Must("GET", "/volumes/"+id, "", "volume", "server")
			assert.Equal(t, late, server == nil)
			w.front.Fail(id, "action_failed", "no more LUNs")
			time.Sleep(5 * time.Second)
			assert.Nil(t, w.Must("GET", "/volumes/"+id, "", "volume", "server"))
			assert.Equal(t, map[string]any{"code": "action_failed", "message": "no more LUNs"}, w.Must("GET", "/actions/1400000001", "", "action", "error"))
			assert.Equal(t, "error", w.Must("GET", "/actions/1400000001", "", "action", "status"))
		})
	}
}

func TestListsAreSelectedSortedAndPaged(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		for i := range 60 {
			labels := `{"n": "` + strconv.Itoa(i) + `"}`
			if i%2 == 0 {
				labels = `{"n": "` + strconv.Itoa(i) + `", "x.y/even": ""}`
			}
			w.Must("POST", "/volumes", `{"name": "v`+strconv.Itoa(100+i)+`", "location": "fsn1", "size": 10, "labels": `+labels+`}`)
		}
		for selector, want := range map[string][]string{
			"n=3": {"v103"}, "n==3": {"v103"}, "n in (3,5)": {"v103", "v105"}, "n in (5, 3),x.y/even": nil, "n in (4,3),!x.y/even": {"v103"},
			"n notin (4,3),n in (2,3,4)": {"v102"}, "n in (2,3,4),n!=3": {"v102", "v104"}, "none": nil, "n=3,none!=1": {"v103"},
		} {
			assert.ElementsMatch(t, want, w.ids(selector), selector)
		}
		_, header, _ := w.Send("GET", "/volumes?page=2&per_page=25&sort=name:desc", "")
		assert.Contains(t, header.Get("Link"), `page=3&per_page=25&sort=name%3Adesc>; rel="next"`)
		second := w.Must("GET", "/volumes?page=2&per_page=25&sort=name:desc", "").(map[string]any)
		assert.Len(t, second["volumes"], 25)
		assert.Equal(t, "v134", second["volumes"].([]any)[0].(map[string]any)["name"])
		assert.Equal(t, map[string]any{
			"page": json.Number("2"), "per_page": json.Number("25"), "previous_page": json.Number("1"),
			"next_page": json.Number("3"), "last_page": json.Number("3"), "total_entries": json.Number("60"),
		}, second["meta"].(map[string]any)["pagination"])
		assert.Len(t, w.Must("GET", "/volumes?page=3&per_page=25", "", "volumes"), 10)
		assert.Len(t, w.Must("GET", "/volumes", "", "volumes"), 25)
		assert.Len(t, w.Must("GET", "/volumes?name=v103", "", "volumes"), 1)
	})
}

func TestRateLimitRefills(t *testing.T) {
	inWorld(t, cloud.Config{Limits: hetzner.Limits}, hetzner.Config{}, func(t *testing.T, w *world) {
		_, header, _ := w.Send("GET", "/locations", "")
		assert.Equal(t, []string{"3600", "3599", strconv.FormatInt(time.Now().Unix()+1, 10)}, []string{header.Get("Ratelimit-Limit"), header.Get("Ratelimit-Remaining"), header.Get("Ratelimit-Reset")})
		for range 3599 {
			w.Must("GET", "/locations", "")
		}
		status, header, answer := w.Send("GET", "/locations", "")
		assert.Equal(t, http.StatusTooManyRequests, status)
		assert.Contains(t, answer, `"code":"rate_limit_exceeded"`)
		assert.Equal(t, []string{"0", strconv.FormatInt(time.Now().Unix()+3600, 10)}, []string{header.Get("Ratelimit-Remaining"), header.Get("Ratelimit-Reset")})
		time.Sleep(time.Second)
		w.Must("GET", "/locations", "")
	})
}

func TestInvalidTokensAreRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		for token, want := range map[string]string{"": "unauthorized", "x": "unauthorized"} {
			status, _, answer := w.SendAs(token, "GET", "/volumes", "")
			assert.Equal(t, http.StatusUnauthorized, status)
			assert.Contains(t, answer, want)
		}
		token := w.front.Token(w.server)
		assert.Len(t, token, 64)
		w.front.ReadOnly(token)
		w.Must("GET", "/volumes", "")
		w.refused(403, "forbidden", "POST", "/volumes", `{}`)
		w.front.Revoke(token)
		w.refused(401, "unauthorized", "GET", "/volumes", "")
	})
}

func TestMetadataIdentifiesTheServer(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		get := func(path string) string {
			status, _, answer, err := httpsim.Send(t.Context(), w.front.Transport(w.server), http.MethodGet, "http://"+httpsim.MetadataHost+path, "")
			require.NoError(t, err)
			return strconv.Itoa(status) + " " + answer
		}
		assert.Equal(t, "200 "+w.server, get("/hetzner/v1/metadata/instance-id"))
		assert.Equal(t, "200 fsn1-dc14", get("/hetzner/v1/metadata/availability-zone"))
		assert.Equal(t, "200 eu-central", get("/hetzner/v1/metadata/region"))
		assert.Contains(t, get("/hetzner/v1/metadata"), "instance-id: "+w.server+"\n")
		assert.Equal(t, "404 not found", get("/hetzner/v1/metadata/ip"))
		w.cloud.Inject(cloud.Rule{Action: httpsim.MetadataAction, Fault: cloud.Fail, Code: "503"})
		assert.Equal(t, "503 ", get("/hetzner/v1/metadata/instance-id"))
	})
}

func TestPowerIsCutAndComesBack(t *testing.T) {
	inWorld(t, cloud.Config{}, hetzner.Config{}, func(t *testing.T, w *world) {
		path := "/servers/" + w.server
		status := func() any { return w.Must("GET", path, "", "server", "status") }
		off, on := path+"/actions/poweroff", path+"/actions/poweron"
		id := w.create("db")
		w.attach(id)
		w.refused(423, "locked", "POST", off, "")
		time.Sleep(5 * time.Second)
		code, _, answer := w.Send("POST", off, "")
		assert.Equal(t, http.StatusCreated, code)
		action := cloudtest.JSONField(t, answer, "action", "id").(json.Number).String()
		assert.JSONEq(t, `{"action": {"id": `+action+`, "command": "stop_server", "status": "running", "progress": 0, "started": "2000-01-01T00:00:05+00:00",
			"finished": null, "resources": [{"id": `+w.server+`, "type": "server"}], "error": null}}`, answer)
		assert.Equal(t, "stopping", status())
		assert.Equal(t, true, w.Must("GET", path, "", "server", "locked"))
		for _, change := range []string{off, on, "/volumes/" + id + "/actions/detach"} {
			w.refused(423, "locked", "POST", change, "")
		}
		assert.Equal(t, "running", w.Must("GET", "/actions/"+action, "", "action", "status"))
		time.Sleep(2 * time.Second)
		assert.Equal(t, "off", status())
		assert.Equal(t, "success", w.Must("GET", "/actions/"+action, "", "action", "status"))
		assert.Equal(t, "success", w.Must("POST", off, "", "action", "status"), "it is off already")
		w.Must("POST", "/volumes/"+id+"/actions/detach", "")
		w.refused(423, "locked", "POST", on, "")
		time.Sleep(5 * time.Second)
		assert.Equal(t, "running", w.Must("POST", on, "", "action", "status"))
		assert.Equal(t, "starting", status())
		time.Sleep(2 * time.Second)
		assert.Equal(t, "success", w.Must("POST", on, "", "action", "status"), "it runs already")
		assert.Equal(t, "running", status())
		w.refused(404, "not_found", "POST", "/servers/12/actions/poweroff", "")
		w.front.ReadOnly(w.Token)
		w.refused(403, "forbidden", "POST", off, "")
	})
}
