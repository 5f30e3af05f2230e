package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	protocol "github.com/docker/go-plugins-helpers/volume"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
)

// volumes is a fake that notes what it is asked, and answers as it is told.
type volumes struct {
	mu    sync.Mutex
	calls []string
	// on, if set, comes before the answer of every call.
	on   func(ctx context.Context, call string) error
	info driver.Info
	list []driver.Info
}

func (v *volumes) called(ctx context.Context, call string, args ...any) error {
	v.mu.Lock()
	v.calls = append(v.calls, strings.TrimSpace(fmt.Sprintln(append([]any{call}, args...)...)))
	v.mu.Unlock()
	if v.on == nil {
		return nil
	}
	return v.on(ctx, call)
}

func (v *volumes) seen() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.calls
}

func (v *volumes) Create(ctx context.Context, name string, options map[string]string) error {
	return v.called(ctx, "Create", name, options)
}

func (v *volumes) Remove(ctx context.Context, name string) error {
	return v.called(ctx, "Remove", name)
}

func (v *volumes) Mount(ctx context.Context, name, id string) (string, error) {
	return "/data/published/" + name, v.called(ctx, "Mount", name, id)
}

func (v *volumes) Unmount(ctx context.Context, name, id string) error {
	return v.called(ctx, "Unmount", name, id)
}

func (v *volumes) Path(ctx context.Context, name string) (string, error) {
	return v.info.Mountpoint, v.called(ctx, "Path", name)
}

func (v *volumes) Get(ctx context.Context, name string) (driver.Info, error) {
	return v.info, v.called(ctx, "Get", name)
}

func (v *volumes) List(ctx context.Context) ([]driver.Info, error) {
	return v.list, v.called(ctx, "List")
}

// engine is a server on a real socket and a client for it that, like an engine's, keeps its connections.
type engine struct {
	t      *testing.T
	socket string
	client *http.Client
	log    *logtest.Hook
	stop   func() error // ends Serve and returns its error; may be called once more at the end of the test
}

