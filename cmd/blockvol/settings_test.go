package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/controller"
)

func env(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func TestEverySettingHasItsDefaultInTheProgram(t *testing.T) {
	want := settings{
		provider: "local", cluster: "default", takeover: controller.TakeoverStopped, defaultSize: 10 << 30, defaultFSType: "ext4",
		callTimeout: 25 * time.Second, logLevel: logrus.InfoLevel,
	}
	s, err := readSettings(env(nil))
	require.NoError(t, err)
	assert.Equal(t, want, s)
}

func TestSettingsAreReadAsGiven(t *testing.T) {
	s, err := readSettings(env(map[string]string{
		"CLUSTER": " blue ", "TAKEOVER": "always", "DEFAULT_SIZE": "500MiB", "DEFAULT_FSTYPE": "xfs", "CALL_TIMEOUT": "50s",
		"LOG_LEVEL": "warning", "LOG_FORMAT": "json",
	}))
	require.NoError(t, err)
	assert.Equal(t, settings{
		provider: "local", cluster: "blue", takeover: controller.TakeoverAlways, defaultSize: 500 << 20, defaultFSType: "xfs",
		callTimeout: 50 * time.Second, logLevel: logrus.WarnLevel, logJSON: true,
	}, s)
}

// problem is what is said of wrong settings, to whomever.
func problem(s settings, err error) string {
	return fmt.Sprint(err, s.noCreate, s.warnings)
}

func TestAWrongSettingNamesWhatIsAllowed(t *testing.T) {
	for name, c := range map[string]struct{ value, says string }{
		"PROVIDER":        {"abacus", "one of aws, digitalocean, hetzner, linode, local, openstack"},
		"CLUSTER":         {"two words", "letters, digits"},
		"TAKEOVER":        {"Always", "one of never, stopped, fence, always"},
		"DEFAULT_SIZE":    {"much", "like 10, or with a unit"},
		"DEFAULT_FSTYPE":  {"ntfs", "one of btrfs, ext4, xfs"},
		"CALL_TIMEOUT":    {"2m", "from 1s to 55s"},
		"LOG_LEVEL":       {"loud", "one of error, warning, info, debug"},
		"LOG_FORMAT":      {"xml", "one of text, json"},
		"METRICS_ADDRESS": {"9642", "host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := readSettings(env(map[string]string{name: c.value}))
			said := problem(s, err)
			require.Contains(t, said, name+` is "`+c.value+`" but must be`)
			require.Contains(t, said, c.says)
			assert.Equal(t, 25*time.Second, s.callTimeout)
			assert.Equal(t, logrus.InfoLevel, s.logLevel)
			assert.False(t, s.logJSON)
		})
	}
}

func TestATypingErrorTakesNoVolumesAway(t *testing.T) {
	for _, c := range []struct {
		setting, value      string
		noVolumes, noCreate bool
	}{
		{"PROVIDER", "abacus", true, false},
		{"CLUSTER", "two words", true, false},
		{"TAKEOVER", "stoped", false, true},
		{"DEFAULT_SIZE", "-1", false, true},
		{"DEFAULT_FSTYPE", "ntfs", false, true},
		{"CALL_TIMEOUT", "2m", false, false},
		{"LOG_LEVEL", "verbose", false, false},
		{"LOG_FORMAT", "xml", false, false},
		{"METRICS_ADDRESS", "9642", false, false},
	} {
		s, err := readSettings(env(map[string]string{c.setting: c.value}))
		assert.Equal(t, c.noVolumes, err != nil, c.setting)
		assert.Equal(t, c.noCreate, s.noCreate != nil, c.setting)
		assert.Equal(t, !c.noVolumes && !c.noCreate, s.warnings != nil, c.setting)
	}
}

func TestAPolicyThatIsNotUnderstoodTakesNothingFromAnyNode(t *testing.T) {
	for value, policy := range map[string]controller.Takeover{"": "stopped", " ": "stopped", "nevr": "never", "Always": "never", "stoped": "never"} {
		s, _ := readSettings(env(map[string]string{"TAKEOVER": value}))
		assert.Equal(t, policy, s.takeover, "%q", value)
	}
}

func TestAllWrongSettingsAreToldAtOnceOnOneLine(t *testing.T) {
	s, err := readSettings(env(map[string]string{"TAKEOVER": "x", "LOG_LEVEL": "y", "DEFAULT_SIZE": "z", "PROVIDER": "a", "CLUSTER": "-"}))
	for _, name := range []string{"TAKEOVER", "DEFAULT_SIZE"} {
		require.ErrorContains(t, s.noCreate, name)
	}
	for _, name := range []string{"PROVIDER", "CLUSTER"} {
		require.ErrorContains(t, err, name)
	}
	assert.NotContains(t, problem(s, err), "\n")
}
