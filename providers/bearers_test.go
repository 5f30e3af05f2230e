package providers

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestANameIsOneVolumesOrNobodys(t *testing.T) {
	b := Bearers[string]{Cloud: "X", Cluster: "main", Show: func(id string) string { return "disk " + id }, Take: "the label"}
	one, err := b.One("db", []string{"1"})
	require.NoError(t, err)
	assert.Equal(t, "1", one)
	_, err = b.One("db", nil)
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorContains(t, err, `X has none named "db" in cluster "main"`)
	_, err = b.One("db", []string{"2", "1"})
	require.ErrorIs(t, err, ErrAmbiguous)
	require.ErrorContains(t, err, `"db" is the name of disk 1 and disk 2: find out which holds the data, and take the label from the others`)

	before, damaged := errors.New("not readable"), errors.New("damaged")
	list, err := b.List(map[string][]string{"db": {"1"}, "two": {"2", "3"}, "bad": {"4"}, "app": {"5"}}, func(id string) (*Volume, error) {
		if id == "4" {
			return nil, damaged
		}
		return &Volume{ID: id}, nil
	}, before)
	for _, problem := range []error{before, damaged, ErrAmbiguous} {
		require.ErrorIs(t, err, problem)
	}
	assert.Equal(t, []*Volume{{ID: "5"}, {ID: "1"}}, list)

	list, err = b.List(nil, nil)
	require.NoError(t, err)
	assert.Empty(t, list)
}