func serve(t *testing.T, v Volumes, change ...func(*Config)) *engine {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "plugins", "blockvol.sock")
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	logger, hook := logtest.NewNullLogger()
	logger.SetLevel(logrus.DebugLevel)
	cfg := Config{Volumes: v, Published: "/data/published", Log: logger}
	for _, c := range change {
		c(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(cfg).Serve(ctx, l) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &engine{t, socket, &http.Client{Transport: transport}, hook, stop}
}

// post sends one request and returns what came back, or the transport's error.
func (e *engine) post(ctx context.Context, path, body string) (status int, answer string, err error) {
	e.t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin"+path, strings.NewReader(body))
	require.NoError(e.t, err)
	resp, err := e.client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	all, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(all), err
}

// answers requires that the call succeeds and returns its JSON.
func (e *engine) answers(call, body string) string {
	e.t.Helper()
	status, answer, err := e.post(e.t.Context(), "/VolumeDriver."+call, body)
	require.NoError(e.t, err)
	require.Equal(e.t, http.StatusOK, status, answer)
	return answer
}

// fails requires that the call is answered with an error and returns it.
func (e *engine) fails(call, body string) string {
	e.t.Helper()
	status, answer, err := e.post(e.t.Context(), "/VolumeDriver."+call, body)
	require.NoError(e.t, err)
	require.Equal(e.t, http.StatusInternalServerError, status, answer)
	var problem protocol.ErrorResponse
	require.NoError(e.t, json.Unmarshal([]byte(answer), &problem))
	require.NotEmpty(e.t, problem.Err)
	return problem.Err
}

// getBreaks requires that Get ends in a transport error, for which an engine changes nothing.
func (e *engine) getBreaks(body string) {
	e.t.Helper()
	status, answer, err := e.post(e.t.Context(), "/VolumeDriver.Get", body)
	require.Error(e.t, err, "answered %d %s", status, answer)
	_, isNet := errors.AsType[net.Error](err)
	require.True(e.t, isNet, "engines tell a broken connection by net.Error: %v", err)
}

func (e *engine) logged(level logrus.Level) (entries []*logrus.Entry) {
	for _, entry := range e.log.AllEntries() {
		if entry.Level == level {
			entries = append(entries, entry)
		}
	}
	return entries
}

const (
	named = `{"Name":"db"}` + "\n"
	idOf  = `{"Name":"db","ID":"0123456789abcdef"}` + "\n"
)

// requests has one good request for each call.
var requests = map[string]string{
	"Create": `{"Name":"db","Opts":{"size":"20GiB"}}` + "\n", "Remove": named, "Mount": idOf, "Unmount": idOf,
	"Path": named, "Get": named, "List": "{}\n", "Capabilities": "{}\n",
}

func TestEachCallReachesTheVolumesAsTheEngineMeantIt(t *testing.T) {
	v := &volumes{info: driver.Info{Name: "db", Mountpoint: "/data/published/db"}}
	e := serve(t, v)
	assert.JSONEq(t, `{}`, e.answers("Create", requests["Create"]))
	assert.JSONEq(t, `{"Mountpoint":"/data/published/db"}`, e.answers("Mount", idOf))
	assert.JSONEq(t, `{"Mountpoint":"/data/published/db"}`, e.answers("Path", named))
	assert.JSONEq(t, `{}`, e.answers("Unmount", idOf))
	assert.JSONEq(t, `{}`, e.answers("Remove", named))
	assert.Equal(t, []string{
		"Create db map[size:20GiB]", "Mount db 0123456789abcdef", "Path db", "Unmount db 0123456789abcdef", "Remove db",
	}, v.seen())
}

func TestAnErrorIsAnsweredWithItsSentence(t *testing.T) {
	for _, call := range []string{"Create", "Remove", "Mount", "Unmount", "Path", "List"} {
		t.Run(call, func(t *testing.T) {
			e := serve(t, &volumes{on: func(context.Context, string) error { return errors.New("node-2 holds volume db: stop it") }})
			assert.Equal(t, "node-2 holds volume db: stop it", e.fails(call, requests[call]))
			require.Len(t, e.logged(logrus.WarnLevel), 1)
			assert.ErrorContains(t, e.logged(logrus.WarnLevel)[0].Data["error"].(error), "node-2")
		})
	}
}

// Fact 1.

func TestGetDeniesAVolumeOnlyWhenItIsCertain(t *testing.T) {
	e := serve(t, &volumes{on: func(context.Context, string) error { return volume.Fail(volume.NotFound, "no such volume", "") }})
	assert.Equal(t, "no such volume", e.fails("Get", named))
	assert.Empty(t, e.logged(logrus.WarnLevel), "this comes before every Create")
}

func TestGetBreaksTheConnectionWhenItCannotTell(t *testing.T) {
	for what, err := range map[string]error{
		"said so":         fmt.Errorf("%w: the cloud is away", volume.Unsure),
		"any other error": errors.New("disk on fire"),
		"deadline":        context.DeadlineExceeded,
	} {
		t.Run(what, func(t *testing.T) {
			e := serve(t, &volumes{on: func(context.Context, string) error { return err }})
			e.getBreaks(named)
			// Answering the retries, which come without a body, would deny the volume after all.
			for range 4 {
				e.getBreaks("")
			}
			require.Len(t, e.logged(logrus.WarnLevel), 1, "the reason is logged once, not with every retry")
			require.ErrorIs(t, e.logged(logrus.WarnLevel)[0].Data["error"].(error), err)
			e.answers("Capabilities", "{}") // the plugin goes on
		})
	}
}

func TestGetBreaksTheConnectionWhenItPanicsOrCannotEncode(t *testing.T) {
	e := serve(t, &volumes{on: func(context.Context, string) error { panic("oh") }})
	e.getBreaks(named)
	e = serve(t, &volumes{info: driver.Info{Name: "db", Status: map[string]any{"bad": make(chan int)}}})
	e.getBreaks(named)
}

func TestGetWithoutANameIsAnErrorAndNoVolume(t *testing.T) {
	v := &volumes{}
	e := serve(t, v)
	assert.Contains(t, e.fails("Get", `{"Name":""}`), "names no volume")
	assert.Empty(t, v.seen())
}

// Fact 2.

func TestARetriedCallWithAnEmptyBodyIsNeverActedUpon(t *testing.T) {
	for _, call := range []string{"Create", "Remove", "Mount", "Unmount", "Path"} {
		for _, body := range []string{"", "\n"} {
			v := &volumes{}
			e := serve(t, v)
			assert.Contains(t, e.fails(call, body), "try again", "%s %q", call, body)
			assert.Empty(t, v.seen())
		}
	}
}

func TestReadsThatNeedNothingAnswerAnEmptyBody(t *testing.T) {
	e := serve(t, &volumes{})
	assert.JSONEq(t, `{"Volumes":[]}`, e.answers("List", ""))
	assert.JSONEq(t, `{"Capabilities":{"Scope":"global"}}`, e.answers("Capabilities", ""))
}

// Fact 3.

func TestTheDeadlineStaysBelowTheShortestOfTheEngines(t *testing.T) {
	assert.Less(t, DefaultTimeout, 30*time.Second)
	synctest.Test(t, func(t *testing.T) {
		logger, _ := logtest.NewNullLogger()
		begin := time.Now()
		s := New(Config{Log: logger, Volumes: &volumes{on: func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		}}})
		w := httptest.NewRecorder()
		s.routes().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/VolumeDriver.Mount", strings.NewReader(idOf)))
		assert.Equal(t, DefaultTimeout, time.Since(begin))
		assert.Equal(t, http.StatusInternalServerError, w.Code)
		assert.Contains(t, w.Body.String(), "Mount did not finish within 25s, try again")
	})
}

