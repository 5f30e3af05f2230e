package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/plugin/admin"
)

// TestMain lets the test binary be blockvol: a process of its own, to be started, killed and started again.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_BLOCKVOL") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// machine is where processes of one test find their things.
type machine struct {
	dir   string
	flags []string // after those that say where things are, as a managed plugin's args
}

func (m machine) socket() string { return filepath.Join(m.dir, "blockvol.sock") }
func (m machine) state() string  { return filepath.Join(m.dir, "state") }

type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  *bufio.Reader // stdout
	errs strings.Builder
}

// start runs `blockvol serve` and returns once it says that it listens.
func (m machine) start(t testing.TB, env ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.CommandContext(context.Background(), os.Args[0], "serve", "--socket="+m.socket(),
		"--published="+filepath.Join(m.dir, "published"), "--state="+m.state())}
	p.cmd.Args = append(p.cmd.Args, m.flags...)
	p.cmd.Env = append(os.Environ(), "TEST_AS_BLOCKVOL=1", "LOCAL_DIR="+filepath.Join(m.dir, "volumes"))
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = &p.errs
	out, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	p.out = bufio.NewReader(out)
	p.says("Listening")
	return p
}

// says waits for a line of the log.
func (p *process) says(what string) {
	p.t.Helper()
	for {
		line, err := p.out.ReadString('\n')
		require.NoError(p.t, err, "it never said %q; its errors: %s", what, &p.errs)
		if strings.Contains(line, what) {
			return
		}
	}
}

// ends waits for the end of the process and returns its error log.
func (p *process) ends() string {
	p.t.Helper()
	_, err := io.Copy(io.Discard, p.out)
	require.NoError(p.t, err)
	require.NoError(p.t, p.cmd.Wait())
	return p.errs.String()
}

// call answers as the plugin does, or with the transport's error.
func (m machine) call(t testing.TB, name, body string) (int, map[string]any, error) {
	t.Helper()
	status, text, err := m.ask(t, http.MethodPost, "/VolumeDriver."+name, body)
	if err != nil {
		return 0, nil, err
	}
	answer := map[string]any{}
	require.NoError(t, json.Unmarshal([]byte(text), &answer))
	return status, answer, nil
}

func (m machine) ask(t testing.TB, method, path, body string) (int, string, error) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", m.socket())
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://plugin"+path, strings.NewReader(body))
	require.NoError(t, err)
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(answer), err
}

func TestServeKnowsItsVolumesAgainAfterKillAndLeavesQuietlyOnSIGTERM(t *testing.T) {
	m := machine{dir: t.TempDir()}
	p := m.start(t)
	status, answer, err := m.call(t, "Create", `{"Name":"db","Opts":{"size":"64MiB"}}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, answer)
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait()
	require.FileExists(t, m.socket(), "a killed process leaves its socket")

	p = m.start(t)
	status, answer, err = m.call(t, "Get", `{"Name":"db"}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, answer)
	assert.Equal(t, "db", answer["Volume"].(map[string]any)["Name"])
	status, answer, err = m.call(t, "Remove", `{"Name":"db"}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, answer)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	assert.Empty(t, p.ends())
	assert.NoFileExists(t, m.socket())
}

func TestOperatorsAndMetricsAreAnsweredOnThePluginsSocket(t *testing.T) {
	m := machine{dir: t.TempDir()}
	m.start(t)
	volumes, err := admin.NewClient(m.socket()).Volumes(t.Context()) // it waits until volumes are served
	require.NoError(t, err)
	assert.Empty(t, volumes)
	for path, text := range map[string]string{
		"/healthz": "ok\n", "/metrics": "\nblockvol_serving ", "/other": "there is no call GET /other",
	} {
		_, answer, err := m.ask(t, http.MethodGet, path, "")
		require.NoError(t, err)
		assert.Contains(t, answer, text)
	}
}

// Whatever the umask, and whatever the modes that an earlier version, or an engine, gave to its directories.
func TestSystemdIsToldWhenTheSocketIsThere(t *testing.T) {
	m := machine{dir: t.TempDir()}
	socket := filepath.Join(m.dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	require.NoError(t, err)
	defer systemd.Close() //nolint:errcheck // it may be closed
	told := make(chan string)
	go func() {
		message := make([]byte, 100)
		n, _, _ := systemd.ReadFromUnix(message)
		if _, err := os.Stat(m.socket()); err != nil {
			n = 0
		}
		told <- string(message[:n])
	}()
	p := m.start(t, "NOTIFY_SOCKET="+socket)
	assert.Equal(t, "READY=1", <-told)

	require.NoError(t, systemd.Close())
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.ends()
	m.start(t, "NOTIFY_SOCKET="+socket).says("Serving volumes")
}

func TestOnlyRootReachesWhatThePluginKeeps(t *testing.T) {
	umask := syscall.Umask(0)
	defer syscall.Umask(umask)
	m := machine{dir: t.TempDir()}
	published, journal := filepath.Join(m.dir, "published"), filepath.Join(m.state(), "journal")
	for _, dir := range []string{published, m.state(), journal} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	p := m.start(t)
	p.says("Serving volumes")
	status, answer, err := m.call(t, "Create", `{"Name":"db","Opts":{"size":"64MiB"}}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, answer)

	for _, dir := range []string{published, m.state()} {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		assert.Equal(t, os.ModeDir|0o700, info.Mode(), dir)
	}
	seen := 0
	require.NoError(t, filepath.WalkDir(m.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil || path == m.dir || path == journal {
			return err
		}
		info, err := os.Lstat(path)
		if err == nil && info.Mode().Type() != os.ModeSymlink {
			seen++
			assert.Zero(t, info.Mode().Perm()&0o077, "%s is %s", path, info.Mode())
		}
		return err
	}))
	assert.Greater(t, seen, 8, "socket, directories, lock, node, image, record")
}

