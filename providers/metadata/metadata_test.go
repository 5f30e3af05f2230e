package metadata

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// answering is a metadata service that gives one answer after another.
type answering struct {
	statuses []int
	body     string
	asked    []http.Header
}

func (a *answering) RoundTrip(r *http.Request) (*http.Response, error) {
	status := a.statuses[min(len(a.asked), len(a.statuses)-1)]
	a.asked = append(a.asked, r.Header)
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(a.body))}, nil
}

func TestWhatTheMetadataServiceAnswersIsBelievedIfItIsADocument(t *testing.T) {
	for name, c := range map[string]struct {
		answers answering
		asked   int
		says    string // empty: the document
	}{
		"a document":                 {answering{[]int{200}, " i-1\n", nil}, 1, ""},
		"too many requests at first": {answering{[]int{429, 200}, "i-1", nil}, 2, ""},
		"an outage at first":         {answering{[]int{500, 503, 200}, "i-1", nil}, 3, ""},
		"an outage":                  {answering{[]int{500}, "i-1", nil}, attempts, "it answers with status 500"},
		"a refusal":                  {answering{[]int{404}, "i-1", nil}, 1, "it answers with status 404"},
		"nothing":                    {answering{[]int{200}, " \n", nil}, attempts, "its answer is empty"},
		"the longest document":       {answering{[]int{200}, "i-1" + strings.Repeat(" ", maxDocument-3), nil}, 1, ""},
		"too long a document":        {answering{[]int{200}, "i-1" + strings.Repeat(" ", maxDocument-2), nil}, 1, errTooLong.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := Service{Cloud: "Nimbus", Client: &http.Client{Transport: &c.answers}}
				document, err := m.Get(t.Context(), "http://169.254.169.254/id", http.Header{"X-Token": {"t"}})
				assert.Len(t, c.answers.asked, c.asked)
				for _, header := range c.answers.asked {
					assert.Equal(t, "t", header.Get("X-Token"))
				}
				if c.says == "" {
					require.NoError(t, err)
					assert.Equal(t, "i-1", string(document))
					return
				}
				require.ErrorIs(t, err, providers.ErrUnavailable)
				require.ErrorContains(t, err, c.says)
				assert.NotContains(t, err.Error(), "be set", "there is no such setting")
			})
		})
	}
}

func TestARequestThatCannotBeMadeIsNotSent(t *testing.T) {
	service := &answering{statuses: []int{200}, body: "i-1"}
	_, err := Service{Cloud: "Nimbus", Client: &http.Client{Transport: service}}.Get(t.Context(), "http://%zz", nil)
	require.ErrorIs(t, err, providers.ErrUnavailable)
	assert.Empty(t, service.asked)
}