// Fact 4.

func TestACallIsCancelledWhenTheEngineGoesAway(t *testing.T) {
	started, cancelled := make(chan struct{}), make(chan error)
	e := serve(t, &volumes{on: func(ctx context.Context, _ string) error {
		close(started)
		<-ctx.Done()
		cancelled <- ctx.Err()
		return ctx.Err()
	}})
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-started; leave() }()
	_, _, err := e.post(ctx, "/VolumeDriver.Mount", idOf)
	require.ErrorIs(t, err, context.Canceled)
	assert.ErrorIs(t, <-cancelled, context.Canceled)
}

// Fact 5.

func TestMountAndUnmountWithoutAnIDAreRefused(t *testing.T) {
	for _, call := range []string{"Mount", "Unmount"} {
		v := &volumes{}
		assert.Contains(t, serve(t, v).fails(call, named), "no mount ID")
		assert.Empty(t, v.seen())
	}
}

// Calls, in the order of the facts.

func TestCapabilitiesIsGlobalAndAsksNobody(t *testing.T) {
	v := &volumes{}
	e := serve(t, v)
	assert.JSONEq(t, `{"Capabilities":{"Scope":"global"}}`, e.answers("Capabilities", "{}"))
	assert.Empty(t, v.seen())
}

func TestCapabilitiesAreNotLogged(t *testing.T) {
	e := serve(t, &volumes{})
	e.answers("Capabilities", "{}")
	e.answers("List", "{}")
	var calls []any
	for _, entry := range e.log.AllEntries() {
		calls = append(calls, entry.Data["call"])
	}
	assert.Equal(t, []any{"List"}, calls)
}

func TestCapabilitiesAnswersWhileEverythingElseHangs(t *testing.T) {
	started := make(chan struct{})
	e := serve(t, &volumes{on: func(ctx context.Context, _ string) error { close(started); <-ctx.Done(); return ctx.Err() }})
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() { defer close(gone); _, _, _ = e.post(ctx, "/VolumeDriver.Mount", idOf) }()
	<-started
	e.answers("Capabilities", "{}")
	leave()
	<-gone
}

func TestALegacyEngineLearnsWhatThePluginImplements(t *testing.T) {
	e := serve(t, &volumes{})
	for _, body := range []string{"", "{}"} {
		status, answer, err := e.post(t.Context(), "/Plugin.Activate", body)
		require.NoError(t, err)
		assert.Equal(t, http.StatusOK, status)
		assert.JSONEq(t, `{"Implements":["VolumeDriver"]}`, answer)
	}
}

