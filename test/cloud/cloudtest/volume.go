// Package cloudtest runs tests of providers and of API simulators against a simulated cloud.
package cloudtest

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

// Run runs a test under synctest.Test and closes the cloud afterwards.
func Run(t *testing.T, cfg cloud.Config, test func(*testing.T, *cloud.Cloud)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := cloud.New(cfg)
		defer c.Close()
		test(t, c)
	})
}

// WaitFor waits until the volume meets the condition. It looks at the true state, not at what reads return.
func WaitFor(t *testing.T, c *cloud.Cloud, volume string, condition func(cloud.Volume) bool) {
	t.Helper()
	for range 1000 {
		if v, _ := c.Volume(volume); condition(v) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("volume %s did not meet the condition in time", volume)
}

// Attached is a condition for WaitFor: one instance holds the volume and no operation is pending.
func Attached(v cloud.Volume) bool {
	return v.State == cloud.InUse && len(v.Attachments) == 1 && v.Attachments[0].State == cloud.Attached
}

// Detached is a condition for WaitFor: no instance holds the volume and no operation is pending.
func Detached(v cloud.Volume) bool { return v.State == cloud.Available && len(v.Attachments) == 0 }

// Holder returns the instance that truly holds the volume, or "".
func Holder(c *cloud.Cloud, volume string) string {
	v, _ := c.Volume(volume)
	if len(v.Attachments) == 0 {
		return ""
	}
	return v.Attachments[0].Instance
}

// JSONField returns the value at a path of keys in a JSON document, numbers as json.Number. It is nil if the document is empty.
func JSONField(t *testing.T, answer string, keys ...string) any {
	t.Helper()
	if answer == "" {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(answer))
	d.UseNumber()
	var value any
	require.NoError(t, d.Decode(&value), answer)
	require.False(t, d.More(), answer)
	for _, key := range keys {
		value = value.(map[string]any)[key]
	}
	return value
}
