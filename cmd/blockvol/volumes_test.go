package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/docker"
)

// asked returns what a command prints when the plugin gives these answers, by path.
func asked(t *testing.T, answers map[string]string, args ...string) string {
	t.Helper()
	out, _, err := ask(t, answers, args...)
	require.NoError(t, err)
	return out
}

// ask returns what a command prints, what it asks the plugin to do, and how it ends.
func ask(t *testing.T, answers map[string]string, args ...string) (printed string, wanted []admin.Request, err error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "plugin.sock")
	l, err := docker.Listen(t.Context(), socket)
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Path == admin.Root+"jobs" {
			var request admin.Request
			assert.NoError(t, json.NewDecoder(r.Body).Decode(&request))
			assert.NotEmpty(t, request.ID)
			request.ID = ""
			wanted = append(wanted, request)
		}
		answer, has := answers[r.URL.RequestURI()]
		if !has {
			if answer, has = answers[r.URL.Path]; !has {
				w.WriteHeader(http.StatusNotFound)
				answer = `{"error": {"code": "not-found", "message": "there is none"}}`
			}
		}
		if has && strings.HasPrefix(answer, `{"error"`) {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write([]byte(answer))
	}))
	server.Listener.Close() //nolint:errcheck // it was not used
	server.Listener = l
	server.Start()
	defer server.Close()
	var out strings.Builder
	root := command()
	root.SetArgs(append(args, "--socket="+socket))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetIn(strings.NewReader("no\n"))
	err = root.Execute()
	return out.String(), wanted, err
}

func TestTheStatusShowsUsersPlacesAndFailures(t *testing.T) {
	const status = `{"state": "serving", "disks": {"used": 3, "most": 16, "free": 13}, "jobs": [], "volumes": [
		{"name": "data", "id": "vol-1", "status": {"state": "mounted", "containers": 2, "used-by": ["container 3f2a5d0c1b7e", "process 7 (backup)"]}}
	], "failures": [{"at": "2026-11-30T12:00:00Z", "kind": "call", "volume": "web", "what": "mount", "error": {"code": "held", "message": "held by i-2", "advice": "wait"}}]}`
	shown := asked(t, map[string]string{admin.Root + "status": status}, "status")
	assert.Regexp(t, `(?m)^disks +3 of 16, it can have 13 more$`, shown)
	assert.Regexp(t, `(?m)^data +vol-1 +mounted +2 +container 3f2a5d0c1b7e, process 7 \(backup\)$`, shown)
	assert.Regexp(t, `(?m)^2026-1\d-\d\d \d\d:00:00 +web +mount +held by i-2; wait$`, shown)
	shown = asked(t, map[string]string{admin.Root + "status": `{"state": "serving", "disks": {"used": 3}}`}, "status")
	assert.Regexp(t, `(?m)^disks +3, without a limit$`, shown)
	shown = asked(t, map[string]string{admin.Root + "status": `{"state": "serving", "disks_unknown": "nobody tells"}`}, "status")
	assert.Regexp(t, `(?m)^disks +how many it can have is not known: nobody tells$`, shown)
}

func TestAVolumeIsShownWithItsFailure(t *testing.T) {
	at, since := time.Now().Add(-150*time.Second).Format(time.RFC3339), time.Now().Add(-5*time.Hour).Format(time.RFC3339)
	volume := `{"name": "data", "status": {"state": "mounted", "mounted-since": "` + since + `"}, "failure": {"at": "` + at + `", "kind": "call", "what": "unmount", "error": {"code": "in-use", "message": "process 7 has it", "advice": "end it"}}}`
	answers := map[string]string{admin.Root + "volumes": `{"volumes": [` + volume + `]}`, admin.Root + "volumes/data": volume}
	assert.Regexp(t, `(?m)^data .* 5 hours +unmount failed 2 minutes ago: process 7 has it$`, asked(t, answers, "ls"))
	assert.Regexp(t, `(?m)^failed +unmount at .*: process 7 has it; end it$`, asked(t, answers, "inspect", "data"))
}

func TestAListShowsWhichNodesWerePoweredOffInTheLastDay(t *testing.T) {
	fence := func(ago time.Duration, state string) string {
		record := "i-1 i-2 abcdefgh " + time.Now().Add(-ago).UTC().Format(time.RFC3339) + state
		return `{"name": "data", "status": {"state": "attached", "fenced": "` + controller.FenceWords(record) + `"}}`
	}
	list := func(volume string) string {
		return asked(t, map[string]string{admin.Root + "volumes": `{"volumes": [` + volume + `]}`}, "ls")
	}
	assert.Regexp(t, `(?m)^data .*attached +powered off for it: node i-1, by node i-2 at \S+$`, list(fence(23*time.Hour, " off")))
	assert.Regexp(t, `(?m)^data .*attached +powered off for it: node i-1, by node i-2 at \S+, and started again$`, list(fence(time.Minute, " off restarted")))
	for _, volume := range []string{fence(25*time.Hour, " off"), fence(time.Minute, ""), `{"name": "data", "status": {"state": "attached"}}`} {
		assert.Regexp(t, `(?m)^data .*attached$`, list(volume))
	}
}