func TestGetTellsEverythingAndListOnlyNamesAndMountpoints(t *testing.T) {
	created := time.Date(2026, 11, 23, 16, 0, 0, 5e8, time.FixedZone("CET", 3600))
	info := driver.Info{Name: "db", Mountpoint: "/data/published/db", CreatedAt: created, Status: map[string]any{"size": "20 GiB"}}
	e := serve(t, &volumes{info: info, list: []driver.Info{info}})
	assert.JSONEq(t, `{"Volume":{"Name":"db","Mountpoint":"/data/published/db","CreatedAt":"2026-11-23T15:00:00Z","Status":{"size":"20 GiB"}}}`,
		e.answers("Get", named))
	assert.JSONEq(t, `{"Volumes":[{"Name":"db","Mountpoint":"/data/published/db"}]}`, e.answers("List", "{}"))
}

func TestAnUnknownTimeOfCreationIsLeftOut(t *testing.T) {
	assert.JSONEq(t, `{"Volume":{"Name":"db"}}`, serve(t, &volumes{info: driver.Info{Name: "db"}}).answers("Get", named))
}

func TestAVolumeThatIsNotMountedIsNotListedAtThePluginsRoot(t *testing.T) {
	e := serve(t, &volumes{list: []driver.Info{{Name: "db"}}})
	assert.JSONEq(t, `{"Volumes":[{"Name":"db","Mountpoint":"/data/published/.not-mounted"}]}`, e.answers("List", "{}"))
	assert.JSONEq(t, `{"Mountpoint":"/data/published/.not-mounted"}`, e.answers("Path", named))
}

func TestAnAnswerCarriesItsLengthSoThatHalfOfItIsAnError(t *testing.T) {
	e := serve(t, &volumes{info: driver.Info{Name: "db", Status: map[string]any{"note": strings.Repeat("x", 100_000)}}})
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", e.socket)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = fmt.Fprintf(conn, "POST /VolumeDriver.Get HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(named), named)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	assert.Greater(t, resp.ContentLength, int64(100_000))
	assert.Empty(t, resp.TransferEncoding)
}

// Requests that no engine should send.

func TestABadRequestIsExplainedAndNotActedUpon(t *testing.T) {
	for what, c := range map[string]struct{ body, says string }{
		"cut short":        {`{"Name":"db"`, "unexpected end of JSON input"},
		"garbage after it": {`{"Name":"db"} x`, "after top-level value"},
		"no object":        {`["db"]`, "cannot unmarshal array"},
		"null":             {`null`, "names no volume"},
		"name is a number": {`{"Name":5}`, "cannot unmarshal number"},
		"option a number":  {`{"Name":"db","Opts":{"size":5}}`, "cannot unmarshal number"},
		"no name":          {`{"Opts":{}}`, "names no volume"},
		"invalid UTF-8":    {"{\"Name\":\"d\xffb\"}", "not valid UTF-8"},
		"half a surrogate": {`{"Name":"d\ud800b"}`, "not valid Unicode"},
		"too large":        {`{"Name":"` + strings.Repeat("x", maxBody) + `"}`, "larger than 1048576 bytes"},
	} {
		t.Run(what, func(t *testing.T) {
			for _, call := range []string{"Create", "Get"} {
				v := &volumes{}
				assert.Contains(t, serve(t, v).fails(call, c.body), c.says)
				assert.Empty(t, v.seen())
			}
		})
	}
}

func TestARequestThatDoesNotArriveWholeIsNotActedUpon(t *testing.T) {
	for _, call := range []string{"Remove", "Get"} {
		v := &volumes{}
		e := serve(t, v)
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: e.socket})
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		_, err = io.WriteString(conn, "POST /VolumeDriver."+call+" HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"+named)
		require.NoError(t, err)
		require.NoError(t, conn.CloseWrite())
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if call == "Get" {
			require.Error(t, err, "an answer would deny the volume")
		} else {
			require.NoError(t, err)
			assert.Equal(t, http.StatusInternalServerError, resp.StatusCode)
			require.NoError(t, resp.Body.Close())
		}
		assert.Empty(t, v.seen())
	}
}

