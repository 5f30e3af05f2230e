package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/internal/host"
)

// codes returns what is wrong.
func codes(r Report) (codes []string) {
	for _, f := range r.Findings {
		if f.Code != "" {
			codes = append(codes, f.Code)
		}
	}
	return codes
}

func TestAnExaminationHasAllChecksTheWorstFirst(t *testing.T) {
	l := start(t, t.TempDir(), &fakeDriver{})
	l.AddCheck("one", func(context.Context) []driver.Finding {
		return []driver.Finding{{Severity: driver.OK, Check: "one", Message: "well"}, {Severity: driver.Warning, Check: "one", Code: "odd", Volume: "db", Message: "it is odd", Remedy: "look"}}
	})
	l.AddCheck("two", func(context.Context) []driver.Finding {
		return []driver.Finding{{Severity: driver.Problem, Check: "two", Code: "bad", Message: "it is bad", Remedy: "mend it"}}
	})
	r, err := l.Doctor(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []Finding{
		{"problem", "two", "bad", "", "it is bad", "mend it"},
		{"warning", "one", "odd", "db", "it is odd", "look"},
		{"ok", "plugin", "", "", "blockvol v1 serves volumes", ""},
		{"ok", "jobs", "", "", "no job is overdue; 0 run", ""},
		{"ok", "one", "", "", "well", ""},
	}, r.Findings)
	assert.Equal(t, Serving, r.State)
	assert.Equal(t, "i-1", r.Node)
	assert.Equal(t, "local", r.Provider)
	assert.False(t, r.At.IsZero())
	assert.Equal(t, 1, r.Count("problem"))
}

func TestAnExaminationSaysWhyNoVolumesAreServed(t *testing.T) {
	for reason, want := range map[string]Finding{
		"PROVIDER is \"x\" but must be one of y: correct the settings and restart blockvol": {
			"problem", "plugin", "not-serving", "", `blockvol serves no volumes: PROVIDER is "x" but must be one of y`, "correct the settings and restart blockvol",
		},
		"the disk is full": {
			"problem", "plugin", "not-serving", "", "blockvol serves no volumes: the disk is full", "correct that, and restart blockvol: docker plugin disable --force, docker plugin set, docker plugin enable",
		},
	} {
		dir := t.TempDir()
		s := New(About{}, host.Paths{}, quiet())
		s.AddCheck("one", func(context.Context) []driver.Finding {
			return []driver.Finding{{Severity: driver.OK, Check: "one", Message: "well"}}
		})
		socket := filepath.Join(dir, "s")
		defer listen(t, socket, s)()
		s.Broken(errors.New(reason))
		r, err := NewClient(socket).Doctor(t.Context())
		require.NoError(t, err)
		assert.Equal(t, Broken, r.State)
		assert.Equal(t, []Finding{want, {"ok", "one", "", "", "well", ""}}, r.Findings)
	}
}

// A check that hangs in the kernel, or fails, does not keep the others from being told of.
func TestACheckThatHangsOrFailsIsAFinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(About{}, host.Paths{}, quiet())
		s.Broken(errors.New("no"))
		end := make(chan struct{})
		s.AddCheck("the kernel", func(context.Context) []driver.Finding { <-end; return nil })
		s.AddCheck("a defect", func(context.Context) []driver.Finding { panic("a defect") })
		s.AddCheck("the cloud", func(ctx context.Context) []driver.Finding {
			<-ctx.Done()
			return []driver.Finding{{Severity: driver.Problem, Check: "cloud", Code: "slow", Message: "it is slow", Remedy: "wait"}}
		})
		begun := time.Now()
		r := examine(t, s)
		assert.Equal(t, []string{"not-serving", "check-unfinished", "check-failed", "slow"}, codes(r))
		assert.Less(t, time.Since(begun), callTimeout)
		close(end)
	})
}

func examine(t *testing.T, s *Server) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, Root+"doctor", nil)
	require.NoError(t, err)
	r, err := s.doctor(request)
	require.NoError(t, err)
	return r.(Report)
}

func TestJobsThatDoNotEndOrCannotBeReadAreFound(t *testing.T) {
	dir := t.TempDir()
	f := &fakeDriver{hold: make(chan struct{}), at: make(chan struct{}, 1)}
	l := start(t, dir, f)
	defer l.end()
	_, err := l.Start(t.Context(), resize("job-00000001"))
	require.NoError(t, err)
	<-f.at
	r, err := l.Doctor(t.Context())
	require.NoError(t, err)
	assert.Empty(t, codes(r), "it has just begun")

	l.jobs.mu.Lock()
	l.jobs.all["job-00000001"].Began = time.Now().Add(-2 * longJob)
	l.jobs.mu.Unlock()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "jobs", "job-00000002.json"), []byte("{"), 0o600))
	r, err = l.Doctor(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"job-unfinished", "job-unreadable"}, codes(r))
	assert.Equal(t, "db", r.Findings[0].Volume)
	assert.FileExists(t, filepath.Join(dir, "jobs", "job-00000002.json"))
}

func TestNoFindingHasASecret(t *testing.T) {
	s := New(About{}, host.Paths{}, quiet())
	s.Broken(errors.New("the token hunter22 is wrong"))
	s.HideInFindings(func() []string { return []string{"", "a", "hunter22"} })
	s.AddCheck("one", func(context.Context) []driver.Finding {
		return []driver.Finding{{Severity: driver.Problem, Check: "one", Code: "bad", Message: "a bad hunter22", Remedy: "do not use hunter22"}}
	})
	text, err := json.Marshal(examine(t, s))
	require.NoError(t, err)
	assert.NotContains(t, string(text), "hunter22")
	assert.Contains(t, string(text), "a bad …")
}