func TestAnAnswerOfReleaseAndRemoveTellsWhereTheDiskIs(t *testing.T) {
	const elsewhere = `{"name": "data", "id": "vol-1", "status": {"state": "attached", "node": "i-2", "reclaim": "retain"}}`
	answers := map[string]string{
		admin.Root + "volumes/data":         elsewhere,
		admin.Root + "volumes/data/release": `{}`,
		admin.Root + "jobs":                 `{"id": "job-12345", "kind": "remove", "volume": "data", "state": "done", "message": "removed"}`,
	}
	assert.Equal(t, "data: this node has nothing of it any more\nIt is attached to node i-2\n", asked(t, answers, "release", "data"))
	assert.Contains(t, asked(t, answers, "rm", "data", "--yes"), "removed\nIts disk is kept, and comes back with: blockvol adopt vol-1 data\n")
	answers[admin.Root+"volumes/data"] = `{"name": "data", "id": "vol-1", "status": {"state": "detached", "reclaim": "delete"}}`
	assert.NotContains(t, asked(t, answers, "release", "data"), "attached")
	assert.NotContains(t, asked(t, answers, "rm", "data", "--yes"), "kept")
	assert.Equal(t, "There are no volumes\n", asked(t, map[string]string{admin.Root + "volumes": `{"volumes": []}`}, "ls"))
}

func TestAReasonIsNotedOnce(t *testing.T) {
	volume := `{"name": "data", "status": {"state": "attached", "message": "held by i-2"}, "failure": {"at": "2026-11-30T12:00:00Z", "what": "mount", "error": {"code": "held", "message": "held by i-2 (waited 10s)"}}}`
	assert.Regexp(t, `(?m)^data +0B +attached +held by i-2$`, asked(t, map[string]string{admin.Root + "volumes": `{"volumes": [` + volume + `]}`}, "ls"))
}

func TestColumnsStandUnderTheirHeads(t *testing.T) {
	const events = `{"events": [
		{"at": "2026-11-30T12:00:00Z", "kind": "phase", "volume": "db", "what": "waiting-for-device", "took_seconds": 0.5},
		{"at": "2026-11-30T12:00:01Z", "kind": "call", "volume": "db", "what": "mount", "took_seconds": 1.271828}
	]}`
	shown := strings.Split(asked(t, map[string]string{admin.Root + "events": events}, "events"), "\n")
	assert.Equal(t, strings.Index(shown[0], "RESULT"), strings.Index(shown[2], "ok"), "%q", shown)
	assert.Equal(t, strings.TrimRight(shown[1], " "), shown[1])
}

func TestTheDisksOfAnotherPluginAreShownBeforeTheyAreAdopted(t *testing.T) {
	const disks = `{"disks": [
		{"id": "vol-1", "name": "db", "size_bytes": 1073741824, "marked": true},
		{"id": "vol-2", "name": "web", "size_bytes": 2147483648, "marked": false},
		{"id": "vol-3", "name": "held", "size_bytes": 1073741824, "node": "i-2", "marked": true}
	]}`
	answers := map[string]string{
		admin.Root + "plugins/rexray/disks": disks,
		admin.Root + "jobs":                 `{"id": "job-12345", "kind": "adopt", "volume": "db", "state": "done", "message": "the disk vol-1 is a volume"}`,
	}
	_, wanted, err := ask(t, answers, "adopt", "--from", "rexray")
	require.ErrorContains(t, err, "nothing was done")
	assert.Empty(t, wanted)
	shown, wanted, err := ask(t, answers, "adopt", "--from", "rexray", "--yes")
	require.NoError(t, err)
	assert.Equal(t, []admin.Request{
		{Kind: admin.Adopt, Volume: "db", Disk: "vol-1", Plugin: "rexray"}, {Kind: admin.Adopt, Volume: "web", Disk: "vol-2", Plugin: "rexray"},
	}, wanted)
	assert.Regexp(t, `(?m)^vol-1 +db +1GiB$`, shown)
	assert.Regexp(t, `(?m)^vol-2 +web +2GiB +has only a name like that plugin's disks$`, shown)
	assert.Regexp(t, `(?m)^vol-3 +held +1GiB +attached to i-2: detach it first$`, shown)
	assert.Equal(t, 2, strings.Count(shown, "the disk vol-1 is a volume"), "one job for each that is free")
	shown = asked(t, answers, "adopt", "--from", "rexray", "--yes", "db")
	assert.NotContains(t, shown, "web")
	assert.Equal(t, 1, strings.Count(shown, "the disk vol-1 is a volume"))
	shown = asked(t, answers, "adopt", "--from", "rexray", "--json")
	assert.NotContains(t, shown, "is a volume")
	assert.Contains(t, shown, `"id": "vol-3"`)
}

func TestCommandsShowHowFullAVolumeIs(t *testing.T) {
	const volume = `{"name": "data", "size_bytes": 21474836480, "status": {"used": 1288490189, "available": 20186346291, "inodes-used": 12345678, "state": "mounted"}}`
	answers := map[string]string{
		admin.Root + "volumes":      `{"volumes": [` + volume + `, {"name": "other", "size_bytes": 1073741824, "status": {"state": "detached"}}]}`,
		admin.Root + "volumes/data": volume,
		admin.Root + "status":       `{"state": "serving", "volumes": [` + volume + `], "jobs": []}`,
	}
	assert.Contains(t, asked(t, answers, "ls"), "data    20GiB   1.2GiB (6%)   mounted\nother   1GiB                  detached\n")
	assert.Contains(t, asked(t, answers, "status"), "1.2GiB (6%)")
	shown := asked(t, answers, "inspect", "data")
	assert.Regexp(t, `(?m)^used +1\.2GiB \(6%\)$`, shown)
	assert.Regexp(t, `(?m)^available +18\.8GiB$`, shown)
	assert.Regexp(t, `(?m)^inodes-used +12345678$`, shown)
	var all admin.Volumes
	require.NoError(t, json.Unmarshal([]byte(asked(t, answers, "ls", "--json")), &all))
	assert.InDelta(t, 1288490189, all.Volumes[0].Status["used"], 0, "programs get bytes")
}
