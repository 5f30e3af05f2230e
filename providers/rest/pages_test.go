package rest

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func itself(n int) int { return n }

// paged serves a list in pages of two, after what happens to it between two pages.
func paged(list *[]int, between func(n int)) func(n int) ([]int, int, bool, error) {
	var mu sync.Mutex
	return func(n int) ([]int, int, bool, error) {
		mu.Lock()
		defer mu.Unlock()
		between(n)
		from, to := min(2*(n-1), len(*list)), min(2*n, len(*list))
		if n > 1 && from == to {
			return nil, -1, false, nil
		}
		return (*list)[from:to], len(*list), to == len(*list), nil
	}
}

func TestPagesReturnsTheWholeList(t *testing.T) {
	for _, want := range [][]int{nil, {1}, {1, 2}, {1, 2, 3}, {1, 2, 3, 4, 5}} {
		all, err := Pages("X", itself, paged(&want, func(int) {}))
		require.NoError(t, err)
		assert.Equal(t, want, all)
	}

	list, deletions := []int{1, 2, 3, 4, 5}, 0
	all, err := Pages("X", itself, paged(&list, func(n int) {
		if n == 2 && deletions < 4 {
			deletions++
			list = list[1:]
		}
	}))
	require.NoError(t, err)
	assert.Equal(t, []int{4, 5}, all)
}

func TestAListWhosePagesDoNotAddUpIsAnError(t *testing.T) {
	for name, pages := range map[string][][]int{
		"an empty page":             {{}},
		"an empty page at the end":  {{1, 2}, {3, 4}, {}},
		"a last page that is short": {{1, 2}, {3}},
		"more than there are":       {{1, 2}, {3, 4}, {5, 6}},
	} {
		asked := 0
		_, err := Pages("X", itself, func(n int) ([]int, int, bool, error) {
			if n == 1 {
				asked++
			}
			if n > len(pages) {
				return nil, 5, true, nil
			}
			return pages[n-1], 5, n == len(pages), nil
		})
		require.ErrorIs(t, err, providers.ErrBusy, name)
		assert.Equal(t, readings, asked, name)
	}
	for name, last := range map[string]bool{"the cloud does not tell how many there are": true, "nor that it is the last page": false} {
		list, err := Pages("X", itself, func(n int) ([]int, int, bool, error) {
			if n > 3 {
				return nil, -1, false, nil
			}
			return []int{n}, -1, last && n == 3, nil
		})
		if last {
			require.NoError(t, err, name)
			assert.Equal(t, []int{1, 2, 3}, list)
		} else {
			require.ErrorIs(t, err, providers.ErrBusy, name)
		}
	}
}

func TestSeveralPagesAreRequestedAtOnce(t *testing.T) {
	var list []int
	for i := range 100 {
		list = append(list, i)
	}
	var mu sync.Mutex
	serve, under, most, asked := paged(&list, func(int) {}), 0, 0, 0
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		all, err := Pages("X", itself, func(n int) ([]int, int, bool, error) {
			mu.Lock()
			asked++
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			under--
			mu.Unlock()
			return serve(n)
		})
		require.NoError(t, err)
		assert.Equal(t, list, all)
		assert.Equal(t, 8*time.Second, time.Since(begin), "50 pages: one, and then 8 at a time")
	})
	assert.Equal(t, 50, asked)
	assert.Equal(t, pagesAtOnce, most)
}

func TestAListThatKeepsChangingIsBusy(t *testing.T) {
	list := []int{1, 2, 3}
	_, err := Pages("X", itself, paged(&list, func(n int) {
		if n == 2 {
			list = append(list, 4)
		}
	}))
	require.ErrorIs(t, err, providers.ErrBusy)

	away := errors.New("away")
	_, err = Pages("X", itself, func(n int) ([]int, int, bool, error) {
		if n == 2 {
			return nil, 0, false, away
		}
		return []int{1}, 2, false, nil
	})
	require.ErrorIs(t, err, away)

	_, err = Pages("X", itself, func(int) ([]int, int, bool, error) { return nil, 0, false, away })
	require.ErrorIs(t, err, away, "a list whose first page does not come is not empty")
	n := 0
	_, err = Pages("X", itself, func(int) ([]int, int, bool, error) { n++; return []int{n}, -1, false, nil })
	require.ErrorIs(t, err, providers.ErrBusy, "as many pages as are read, and no end")
}

// As of a cloud that does not know the parameter by which pages are asked for.
func TestAListThatNeverEndsIsGivenUp(t *testing.T) {
	for _, total := range []int{3, -1} {
		asked := 0
		_, err := Pages("X", itself, func(int) ([]int, int, bool, error) {
			if asked++; asked > 2*readings*mostPages {
				return nil, 0, false, errors.New("asked for ever")
			}
			return []int{1, 2}, total, false, nil
		})
		require.ErrorIs(t, err, providers.ErrBusy, total)
	}
}

// The total is the same when one is deleted and another made.
func TestAListThatShowsAnItemTwiceIsReadAgain(t *testing.T) {
	readings := [][][]int{{{1, 2}, {4, 5}, {5, 6}}, {{2, 3}, {4, 5}, {6, 7}}} // 1 is deleted after the first page, 7 made before the last
	reading := -1
	all, err := Pages("X", itself, func(n int) ([]int, int, bool, error) {
		if n == 1 {
			reading++
		}
		return readings[reading][n-1], 6, n == 3, nil
	})
	require.NoError(t, err)
	assert.Equal(t, []int{2, 3, 4, 5, 6, 7}, all)
}

func TestFewerLargePagesAreRequestedAtOnce(t *testing.T) {
	const large, pages = itemsAtOnce / 2, 9
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		under, most := 0, 0
		all, err := Pages("X", itself, func(n int) ([]int, int, bool, error) {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			under--
			mu.Unlock()
			items := make([]int, large)
			for i := range items {
				items[i] = n*large + i
			}
			return items, large * pages, n == pages, nil
		})
		require.NoError(t, err)
		assert.Len(t, all, large*pages)
		assert.Equal(t, 2, most)
	})
}