func TestARequestThatStopsHalfWayDoesNotHoldACallForEver(t *testing.T) {
	v := &volumes{}
	e := serve(t, v, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", e.socket)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "POST /VolumeDriver.Remove HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"+named)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err, "the server answers although the rest never comes")
	defer func() { _ = resp.Body.Close() }()
	assert.Equal(t, http.StatusInternalServerError, resp.StatusCode)
	assert.Empty(t, v.seen())
}

func TestFieldsToComeAndNullOptionsAreAccepted(t *testing.T) {
	for body, want := range map[string]string{
		`{"Name":"db","Opts":null}`:                   "Create db map[]",
		`{"Name":"db"}`:                               "Create db map[]",
		`{"Name":"db","Opts":{"type":null}}`:          "Create db map[type:]",
		`{"Name":"db","Labels":{"a":[1,2]},"X":null}`: "Create db map[]",
		`{"Name":"dß ☃/..\u0020"}`:                    "Create dß ☃/.. map[]",
	} {
		v := &volumes{}
		serve(t, v).answers("Create", body)
		got := v.seen()
		require.Len(t, got, 1)
		assert.Equal(t, strings.Fields(want), strings.Fields(got[0]))
	}
}

func TestAnUnknownCallIsExplained(t *testing.T) {
	e := serve(t, &volumes{})
	status, answer, err := e.post(t.Context(), "/VolumeDriver.Levitate", "{}")
	require.NoError(t, err)
	assert.Equal(t, http.StatusNotFound, status)
	assert.JSONEq(t, `{"Err":"blockvol knows no call POST /VolumeDriver.Levitate"}`, answer)
}

func TestPathsThatAreNotDockersAreAnsweredByOther(t *testing.T) {
	e := serve(t, &volumes{}, func(c *Config) {
		c.Other = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "other "+r.URL.Path) })
	})
	_, answer, err := e.post(t.Context(), "/metrics", "")
	require.NoError(t, err)
	assert.Equal(t, "other /metrics", answer)
	status, _, err := e.post(t.Context(), "/VolumeDriver.Levitate", "{}")
	require.NoError(t, err)
	assert.Equal(t, http.StatusNotFound, status)
	e.answers("Capabilities", "{}")
}

func TestAPanicIsAnErrorOfThatCallOnly(t *testing.T) {
	e := serve(t, &volumes{on: func(context.Context, string) error { panic("oh") }})
	assert.Equal(t, "Mount failed: this is a defect of blockvol, its log has the details", e.fails("Mount", idOf))
	require.Len(t, e.logged(logrus.ErrorLevel), 1)
	entry := e.logged(logrus.ErrorLevel)[0]
	assert.Contains(t, entry.Message, "oh")
	assert.Contains(t, entry.Data["stack"], "volumes).Mount")
	e.answers("Capabilities", "{}")
}

func TestTheLogHasNoOptionsValues(t *testing.T) {
	e := serve(t, &volumes{on: func(context.Context, string) error { return errors.New("no") }})
	e.fails("Create", `{"Name":"db","Opts":{"kms-key":"hush"}}`)
	for _, entry := range e.log.AllEntries() {
		line, err := entry.String()
		require.NoError(t, err)
		assert.NotContains(t, line, "hush")
		assert.Contains(t, line, "kms-key")
		assert.Contains(t, line, "took")
	}
	assert.NotEmpty(t, e.log.AllEntries())
}

// The socket, and the end.

func TestTheSocketIsForItsOwnerOnly(t *testing.T) {
	e := serve(t, &volumes{})
	info, err := os.Stat(e.socket)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())
}

func TestASocketOfADeadProcessIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socket})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	require.FileExists(t, socket)
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestASocketInUseIsLeftAlone(t *testing.T) {
	e := serve(t, &volumes{})
	_, err := Listen(t.Context(), e.socket)
	require.ErrorContains(t, err, "another process listens on "+e.socket)
	e.answers("Capabilities", "{}")
}

func TestAFileInPlaceOfTheSocketIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(file, []byte("data"), 0o600))
	_, err := Listen(t.Context(), file)
	require.ErrorContains(t, err, "is not a socket")
	kept, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "data", string(kept))
}

