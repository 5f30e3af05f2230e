package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/plugin/admin"
)

const sick = `{"version": "v1", "provider": "aws", "cluster": "main", "state": "serving", "node": "i-1", "took_seconds": 1.25, "findings": [
	{"severity": "problem", "check": "volumes", "code": "device-read-only", "volume": "db", "message": "device /dev/nvme1n1 is read-only: containers cannot write", "remedy": "look at the kernel's log"},
	{"severity": "warning", "check": "clock", "code": "clock-wrong", "message": "this node's clock is 5m behind", "remedy": "set it"},
	{"severity": "ok", "check": "journal", "message": "the journal is whole"}]}`

// examined is what doctor prints when the plugin gives this report, and how it ends.
func examined(t *testing.T, report string, args ...string) (out string, err error) {
	t.Helper()
	out, _, err = ask(t, map[string]string{admin.Root + "doctor": report}, append([]string{"doctor"}, args...)...)
	return out, err
}

func TestDoctorSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	out, err := examined(t, sick)
	require.EqualError(t, err, "problems were found: 1")
	assert.Equal(t, exitProblems, exitCode(err))
	assert.Equal(t, `blockvol v1, serving; provider aws, cluster main, node i-1

PROBLEM  device-read-only  volume db
  device /dev/nvme1n1 is read-only: containers cannot write
  → look at the kernel's log

WARNING  clock-wrong
  this node's clock is 5m behind
  → set it

ok  journal      the journal is whole

1 problem, 1 warning, 1 ok, in 1.2 s
`, out)
	out, err = examined(t, sick, "--quiet")
	assert.Equal(t, exitProblems, exitCode(err))
	assert.Equal(t, "device-read-only db\nclock-wrong\n", out)
	out, err = examined(t, sick, "--json")
	assert.Equal(t, exitProblems, exitCode(err))
	assert.JSONEq(t, strings.Replace(sick, `"node"`, `"at": "0001-01-01T00:00:00Z", "takeover": "", "node"`, 1), out)

	out, err = examined(t, strings.Replace(sick, `"problem"`, `"warning"`, 1))
	require.NoError(t, err, "warnings are no failure")
	assert.Contains(t, out, "0 problems, 2 warnings, 1 ok")
}

func TestDoctorSaysWhatToDoWithoutAPlugin(t *testing.T) {
	t.Setenv("BLOCKVOL_SOCKET", "")
	for dir, want := range map[string]string{t.TempDir(): "docker plugin ls shows whether", filepath.Join(t.TempDir(), "none"): "start Docker"} {
		var out strings.Builder
		root := command()
		root.SetArgs([]string{"doctor", "--json", "--engine-runtime=" + dir})
		root.SetOut(&out)
		err := root.Execute()
		assert.Equal(t, exitUnavailable, exitCode(err))
		require.ErrorContains(t, err, want)
		var r admin.Report
		require.NoError(t, json.Unmarshal([]byte(out.String()), &r))
		require.Len(t, r.Findings, 1)
		assert.Equal(t, "plugin-unreachable", r.Findings[0].Code)
		assert.Contains(t, r.Findings[0].Remedy, want)
	}
}

func TestLinesAreBrokenOnATerminal(t *testing.T) {
	var b strings.Builder
	writeWrapped(&b, "  → ", "one two three four", 12)
	assert.Equal(t, "  → one two\n    three\n    four\n", b.String())
}

// report is what the process finds, without what a machine for tests may lack.
func (m machine) report(t *testing.T) (r admin.Report, wrong []string) {
	t.Helper()
	r, err := admin.NewClient(m.socket()).Doctor(t.Context())
	require.NoError(t, err)
	r.Findings = slices.DeleteFunc(r.Findings, func(f admin.Finding) bool { return strings.Contains(f.Message, "CAP_SYS_RESOURCE") })
	for _, f := range r.Findings {
		assert.NotEmpty(t, f.Message)
		assert.Equal(t, f.Code == "", f.Remedy == "", "%v", f)
		if f.Code != "" {
			wrong = append(wrong, f.Code)
		}
	}
	return r, wrong
}

