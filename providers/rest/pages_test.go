package rest

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

// paged serves a list in pages of two, after what happens to it between two pages.
func paged(list *[]int, between func(n int)) func(n int) ([]int, int, bool, error) {
	return func(n int) ([]int, int, bool, error) {
		between(n)
		from, to := min(2*(n-1), len(*list)), min(2*n, len(*list))
		if n > 1 && from == to {
			return nil, -1, false, nil
		}
		return (*list)[from:to], len(*list), to == len(*list), nil
	}
}

func TestAListIsWhole(t *testing.T) {
	for _, want := range [][]int{nil, {1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4, 5}} {
		all, err := Pages("X", paged(&want, func(int) {}))
		require.NoError(t, err)
		assert.Equal(t, want, all)
	}

	list, deletions := []int{1, 2, 3, 4, 5}, 0
	all, err := Pages("X", paged(&list, func(n int) {
		if n == 2 && deletions < 4 {
			deletions++
			list = list[1:]
		}
	}))
	require.NoError(t, err)
	assert.Equal(t, []int{4, 5}, all)
}

func TestAListThatIsNeverWholeIsBusy(t *testing.T) {
	list := []int{1, 2, 3}
	_, err := Pages("X", paged(&list, func(n int) {
		if n == 2 {
			list = append(list, 4)
		}
	}))
	require.ErrorIs(t, err, providers.ErrBusy)

	away := errors.New("away")
	_, err = Pages("X", func(n int) ([]int, int, bool, error) {
		if n == 2 {
			return nil, 0, false, away
		}
		return []int{1}, 2, false, nil
	})
	require.ErrorIs(t, err, away)
}
