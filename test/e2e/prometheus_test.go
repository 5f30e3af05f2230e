package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/engine"
)

// prometheus is a Prometheus on an engine's machine, with the configuration of examples/.
type prometheus struct {
	*http.Client
	t *testing.T
}

// startPrometheus starts one that reads the metrics of the Swarm of this one engine.
func startPrometheus(t *testing.T, s *server) *prometheus {
	t.Helper()
	const examples = "../../examples/prometheus/"
	dir := t.TempDir()
	config, err := os.ReadFile(examples + "prometheus.yml")
	require.NoError(t, err)
	changed := strings.NewReplacer("scrape_interval: 30s", "scrape_interval: 1s\n  evaluation_interval: 1s", "unix:///var/run/docker.sock", s.Host()).Replace(string(config))
	require.Contains(t, changed, s.Host())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(changed), 0o600))
	rules, err := os.ReadFile(examples + "rules.yml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "rules.yml"), rules, 0o600))

	s.Docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
	const address = "127.0.0.1:9090"
	s.Spawn("prometheus", "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+address)
	dial := func(context.Context, string, string) (net.Conn, error) { return s.Dial(address) }
	return &prometheus{&http.Client{Transport: &http.Transport{DialContext: dial}}, t}
}

// get asks the HTTP API and decodes what it answers as data.
func (p *prometheus) get(data any, path string, query ...string) error {
	values := make(url.Values)
	for i := 0; i < len(query); i += 2 {
		values.Set(query[i], query[i+1])
	}
	r, err := p.Get("http://prometheus/api/v1/" + path + "?" + values.Encode())
	if err != nil {
		return err
	}
	defer func() { _ = r.Body.Close() }()
	answer := struct {
		Error string
		Data  any
	}{Data: data}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// board is the board of examples/, as far as it matters here.
type board struct{ Panels []panel }

type panel struct {
	Title, Type string
	GridPos     struct{ H, W, X, Y int }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct{ Expr, LegendFormat string }

	series []series // of all targets
}

// series are the values of one line of a panel, each at its time in seconds.
type series struct {
	name   string
	values [][2]float64
}

// ask fills a panel with what there was since that time. Errors: a query that has no data.
func (p *prometheus) ask(panel *panel, since time.Time) error {
	panel.series = nil
	for _, target := range panel.Targets {
		expr := strings.NewReplacer("$__rate_interval", "10s", "$instance", ".*").Replace(target.Expr)
		var found struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any
			}
		}
		if err := p.get(&found, "query_range", "query", expr, "start", since.Format(time.RFC3339), "end", time.Now().Format(time.RFC3339), "step", "2"); err != nil {
			return fmt.Errorf("%s: %s: %w", panel.Title, expr, err)
		}
		has := false
		for _, r := range found.Result {
			line := series{name: label.ReplaceAllStringFunc(target.LegendFormat, func(name string) string { return r.Metric[strings.Trim(name, "{}")] })}
			for _, v := range r.Values {
				value, err := strconv.ParseFloat(v[1].(string), 64)
				if err == nil && !math.IsNaN(value) {
					line.values = append(line.values, [2]float64{v[0].(float64), value})
					has = true
				}
			}
			panel.series = append(panel.series, line)
		}
		if !has {
			return fmt.Errorf("%s: %s: no data", panel.Title, expr)
		}
	}
	return nil
}

var label = regexp.MustCompile(`{{\w+}}`)

var pictures = flag.String("e2e.pictures", "", "a directory into which the board is drawn")

func TestPrometheusShowsWhatTheBoardAsksFor(t *testing.T) {
	if testing.Short() {
		t.Skip("only in full runs")
	}
	t.Parallel()
	var b board
	text, err := os.ReadFile("../../examples/prometheus/board.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &b))
	require.NotEmpty(t, b.Panels)

	a := openAccount(t, fronts.EC2(nil))
	here, there := a.launch(t, "METRICS_ADDRESS=127.0.0.1:9642"), a.launch(t)
	here.Run("hostname", "node-1")
	p, begun := startPrometheus(t, here), time.Now()
	// Of the first alone snapshots are taken: an engine that is powered off while a file system is frozen does not end.
	create(here.Engine, "shop", "size=10GiB", "snapshot-schedule=* * * * *", "snapshot-keep=2")
	for _, name := range []string{"ledger", "inherited", "archive"} {
		create(here.Engine, name, "size=10GiB")
	}
	startWriter(t, here.Engine, "shop")
	startWriter(t, there.Engine, "inherited")
	_, err = here.Try("run", "--rm", "--volume", "inherited:/data", "busybox", "true")
	require.Error(t, err)
	there.PowerOff()
	a.Stop(there.id)
	once(here.Engine, "inherited", "true")
	if *pictures != "" {
		for i := range 12 {
			once(here.Engine, "ledger", "dd if=/dev/urandom bs=1M count=40 >>/data/file; sleep 2")
			if i == 6 {
				a.Inject(cloud.Rule{Fault: cloud.Throttle, Times: 3})
			}
		}
	}
	a.Inject(cloud.Rule{Fault: cloud.Throttle, Times: 3})
	heal := a.Inject(cloud.Rule{Action: "DetachVolume", Fault: cloud.Fail})
	once(here.Engine, "archive", "true")

	here.Eventually("each query of the board has data", func() error {
		for i := range b.Panels {
			if err := p.ask(&b.Panels[i], begun); err != nil {
				return err
			}
		}
		return nil
	})
	var alerts struct {
		Alerts []struct{ Labels struct{ Alertname string } }
	}
	here.Eventually("there is an alert", func() error {
		err := p.get(&alerts, "alerts")
		if err == nil && len(alerts.Alerts) == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	assert.Equal(t, "BlockvolTakeover", alerts.Alerts[0].Labels.Alertname)
	heal()
	if *pictures != "" {
		require.NoError(t, os.WriteFile(filepath.Join(*pictures, "board.svg"), b.draw(), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(*pictures, "terminal.svg"), terminal(session(t, a.launch(t).Engine)), 0o644))
	}
	here.Docker("rm", "--force", "writer")
	here.eventuallyReleased()
}

// session is what an operator types and sees, beside a volume that is in use.
func session(t *testing.T, e *engine.Engine) string {
	t.Helper()
	var seen strings.Builder
	docker := func(args ...string) {
		fmt.Fprintf(&seen, "$ docker %s\n%.12s\n\n", strings.Join(args, " "), e.Docker(args...))
	}
	blockvol := func(args ...string) {
		fmt.Fprintf(&seen, "$ blockvol %s\n%s\n", strings.Join(args, " "), operate(t, e, 0, args...))
	}
	docker("volume", "create", "--driver", "blockvol", "--opt", "size=20GiB", "--opt", "fstype=xfs", "wiki")
	docker("run", "--detach", "--name", "wiki", "--volume", "wiki:/data", "busybox", "sleep", "1000000")
	blockvol("ls")
	blockvol("resize", "wiki", "40GiB", "--yes")
	blockvol("snapshot", "create", "wiki")
	blockvol("status")
	blockvol("events", "wiki")
	e.Docker("rm", "--force", "wiki")
	return strings.TrimSpace(seen.String())
}