func TestCallsWaitForServeOnceTheSocketListens(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", socket)
	require.NoError(t, err, "before Serve")
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "POST /VolumeDriver.Capabilities HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	logger, _ := logtest.NewNullLogger()
	go func() { done <- New(Config{Volumes: &volumes{}, Log: logger}).Serve(ctx, l) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
	cancel()
	require.NoError(t, <-done)
	assert.NoFileExists(t, socket)
}

func TestTheEndWaitsForCallsInFlight(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	e := serve(t, &volumes{on: func(ctx context.Context, _ string) error {
		close(started)
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	answered := make(chan error, 1)
	go func() {
		status, answer, err := e.post(t.Context(), "/VolumeDriver.Mount", idOf)
		if err == nil && status != http.StatusOK {
			err = errors.New(answer)
		}
		answered <- err
	}()
	<-started
	ended := make(chan error, 1)
	go func() { ended <- e.stop() }()
	require.Eventually(t, func() bool { // the socket goes first
		_, err := os.Stat(e.socket)
		return errors.Is(err, os.ErrNotExist)
	}, 10*time.Second, time.Millisecond)
	close(finish)
	assert.NoError(t, <-answered)
	assert.NoError(t, <-ended)
}

func TestTheEndCancelsACallThatOutlastsTheGrace(t *testing.T) {
	started := make(chan struct{})
	e := serve(t, &volumes{on: func(ctx context.Context, _ string) error {
		close(started)
		<-ctx.Done()
		return fmt.Errorf("rolled back: %w", ctx.Err())
	}}, func(c *Config) { c.Grace = time.Millisecond })
	answered := make(chan string, 1)
	go func() { answered <- e.fails("Mount", idOf) }()
	<-started
	require.NoError(t, e.stop())
	assert.Equal(t, "the plugin is stopping; try again when it runs", <-answered)
}

func TestServeSaysWhenItCannotListenAnyMore(t *testing.T) {
	l, err := Listen(t.Context(), filepath.Join(t.TempDir(), "s.sock"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	logger, _ := logtest.NewNullLogger()
	assert.ErrorContains(t, New(Config{Log: logger}).Serve(t.Context(), l), "cannot accept calls")
}

func TestABrokenPluginListensAndGivesTheReason(t *testing.T) {
	e := serve(t, Broken(errors.New("PROVIDER must be local")))
	for _, call := range []string{"Create", "Remove", "Mount", "Unmount", "Path", "List"} {
		assert.Equal(t, "PROVIDER must be local", e.fails(call, requests[call]))
	}
	e.getBreaks(named)
	e.answers("Capabilities", "{}")
	_, err := Broken(errors.New("x")).Get(t.Context(), "db")
	assert.ErrorIs(t, err, volume.Unsure)
}

// FuzzRequest: whatever is sent, the answer is JSON, only Get ever breaks, and nothing is done to a volume whose name is
// not exactly what was sent.
func FuzzRequest(f *testing.F) {
	for _, body := range requests {
		f.Add([]byte(body))
	}
	for _, body := range []string{"", "null", "{}", `{"Name":"\ud83d\ude00"}`, `{"Name":"\ud800"}`, "{\"Name\":\"\xff\"}", `{"name":"a","NAME":"b"}`, `{"Opts":{"a":null}}`} {
		f.Add([]byte(body))
	}
	logger, _ := logtest.NewNullLogger()
	f.Fuzz(func(t *testing.T, body []byte) {
		v := &volumes{}
		routes := New(Config{Volumes: v, Log: logger}).routes()
		for _, c := range calls {
			before := len(v.seen())
			w := httptest.NewRecorder()
			broke := func() (broke bool) {
				defer func() {
					if cause := recover(); cause != nil {
						require.Equal(t, http.ErrAbortHandler, cause)
						broke = true
					}
				}()
				routes.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/VolumeDriver."+c.name, bytes.NewReader(body)))
				return false
			}()
			if broke {
				require.Equal(t, "Get", c.name)
				require.Empty(t, bytes.TrimSpace(body))
				continue
			}
			require.True(t, json.Valid(w.Body.Bytes()))
			if w.Code != http.StatusOK {
				require.Len(t, v.seen(), before, "refused, and yet acted upon")
			}
		}
		r, err := decode(body, fields{name: true})
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		require.NoError(t, err)
		r2, err := decode(again, fields{name: true})
		require.NoError(t, err)
		require.Equal(t, r.Name, r2.Name)
		require.True(t, maps.Equal(r.Options, r2.Options), "%v became %v", r.Options, r2.Options) // none is as good as no options at all
	})
}
