package openstack_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
	"github.com/blockvol/blockvol/test/cloud/openstack"
)

const (
	volumesPath = "/volume/v3/" + openstack.Project + "/volumes"
	link        = "http://cloud.test" + volumesPath
)

// world is a cloud with one server and its token.
type world struct {
	t      *testing.T
	cloud  *cloud.Cloud
	front  *openstack.Front
	server string
	token  string
}

func inWorld(t *testing.T, cfg cloud.Config, of openstack.Config, test func(*testing.T, *world)) {
	t.Helper()
	cfg.Zones, cfg.ID = []string{"nova"}, openstack.ID
	cloudtest.Run(t, cfg, func(t *testing.T, c *cloud.Cloud) {
		of.Cloud = c
		w := &world{t: t, cloud: c, front: openstack.New(of), server: c.AddInstance(cloud.Instance{}).ID}
		w.token = w.front.Token(w.server)
		test(t, w)
	})
}

// ask sends a request and returns the response.
func (w *world) ask(method, path, body string, headers ...string) (status int, answer string, header http.Header) {
	w.t.Helper()
	headers = append([]string{"X-Auth-Token", w.token}, headers...)
	status, header, answer, err := httpsim.Send(w.t.Context(), w.front.Transport(w.server), method, "http://cloud.test"+path, body, headers...)
	require.NoError(w.t, err)
	return status, answer, header
}

// create creates a volume and returns its ID.
func (w *world) create(body string) string {
	w.t.Helper()
	status, answer, _ := w.ask("POST", volumesPath, body)
	require.Equal(w.t, http.StatusAccepted, status, answer)
	return cloudtest.JSONField(w.t, answer, "volume", "id").(string)
}

// says checks that a request fails with this status and text.
func (w *world) says(status int, words, method, path, body string, header ...string) {
	w.t.Helper()
	got, answer, _ := w.ask(method, path, body, header...)
	assert.Equal(w.t, status, got, "%s %s %s: %s", method, path, body, answer)
	assert.Contains(w.t, answer, words)
}

func TestTokens(t *testing.T) {
	inWorld(t, cloud.Config{}, openstack.Config{}, func(t *testing.T, w *world) {
		id, secret := w.front.Credentials(w.server)
		credential := `{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"` + id + `","secret":"` + secret + `"}}}}`
		password := `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"` + openstack.UserOf(w.server) + `","domain":{"id":"default"},"password":"` + secret + `"}}},"scope":{"project":{"name":"demo","domain":{"name":"Default"}}}}}`
		for _, body := range []string{credential, password} {
			status, answer, header := w.ask("POST", "/identity/v3/auth/tokens", body)
			require.Equal(t, http.StatusCreated, status)
			var token struct {
				Token struct {
					ExpiresAt string `json:"expires_at"`
					Project   struct {
						ID string `json:"id"`
					} `json:"project"`
					Catalog []struct {
						Type      string `json:"type"`
						Endpoints []struct {
							Interface string `json:"interface"`
							Region    string `json:"region_id"`
							URL       string `json:"url"`
						} `json:"endpoints"`
					} `json:"catalog"`
				} `json:"token"`
			}
			require.NoError(t, json.Unmarshal([]byte(answer), &token))
			assert.Equal(t, time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000Z"), token.Token.ExpiresAt)
			assert.Equal(t, openstack.Project, token.Token.Project.ID)
			assert.Equal(t, "volumev3", token.Token.Catalog[2].Type)
			assert.Equal(t, "http://cloud.test/volume/v3/"+openstack.Project, token.Token.Catalog[2].Endpoints[0].URL)

			w.token = header.Get("X-Subject-Token")
			status, _, _ = w.ask("GET", volumesPath+"/detail", "")
			assert.Equal(t, http.StatusOK, status)
		}
		w.says(401, "requires authentication", "POST", "/identity/v3/auth/tokens", strings.Replace(credential, secret, "wrong", 1))
		w.says(401, "requires authentication", "POST", "/identity/v3/auth/tokens", strings.Replace(password, `"demo"`, `"other"`, 1))
		time.Sleep(time.Hour)
		w.says(401, "requires authentication", "GET", volumesPath+"/detail", "")
		w.token = w.front.Token(w.server)
		w.front.Revoke(w.server)
		w.says(401, "requires authentication", "GET", volumesPath+"/detail", "")
		w.says(401, "requires authentication", "POST", "/identity/v3/auth/tokens", credential)
	})
}

func TestVolumesAreShownAsCinderShowsThem(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Create: time.Second, Attach: 2 * time.Second}}, openstack.Config{}, func(t *testing.T, w *world) {
		id := w.create(`{"volume":{"size":2,"name":"db","metadata":{"a":"b"}}}`)
		show := func(status, attachments string) {
			t.Helper()
			code, answer, _ := w.ask("GET", volumesPath+"/"+id, "")
			require.Equal(t, http.StatusOK, code)
			assert.JSONEq(t, `{"volume":{"id":"`+id+`","name":"db","description":null,"status":"`+status+`","size":2,"availability_zone":"nova",
				"volume_type":"__DEFAULT__","created_at":"2000-01-01T00:00:00.000000","updated_at":null,"attachments":`+attachments+`,"metadata":{"a":"b"},
				"snapshot_id":null,"source_volid":null,"consistencygroup_id":null,"replication_status":null,"user_id":"`+openstack.User+`",
				"os-vol-tenant-attr:tenant_id":"`+openstack.Project+`","bootable":"false","encrypted":false,"multiattach":false,
				"links":[{"rel":"self","href":"`+link+"/"+id+`"},{"rel":"bookmark","href":"`+link+"/"+id+`"}]}}`, answer)
		}
		show("creating", "[]")
		time.Sleep(1100 * time.Millisecond)
		show("available", "[]")
		code, answer, _ := w.ask("POST", "/compute/v2.1/servers/"+w.server+"/os-volume_attachments", `{"volumeAttachment":{"volumeId":"`+id+`"}}`)
		require.Equal(t, http.StatusOK, code)
		assert.JSONEq(t, `{"volumeAttachment":{"id":"`+id+`","volumeId":"`+id+`","serverId":"`+w.server+`","device":"/dev/vdb"}}`, answer)
		show("reserved", "[]")
		_, answer, _ = w.ask("GET", "/volume/v3/"+openstack.Project+"/attachments/detail?volume_id="+id, "", "OpenStack-API-Version", "volume 3.27")
		assert.Contains(t, answer, `"instance":"`+w.server+`"`)
		assert.Contains(t, answer, `"status":"reserved"`)
		time.Sleep(2100 * time.Millisecond)
		v, _ := w.cloud.Volume(id)
		require.Len(t, v.Attachments, 1)
		_, answer, _ = w.ask("GET", volumesPath+"/"+id, "")
		assert.Contains(t, answer, `"server_id":"`+w.server+`"`)
		assert.Contains(t, answer, `"status":"in-use"`)
	})
}