func TestWrongSettingsAreTheAnswerToEachCall(t *testing.T) {
	m := machine{dir: t.TempDir()}
	p := m.start(t, "PROVIDER=abacus", "CLUSTER=two words")
	for _, call := range []string{"Create", "Remove", "Path", "List"} {
		status, answer, err := m.call(t, call, `{"Name":"db"}`)
		require.NoError(t, err)
		assert.Equal(t, http.StatusInternalServerError, status)
		assert.Equal(t, `PROVIDER is "abacus" but must be one of aws, digitalocean, hetzner, linode, local, openstack; CLUSTER is "two words" but must be up to 63 letters, digits, '.', '_' and '-', with a letter or digit at both ends: correct the settings and restart blockvol`, answer["Err"])
	}
	_, answer, err := m.call(t, "Get", `{"Name":"db"}`)
	require.Error(t, err, "answered %v: an engine would take the volume for gone", answer)
	status, _, err := m.call(t, "Capabilities", `{}`)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, status)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	assert.Contains(t, p.ends(), "abacus", "errors go to stderr")
}

func TestWhatExistsIsServedDespiteWrongSettings(t *testing.T) {
	m := machine{dir: t.TempDir()}
	p := m.start(t)
	status, answer, err := m.call(t, "Create", `{"Name":"db","Opts":{"size":"64MiB"}}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status, answer)
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait()

	p = m.start(t, "DEFAULT_SIZE=-1", "TAKEOVER=perhaps", "LOG_LEVEL=verbose", "LOG_FORMAT=xml", "CALL_TIMEOUT=soon", "LOCAL_OVERCOMMIT=perhaps")
	for _, call := range []string{"Get", "Path", "List"} {
		status, answer, err := m.call(t, call, `{"Name":"db"}`)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status, answer)
	}
	status, answer, err = m.call(t, "Create", `{"Name":"other","Opts":{"size":"64MiB"}}`)
	require.NoError(t, err)
	assert.Equal(t, http.StatusInternalServerError, status)
	for _, says := range []string{`TAKEOVER is "perhaps" but must be one of never, stopped, fence, always; DEFAULT_SIZE is "-1" but must be a size`, `volume "other" was not created`} {
		assert.Contains(t, answer["Err"], says)
	}
	status, answer, err = m.call(t, "Remove", `{"Name":"db"}`)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, status, answer)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	errs := p.ends()
	for _, says := range []string{"level=error", "DEFAULT_SIZE", "level=warning", "LOG_FORMAT", "LOG_LEVEL", "CALL_TIMEOUT", "LOCAL_OVERCOMMIT"} {
		assert.Contains(t, errs, says)
	}
}

func TestTheJSONLogHasDurationsInSeconds(t *testing.T) {
	m := machine{dir: t.TempDir()}
	p := m.start(t, "LOG_FORMAT=json", "LOG_LEVEL=debug")
	_, _, err := m.call(t, "List", `{}`)
	require.NoError(t, err)
	for {
		text, err := p.out.ReadString('\n')
		require.NoError(t, err, "the call is not in the log")
		line := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(text), &line))
		if line["call"] == "List" {
			assert.Less(t, line["took_s"], 60.0)
			assert.NotContains(t, line, "took")
			break
		}
	}
}

func TestAWrongFlagIsTheAnswerToEachCall(t *testing.T) {
	for flag, says := range map[string]string{
		"--sysf=/x":            "unknown flag: --sysf: correct the command line",
		"--copy-up-probe=soon": `invalid argument "soon" for "--copy-up-probe" flag`,
		"--glance=soon":        `invalid argument "soon" for "--glance" flag`,
		"now":                  `unexpected argument "now"`,
	} {
		m := machine{t.TempDir(), []string{"", flag}}
		p := m.start(t)
		status, answer, err := m.call(t, "List", `{}`)
		require.NoError(t, err)
		assert.Equal(t, http.StatusInternalServerError, status)
		assert.Contains(t, answer["Err"], says)
		require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
		assert.Contains(t, p.ends(), "correct the command line")
	}
}

func TestAWrongSettingOfTheProviderIsTheAnswerToo(t *testing.T) {
	m := machine{dir: t.TempDir()}
	m.start(t, "PROVIDER=hetzner", "HCLOUD_TOKEN=", "HCLOUD_TOKEN_FILE=")
	_, answer, err := m.call(t, "List", `{}`)
	require.NoError(t, err)
	assert.Contains(t, answer["Err"], "HCLOUD_TOKEN")
}

// A pipe in place of a file lets its reader wait for ever, as a disk does that hangs.
func TestAStartThatHangsIsTheAnswerToEachCall(t *testing.T) {
	m := machine{dir: t.TempDir()}
	require.NoError(t, os.Mkdir(m.state(), 0o700))
	require.NoError(t, syscall.Mkfifo(filepath.Join(m.state(), "node"), 0o600))
	p := m.start(t)
	status, answer, err := m.call(t, "Capabilities", `{}`)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, status, answer)
	_, answer, err = m.call(t, "List", `{}`)
	require.NoError(t, err)
	assert.Contains(t, answer["Err"], "is not ready yet")
	_, answer, err = m.call(t, "Get", `{"Name":"db"}`)
	require.Error(t, err, "answered %v: an engine would take the volume for gone", answer)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.ends()

	require.NoError(t, os.Remove(filepath.Join(m.state(), "node")))
	m.start(t)
	status, answer, err = m.call(t, "List", `{}`)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, status, answer)
}

func TestAStateDirectoryServesOneProcessOnly(t *testing.T) {
	first, second := machine{dir: t.TempDir()}, machine{dir: t.TempDir()}
	p := first.start(t)
	p.says("Serving volumes")
	require.NoError(t, os.Symlink(first.state(), second.state()))
	second.start(t)
	_, answer, err := second.call(t, "List", `{}`)
	require.NoError(t, err)
	assert.Contains(t, answer["Err"], "another blockvol (process "+strconv.Itoa(p.cmd.Process.Pid)+") uses it")
	status, _, err := first.call(t, "List", `{}`)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, status)
}

func TestTheNodeKeepsItsID(t *testing.T) {
	dir := t.TempDir()
	id, err := nodeID(dir)
	require.NoError(t, err)
	assert.Regexp(t, `^[A-Za-z0-9._-]+-[0-9a-f]{8}$`, id)
	again, err := nodeID(dir)
	require.NoError(t, err)
	assert.Equal(t, id, again)
	other, err := nodeID(t.TempDir())
	require.NoError(t, err)
	assert.NotEqual(t, id, other)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, left, 1)
}

func TestADamagedNodeIDIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "node"), nil, 0o600))
	_, err := nodeID(dir)
	assert.ErrorContains(t, err, "is damaged")
}

func TestAStateDirectoryThatCannotBeWrittenIsExplained(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := lockState(filepath.Join(file, "state"), "/proc")
	assert.ErrorContains(t, err, "the state directory cannot be used")
}

// BenchmarkStart is the time from the start of the process to its listening.
func BenchmarkStart(b *testing.B) {
	m := machine{dir: b.TempDir()}
	for b.Loop() {
		p := m.start(b)
		require.NoError(b, p.cmd.Process.Kill())
		_ = p.cmd.Wait()
	}
}
