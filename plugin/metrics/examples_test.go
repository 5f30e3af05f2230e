package metrics

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

var metric = regexp.MustCompile(`\bblockvol_[a-z_]+`)

const examples = "../../examples/prometheus/"

// An alert on a metric that does not exist never comes.
func TestMetricsInTheExamplesAndTheManualExist(t *testing.T) {
	exist := families(t)
	for _, file := range []string{examples + "rules.yml", examples + "board.json", "../../docs/monitoring.md"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		names := metric.FindAllString(string(text), -1)
		require.Greater(t, len(names), 10, file)
		for _, name := range names {
			if f := exist[name]; f != nil {
				continue
			}
			family := exist[regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")]
			if assert.NotNil(t, family, "%s: %s", file, name) {
				assert.Equal(t, dto.MetricType_HISTOGRAM, family.GetType(), "%s: %s", file, name)
			}
		}
	}
}

func TestTheManualHasEveryMetricWithItsLabels(t *testing.T) {
	page, err := os.ReadFile("../../docs/monitoring.md")
	require.NoError(t, err)
	for name, family := range families(t) {
		if !strings.HasPrefix(name, "blockvol_") {
			continue
		}
		row := regexp.MustCompile("(?m)^\\| .*`" + name + "`.*$").FindString(string(page))
		require.NotEmpty(t, row, name)
		for _, label := range family.GetMetric()[0].GetLabel() {
			assert.Contains(t, row, "`"+label.GetName()+"`", name)
		}
		assert.NotEmpty(t, family.GetHelp(), name)
	}
	for _, finding := range volume.Findings() {
		assert.Contains(t, string(page), "\n| `"+string(finding)+"` |")
	}
}

func TestEveryAlertIsTested(t *testing.T) {
	rules, err := os.ReadFile(examples + "rules.yml")
	require.NoError(t, err)
	tests, err := os.ReadFile(examples + "rules_test.yml")
	require.NoError(t, err)
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	require.NotEmpty(t, alerts)
	for _, alert := range alerts {
		assert.Contains(t, string(tests), "alertname: "+alert[1]+"\n        exp_alerts:\n", "no test in which it comes")
	}
}

func TestPromtoolAcceptsTheExamplesAndTheMetrics(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	require.NoError(t, err, "scripts/setup test installs it")
	for _, check := range [][]string{{"check", "rules", "rules.yml"}, {"check", "config", "prometheus.yml"}, {"test", "rules", "rules_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, check...)
		cmd.Dir = examples
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	_, text := get(t, full(t), "/metrics")
	lint := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	lint.Stdin = strings.NewReader(text)
	out, err := lint.CombinedOutput()
	assert.NoError(t, err, "%s", out)
}