func TestRules(t *testing.T) {
	inWorld(t, cloud.Config{}, openstack.Config{Devices: 1, Gigabytes: 10}, func(t *testing.T, w *world) {
		for _, c := range []struct {
			status      int
			words, body string
		}{
			{400, "size", `{"volume":{"name":"x"}}`},
			{400, "size", `{"volume":{"size":0}}`},
			{400, "size", `{"volume":{"size":"x"}}`},
			{400, "colour", `{"volume":{"size":1,"colour":"red"}}`},
			{400, "does not match", `{"volume":{"size":1,"metadata":{"a/b":"c"}}}`},
			{400, "too long", `{"volume":{"size":1,"metadata":{"a":"` + strings.Repeat("é", 256) + `"}}}`},
			{500, "Incorrect string value", `{"volume":{"size":1,"metadata":{"a":"😀"}}}`},
			{404, "Volume type", `{"volume":{"size":1,"volume_type":"none"}}`},
			{404, "Snapshot", `{"volume":{"size":1,"snapshot_id":"none"}}`},
			{400, "Availability zone", `{"volume":{"size":1,"availability_zone":"none"}}`},
			{413, "exceeds allowed gigabytes quota", `{"volume":{"size":11}}`},
		} {
			w.says(c.status, c.words, "POST", volumesPath, c.body)
		}
		one, two := w.create(`{"volume":{"size":1,"name":"same"}}`), w.create(`{"volume":{"size":1,"name":"same","metadata":{"k":"`+strings.Repeat("é", 255)+`"}}}`)
		require.NotEqual(t, one, two, "names are not unique")
		servers := "/compute/v2.1/servers/"
		attach := func(id string) string { return `{"volumeAttachment":{"volumeId":"` + id + `"}}` }
		other := w.cloud.AddInstance(cloud.Instance{}).ID
		w.says(200, one, "POST", servers+w.server+"/os-volume_attachments", attach(one))
		w.says(400, "must be available or downloading to reserve", "POST", servers+other+"/os-volume_attachments", attach(one))
		w.says(403, "maximum allowed number of disk devices (1)", "POST", servers+w.server+"/os-volume_attachments", attach(two))
		w.says(404, "Volume none", "POST", servers+w.server+"/os-volume_attachments", attach("none"))
		w.says(404, "Instance none", "POST", servers+"none/os-volume_attachments", attach(two))
		w.says(400, "must be available", "DELETE", volumesPath+"/"+one, "")
		w.says(404, "volume_id not found", "DELETE", servers+other+"/os-volume_attachments/"+one, "")
		w.says(404, "volume_id not found", "DELETE", servers+w.server+"/os-volume_attachments/"+two, "")
		w.front.SetStatus(w.server, "", "rebooting")
		w.says(409, "task_state rebooting", "DELETE", servers+w.server+"/os-volume_attachments/"+one, "")
		w.front.SetStatus(w.server, "", "")

		extend := func(gib string) string { return `{"os-extend":{"new_size":` + gib + `}}` }
		w.says(400, "to extend, currently in-use", "POST", volumesPath+"/"+one+"/action", extend("2"))
		w.says(202, "", "POST", volumesPath+"/"+one+"/action", extend("2"), "OpenStack-API-Version", "volume 3.42")
		w.says(400, "must be greater", "POST", volumesPath+"/"+one+"/action", extend("2"), "OpenStack-API-Version", "volume 3.42")
		w.says(413, "quota", "POST", volumesPath+"/"+two+"/action", extend("9"))

		snapshots := "/volume/v3/" + openstack.Project + "/snapshots"
		w.says(400, "must be available", "POST", snapshots, `{"snapshot":{"volume_id":"`+one+`"}}`)
		w.says(202, "creating", "POST", snapshots, `{"snapshot":{"volume_id":"`+one+`","force":true}}`)
		w.says(202, "", "DELETE", servers+w.server+"/os-volume_attachments/"+one, "")
		w.says(400, "have snapshots", "DELETE", volumesPath+"/"+one, "")
		w.says(202, "", "DELETE", volumesPath+"/"+two, "")
		w.says(404, "Volume "+two, "GET", volumesPath+"/"+two, "")
		w.says(404, "Volume "+two, "POST", volumesPath+"/"+two+"/metadata", `{"metadata":{"a":"b"}}`)
		w.says(400, "Malformed", "GET", "/volume/v3/other/volumes/detail", "")
		w.says(404, "could not be found", "GET", "/nowhere", "")
	})
}

