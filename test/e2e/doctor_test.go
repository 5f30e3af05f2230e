package e2e_test

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/test/engine"
)

// diagnose returns what doctor finds on the engine's machine, as "code volume", but for what this machine lacks as a container.
func diagnose(t *testing.T, e *engine.Engine, code int) (wrong []string) {
	t.Helper()
	printed := operate(t, e, code, "doctor", "--json")
	printed = printed[:strings.LastIndex(printed, "}")+1] // without the summary
	var r admin.Report
	require.NoError(t, json.Unmarshal([]byte(printed), &r), printed)
	for _, f := range r.Findings {
		if f.Code != "" && !strings.Contains(f.Message, "CAP_SYS_RESOURCE") {
			wrong = append(wrong, strings.TrimSpace(f.Code+" "+f.Volume))
			assert.NotContains(t, f.Message, "/data/", "paths are the host's")
		}
	}
	return wrong
}

func TestDoctorFindsWhatIsWrongOnARealEngine(t *testing.T) {
	e := start(t)
	create(e, "db")
	create(e, "unused")
	e.Docker("run", "--detach", "--name", "user", "--volume", "db:/data", "busybox", "sleep", "1000000")
	assert.Empty(t, diagnose(t, e, 0))
	t.Log(operate(t, e, 0, "doctor"))

	device := e.Docker("volume", "inspect", "--format", "{{.Status.device}}", "db")
	e.Run("blockdev", "--setro", device)
	assert.Equal(t, []string{"device-read-only db"}, diagnose(t, e, 6))
	t.Log(operate(t, e, 6, "doctor"))
	e.Run("blockdev", "--setrw", device)

	state := filepath.Join(e.Dir, "state")
	e.Run("chmod", "755", state)
	assert.Equal(t, []string{"directory-open"}, diagnose(t, e, 6))
	e.Run("chmod", "700", state)

	e.Docker("rm", "--force", "user")
	requireReleased(t, e)
	assert.Empty(t, diagnose(t, e, 0))
	e.Docker("plugin", "disable", "--force", engine.Plugin)
	assert.Contains(t, operate(t, e, 5, "doctor"), "no blockvol runs on this machine")
	e.Docker("plugin", "set", engine.Plugin, "PROVIDER=amazon")
	e.Docker("plugin", "enable", engine.Plugin)
	assert.Equal(t, []string{"not-serving"}, diagnose(t, e, 6))
	t.Log(operate(t, e, 6, "doctor"))
}
