package rest

import (
	"fmt"
	"sync"

	"github.com/blockvol/blockvol/providers"
)

const (
	// pagesAtOnce is how many pages of a list are asked for at the same time.
	pagesAtOnce = 8
	// itemsAtOnce bounds the items of the pages that are asked for at the same time: while it is decoded, an item takes several times
	// the memory that it takes afterwards.
	itemsAtOnce = 400
	// readings is how often a list is read before Pages gives up.
	readings = 5
	// mostPages bounds the pages of a list if the cloud does not return the number of items.
	mostPages = 1000
)

// Pages reads a whole list of a cloud that numbers its pages. Each page shows the list at the moment of its request: if an item is
// deleted between two requests, the items after it move, and one may move to a page that has been read. So Pages reads the list
// again if the total differs between pages, if the pages do not add up to it, or if an item appears twice. One case remains: if an
// item is deleted from a page that has been read, and another is created before the next request, the list may lack one item.
//
// key identifies an item. page requests the nth page, from 1 on, and is called by several goroutines at once. It returns the number
// of items in the list, or -1 if there is no such page any more or the cloud does not return it; and whether it is the last page.
// Errors: those of page; providers.ErrBusy if the list keeps changing.
func Pages[T any, K comparable](cloud string, key func(T) K, page func(n int) (items []T, total int, last bool, err error)) ([]T, error) {
	for range readings {
		list, whole, err := read(page)
		if err != nil {
			return nil, err
		}
		if whole && distinct(list, key) {
			return list, nil
		}
	}
	return nil, fmt.Errorf("%w: the pages of a list of %s never add up to as many as it announces: what it lists may be changing all the time", providers.ErrBusy, cloud)
}

// read reads all pages once. The first page shows how many more there are. It also ends if every page is followed by another, as
// with a cloud that ignores the parameter for the page.
func read[T any](page func(n int) ([]T, int, bool, error)) (list []T, whole bool, err error) {
	list, total, last, err := page(1)
	most := len(list) // on one page
	for n := 2; err == nil && !last && most > 0 && (len(list) < total || total < 0 && n <= mostPages); {
		pages := make([]struct {
			items []T
			total int
			last  bool
			err   error
		}, max(1, min(pagesAtOnce, itemsAtOnce/most, (total-len(list)+most-1)/most)))
		var all sync.WaitGroup
		for i := range pages {
			p := &pages[i]
			all.Go(func() { p.items, p.total, p.last, p.err = page(n + i) })
		}
		all.Wait()
		for _, p := range pages {
			if p.err != nil || p.total != total || len(p.items) == 0 {
				return nil, false, p.err
			}
			list, last = append(list, p.items...), p.last
		}
		n += len(pages)
	}
	return list, len(list) == total || total < 0 && last, err
}

func distinct[T any, K comparable](list []T, key func(T) K) bool {
	seen := make(map[K]bool, len(list))
	for _, item := range list {
		seen[key(item)] = true
	}
	return len(seen) == len(list)
}