func TestMetadataKeysAreSetOneByOne(t *testing.T) {
	inWorld(t, cloud.Config{}, openstack.Config{}, func(t *testing.T, w *world) {
		id := w.create(`{"volume":{"size":1,"metadata":{"a":"1","b":"2"}}}`)
		status, answer, _ := w.ask("POST", volumesPath+"/"+id+"/metadata", `{"metadata":{"b":"3","c":""}}`)
		require.Equal(t, http.StatusOK, status)
		assert.JSONEq(t, `{"metadata":{"a":"1","b":"3","c":""}}`, answer)
		w.says(200, "", "DELETE", volumesPath+"/"+id+"/metadata/a", "")
		w.says(404, "no metadata with key a", "DELETE", volumesPath+"/"+id+"/metadata/a", "")
	})
}

func TestListsAreFilteredAndPaged(t *testing.T) {
	inWorld(t, cloud.Config{}, openstack.Config{}, func(t *testing.T, w *world) {
		for _, owner := range []string{"a", "A ", "it's", "b"} {
			w.create(`{"volume":{"size":1,"name":"` + owner + `","metadata":{"owner":"` + owner + `","x":"y"}}}`)
			time.Sleep(time.Second)
		}
		list := func(query string) (names []string, next string) {
			t.Helper()
			status, answer, _ := w.ask("GET", volumesPath+"/detail"+query, "")
			require.Equal(t, http.StatusOK, status, answer)
			var page struct {
				Volumes []struct {
					Name string `json:"name"`
				} `json:"volumes"`
				Links []struct {
					Rel  string `json:"rel"`
					Href string `json:"href"`
				} `json:"volumes_links"`
			}
			require.NoError(t, json.Unmarshal([]byte(answer), &page))
			for _, v := range page.Volumes {
				names = append(names, v.Name)
			}
			for _, l := range page.Links {
				next = strings.TrimPrefix(l.Href, link+"/detail")
			}
			return names, next
		}
		names, next := list("")
		assert.Equal(t, []string{"b", "it's", "A ", "a"}, names)
		assert.Empty(t, next)
		names, _ = list("?metadata=%7B'owner':'a'%7D")
		assert.Equal(t, []string{"A ", "a"}, names, "compared like databases do")
		names, _ = list(`?metadata=%7B%22owner%22:%20'it%5C's',%20'x':'y'%7D`)
		assert.Equal(t, []string{"it's"}, names)
		names, next = list("?limit=2")
		assert.Equal(t, []string{"b", "it's"}, names)
		names, next = list(next)
		assert.Equal(t, []string{"A ", "a"}, names)
		names, next = list(next)
		assert.Empty(t, names, "a full page has a next one")
		assert.Empty(t, next)
		w.says(400, "Invalid filters", "GET", volumesPath+"/detail?owner=a", "")
		w.says(400, "metadata", "GET", volumesPath+"/detail?metadata=owner", "")
		w.says(404, "Marker", "GET", volumesPath+"/detail?marker=none", "")
	})
}