// Each fault is planted in a real process, with real directories and settings.
func TestDoctorFindsFaultsOfARealProcess(t *testing.T) {
	t.Parallel()
	const token = "Xk3dpq8TmTokenOfNobody2vQ9"
	secret := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(secret, []byte(token+"\n"), 0o600))
	open := filepath.Join(t.TempDir(), "open")
	require.NoError(t, os.WriteFile(open, []byte(token), 0o644))
	cloud := []string{"PROVIDER=hetzner", "HCLOUD_ENDPOINT=http://127.0.0.1:1/v1", "HCLOUD_METADATA_URL=http://127.0.0.1:1"}
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = taken.Close() })
	key := "PEER_KEY=0123456789abcdef0123456789abcdef"
	for name, c := range map[string]struct {
		env    []string
		flags  []string
		before func(t *testing.T, m machine)
		after  func(t *testing.T, m machine)
		state  string
		want   []string
	}{
		"nothing":                        {state: admin.Serving},
		"a wrong provider":               {env: []string{"PROVIDER=amazon"}, state: admin.Broken, want: []string{"not-serving"}},
		"a wrong cluster":                {env: []string{"CLUSTER=-"}, state: admin.Broken, want: []string{"not-serving"}},
		"a wrong command line":           {flags: []string{"--wrong"}, state: admin.Broken, want: []string{"not-serving"}},
		"a wrong takeover":               {env: []string{"TAKEOVER=maybe"}, state: admin.Serving, want: []string{"no-create"}},
		"a wrong log level":              {env: []string{"LOG_LEVEL=loud"}, state: admin.Serving, want: []string{"setting-ignored"}},
		"another cloud's token":          {env: []string{"HCLOUD_TOKEN=" + token}, state: admin.Serving, want: []string{"setting-unused"}},
		"no token":                       {env: []string{"PROVIDER=hetzner"}, state: admin.Broken, want: []string{"not-serving"}},
		"a cloud that is away":           {env: append([]string{"HCLOUD_TOKEN_FILE=" + secret}, cloud...), state: admin.Serving, want: []string{"identity-unknown"}},
		"a token that others read":       {env: append([]string{"HCLOUD_TOKEN_FILE=" + open}, cloud...), state: admin.Serving, want: []string{"identity-unknown", "secret-readable"}},
		"nothing to fence with":          {env: []string{"TAKEOVER=fence"}, state: admin.Serving, want: []string{"no-fence"}},
		"fencing, and away":              {env: append([]string{"TAKEOVER=fence", "CLUSTER=-", "HCLOUD_TOKEN=" + token}, cloud...), state: admin.Broken, want: []string{"not-serving", "identity-unknown"}},
		"a short key for peers":          {env: []string{"PEER_KEY=hunter2hunter2"}, state: admin.Serving, want: []string{"no-peers"}},
		"a port for peers that is taken": {env: []string{key, "PEER_LISTEN=" + taken.Addr().String()}, state: admin.Serving, want: []string{"peers-deaf"}},
		"a peer that is away": {before: func(t *testing.T, m machine) {
			t.Helper()
			require.NoError(t, os.MkdirAll(m.state(), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(m.state(), "peers.json"), []byte(`{"i-9":["127.0.0.9"]}`), 0o600))
		}, env: []string{key, "PEER_LISTEN=127.0.0.8:7399"}, state: admin.Serving, want: []string{"peers-silent"}},
		"no peer yet":                {env: []string{key, "PEER_LISTEN=127.0.0.7:7399"}, state: admin.Serving},
		"a token in a wrong setting": {env: append([]string{"LOG_LEVEL=" + token, "HCLOUD_TOKEN_FILE=" + secret}, cloud...), state: admin.Serving, want: []string{"identity-unknown", "setting-ignored"}},
		"a wrong cluster, away":      {env: append([]string{"CLUSTER=-", "HCLOUD_TOKEN=" + token}, cloud...), state: admin.Broken, want: []string{"not-serving", "identity-unknown"}},
		"an open state directory":    {after: func(t *testing.T, m machine) { t.Helper(); require.NoError(t, os.Chmod(m.state(), 0o755)) }, state: admin.Serving, want: []string{"directory-open"}},
		"no published directory": {after: func(t *testing.T, m machine) {
			t.Helper()
			require.NoError(t, os.Remove(filepath.Join(m.dir, "published")))
		}, state: admin.Serving, want: []string{"directory-missing"}},
		"no images": {after: func(t *testing.T, m machine) {
			t.Helper()
			require.NoError(t, os.Rename(filepath.Join(m.dir, "volumes"), filepath.Join(t.TempDir(), "gone"))) // the plugin may be writing there
		}, state: admin.Serving, want: []string{"images-unreadable"}},
		"a damaged description": {after: func(t *testing.T, m machine) {
			t.Helper()
			_, _, err := m.call(t, "Create", `{"Name":"db","Opts":{"size":"64MiB"}}`)
			require.NoError(t, err)
			all, err := filepath.Glob(filepath.Join(m.dir, "volumes/disks/*.json"))
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.NoError(t, os.WriteFile(all[0], []byte("{"), 0o600))
		}, state: admin.Serving, want: []string{"volume-unreadable"}},
		"a damaged journal entry":          {after: inJournal("db.json", "{"), state: admin.Serving, want: []string{"journal-damaged"}},
		"one that was set aside":           {before: inJournal("db.json", "{"), state: admin.Serving, want: []string{"journal-set-aside"}},
		"an entry of an earlier boot":      {before: inJournal("db.json", `{"version":2,"boot":"x","name":"db","volume":"vol-1","serial":"vol-1.img","uses":[]}`), env: []string{"PROVIDER=amazon"}, state: admin.Broken, want: []string{"not-serving", "journal-old"}},
		"a state directory that is a file": {before: func(t *testing.T, m machine) { t.Helper(); require.NoError(t, os.WriteFile(m.state(), nil, 0o600)) }, state: admin.Broken, want: []string{"not-serving", "directory-unusable"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := machine{dir: t.TempDir(), flags: c.flags}
			if c.before != nil {
				c.before(t, m)
			}
			m.start(t, c.env...)
			client := admin.NewClient(m.socket())
			require.Eventually(t, func() bool {
				status, err := client.Status(t.Context())
				return err == nil && status.State != admin.Starting
			}, 2*time.Minute, 50*time.Millisecond)
			if c.after != nil {
				c.after(t, m)
			}
			r, wrong := m.report(t)
			assert.ElementsMatch(t, c.want, wrong, "%+v", r.Findings)
			assert.Equal(t, c.state, r.State)
			text, err := json.Marshal(r)
			require.NoError(t, err)
			assert.NotContains(t, string(text), token)
		})
	}
}

func inJournal(name, content string) func(t *testing.T, m machine) {
	return func(t *testing.T, m machine) {
		t.Helper()
		dir := filepath.Join(m.state(), "journal")
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
}
