// Package bubble runs tests against a simulated cloud in a bubble of testing/synctest, where time costs nothing.
package bubble

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
)

// Run runs a test in a bubble of its own. The cloud ends with it.
func Run(t *testing.T, cfg cloud.Config, test func(*testing.T, *cloud.Cloud)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := cloud.New(cfg)
		defer c.Close()
		test(t, c)
	})
}

// Until waits until a volume truly is so.
func Until(t *testing.T, c *cloud.Cloud, volume string, is func(cloud.Volume) bool) {
	t.Helper()
	for range 1000 {
		if v, _ := c.Volume(volume); is(v) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("volume %s does not come to that", volume)
}

// Attached is for Until: an instance has the volume, and nothing is under way.
func Attached(v cloud.Volume) bool {
	return v.State == cloud.InUse && len(v.Attachments) == 1 && v.Attachments[0].State == cloud.Attached
}

// Free is for Until: no instance has the volume, and nothing is under way.
func Free(v cloud.Volume) bool { return v.State == cloud.Available && len(v.Attachments) == 0 }

// Holder returns the instance that truly has the volume, "" for none.
func Holder(c *cloud.Cloud, volume string) string {
	v, _ := c.Volume(volume)
	if len(v.Attachments) == 0 {
		return ""
	}
	return v.Attachments[0].Instance
}

// Field returns what is under a path of keys in an answer of JSON, numbers as json.Number; nil if the answer is empty.
func Field(t *testing.T, answer string, keys ...string) any {
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