func TestServersAndTheirMetadata(t *testing.T) {
	inWorld(t, cloud.Config{}, openstack.Config{}, func(t *testing.T, w *world) {
		show := func(words string, status int) {
			t.Helper()
			w.says(status, words, "GET", "/compute/v2.1/servers/"+w.server, "")
		}
		show(`"status":"ACTIVE"`, 200)
		w.cloud.Stop(w.server)
		show(`"status":"SHUTOFF"`, 200)
		w.cloud.Terminate(w.server)
		show("Instance "+w.server+" could not be found", 404)

		one := w.cloud.AddInstance(cloud.Instance{}).ID
		_, _, answer, err := httpsim.Send(t.Context(), w.front.Transport(one), http.MethodGet, "http://"+httpsim.MetadataHost+"/openstack/latest/meta_data.json", "")
		require.NoError(t, err)
		var document map[string]any
		require.NoError(t, json.Unmarshal([]byte(answer), &document))
		assert.Equal(t, one, document["uuid"])
		assert.Equal(t, "nova", document["availability_zone"])
		assert.Equal(t, openstack.Project, document["project_id"])
		assert.Equal(t, one[:20], openstack.Serial(one))
	})
}

func TestMicroversionOutOfRangeIsRefused(t *testing.T) {
	inWorld(t, cloud.Config{}, openstack.Config{NoAttachments: true}, func(t *testing.T, w *world) {
		w.says(406, "maximum is 3.26", "GET", volumesPath+"/detail", "", "OpenStack-API-Version", "volume 3.27")
		w.says(200, "volumes", "GET", volumesPath+"/detail", "", "OpenStack-API-Version", "volume 3.26")
		for _, header := range [][]string{{"OpenStack-API-Version", "compute 2.999"}, {"X-OpenStack-Nova-API-Version", "2.0"}} {
			w.says(406, "is not supported", "GET", "/compute/v2.1/servers/"+w.server, "", header...)
		}
	})
}

func TestDeletingSnapshotKeepsItsVolume(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Delete: 2 * time.Second}}, openstack.Config{}, func(t *testing.T, w *world) {
		volume := w.create(`{"volume":{"size":1,"name":"db"}}`)
		const snapshots = "/volume/v3/" + openstack.Project + "/snapshots"
		_, answer, _ := w.ask("POST", snapshots, `{"snapshot":{"volume_id":"`+volume+`","name":"one"}}`)
		path := snapshots + "/" + cloudtest.JSONField(t, answer, "snapshot", "id").(string)
		w.says(202, "", "DELETE", path, "")
		w.says(200, `"status":"deleting"`, "GET", path, "")
		w.says(400, "must be available", "DELETE", path, "")
		w.says(400, "have snapshots", "DELETE", volumesPath+"/"+volume, "")
		time.Sleep(3 * time.Second)
		w.says(404, "could not be found", "GET", path, "")
		w.says(202, "", "DELETE", volumesPath+"/"+volume, "")
	})
}

func TestServersAreStoppedAndStarted(t *testing.T) {
	inWorld(t, cloud.Config{Times: cloud.Times{Stop: time.Second, Shutdown: time.Minute}}, openstack.Config{}, func(_ *testing.T, w *world) {
		path := "/compute/v2.1/servers/" + w.server
		const stop, start = `{"os-stop": null}`, `{"os-start": null}`
		w.says(409, "vm_state active", "POST", path+"/action", start)
		w.says(202, "", "POST", path+"/action", stop)
		w.says(409, "task_state powering-off", "POST", path+"/action", stop)
		time.Sleep(time.Minute)
		w.says(200, `"status":"ACTIVE"`, "GET", path, "")
		time.Sleep(2 * time.Second)
		w.says(200, `"OS-EXT-STS:power_state":4`, "GET", path, "")
		w.says(200, `"status":"SHUTOFF"`, "GET", path, "")
		w.says(409, "vm_state stopped", "POST", path+"/action", stop)
		w.says(202, "", "POST", path+"/action", start)
		time.Sleep(2 * time.Second)
		w.says(200, `"status":"ACTIVE"`, "GET", path, "")
		w.says(400, "action", "POST", path+"/action", `{"reboot": {"type": "HARD"}}`)
		w.says(404, "could not be found", "POST", "/compute/v2.1/servers/"+openstack.ID(cloud.AnInstance, 7)+"/action", stop)
		w.front.Lock(w.server)
		w.says(409, "is locked", "POST", path+"/action", stop)
		w.front.Forbid(w.server, true)
		w.says(403, "Policy doesn't allow os_compute_api:servers:stop", "POST", path+"/action", stop)
	})
}
