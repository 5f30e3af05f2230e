package rest

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func TestASettingMustBeTheURLOfAService(t *testing.T) {
	for _, good := range []string{"https://api.example.com", "http://169.254.169.254/v1"} {
		require.NoError(t, CheckURLs(map[string]string{"NIMBUS_URL": good}))
	}
	for _, bad := range []string{"", "api.example.com", "ftp://api.example.com", "https://", "https://user:hidden@api.example.com", "https://api.example.com/?key=hidden", "https://[hidden"} {
		err := CheckURLs(map[string]string{"NIMBUS_URL": bad, "NIMBUS_METADATA_URL": "http://169.254.169.254"})
		require.ErrorIs(t, err, providers.ErrInvalid, bad)
		require.ErrorContains(t, err, "NIMBUS_URL must be a URL")
		assert.NotContains(t, err.Error(), "hidden")
	}
}
