package providers

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	route    = regexp.MustCompile(`"(GET|POST|PUT|PATCH|DELETE) (/[^"]*)"`)
	variable = regexp.MustCompile(`\{[a-z]+\}`)
)

// A call is a label of metrics: an id in it would make a new series for each object.
func TestCallsOfEveryCloudHaveNoIDs(t *testing.T) {
	fronts, err := filepath.Glob("../test/cloud/*/front.go")
	require.NoError(t, err)
	routes := 0
	for _, front := range fronts {
		source, err := os.ReadFile(front)
		require.NoError(t, err)
		for _, m := range route.FindAllStringSubmatch(string(source), -1) {
			method, pattern := m[1], strings.TrimSuffix(m[2], "{$}")
			want := method + " " + variable.ReplaceAllString(pattern, "{id}")
			for _, id := range []string{
				"1", "123456789", "7724db7c-e098-11e5-b522-000f53304e51", "6f70656c0fd84a1e9c1d2c7c6d9f3b5a", "Db",
				"blockvol:cluster:main", "blockvol%3Acluster%3Amain", "***", "%2e", "a.b", strings.Repeat("deadbeef", 4) + "x",
			} {
				r := Request{Method: method, Path: variable.ReplaceAllString(pattern, id)}
				assert.Equal(t, want, r.Call())
			}
			routes++
		}
	}
	assert.Greater(t, routes, 60)
	assert.Equal(t, "DescribeVolumes", Request{Method: "POST", Path: "DescribeVolumes"}.Call())
	assert.Equal(t, "GET /v4beta/linode/instances", Request{Method: "GET", Path: "/v4beta/linode/instances"}.Call())
}
