package main

import (
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver"
)

func env(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func TestEverySettingHasItsDefaultInTheProgram(t *testing.T) {
	want := settings{
		provider: "local", cluster: "default", takeover: driver.TakeoverStopped, defaultSize: 10 << 30, defaultFSType: "ext4",
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
		provider: "local", cluster: "blue", takeover: driver.TakeoverAlways, defaultSize: 500 << 20, defaultFSType: "xfs",
		callTimeout: 50 * time.Second, logLevel: logrus.WarnLevel, logJSON: true,
	}, s)
}

func TestAWrongSettingNamesWhatIsAllowed(t *testing.T) {
	for name, c := range map[string]struct{ value, says string }{
		"PROVIDER":       {"abacus", "one of aws, digitalocean, hetzner, linode, local, openstack"},
		"CLUSTER":        {"two words", "letters, digits"},
		"TAKEOVER":       {"Always", "one of never, stopped, always"},
		"DEFAULT_SIZE":   {"much", "like 10, or with a unit"},
		"DEFAULT_FSTYPE": {"ntfs", "one of btrfs, ext4, xfs"},
		"CALL_TIMEOUT":   {"2m", "from 1s to 55s"},
		"LOG_LEVEL":      {"loud", "one of error, warning, info, debug"},
		"LOG_FORMAT":     {"xml", "one of text, json"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := readSettings(env(map[string]string{name: c.value}))
			require.ErrorContains(t, err, name+` is "`+c.value+`" but must be`)
			require.ErrorContains(t, err, c.says)
			assert.NotZero(t, s.callTimeout)
			assert.Equal(t, logrus.InfoLevel, s.logLevel)
		})
	}
}

func TestAllWrongSettingsAreToldAtOnceOnOneLine(t *testing.T) {
	_, err := readSettings(env(map[string]string{"TAKEOVER": "x", "LOG_LEVEL": "y", "DEFAULT_SIZE": "z"}))
	require.Error(t, err)
	for _, name := range []string{"TAKEOVER", "LOG_LEVEL", "DEFAULT_SIZE"} {
		require.ErrorContains(t, err, name)
	}
	assert.NotContains(t, err.Error(), "\n")
}
