package rest

import (
	"fmt"
	"sync"

	"github.com/blockvol/blockvol/providers"
)

const (
	// pagesAtOnce is how many pages of a list are asked for at the same time.
	pagesAtOnce = 8
	// itemsAtOnce is how many items are asked for at the same time, if a page has fewer: while it is read, an item takes several
	// times the memory that it takes afterwards.
	itemsAtOnce = 400
	// readings is how often a list is read until it is whole.
	readings = 5
	// mostPages is how many pages a list may have if the cloud does not tell how many items there are.
	mostPages = 1000
)

// Pages reads a whole list of a cloud that cuts a page out of what there is at the moment when it is asked for. What is deleted
// between two pages moves others to one that has been read. So a list that does not have the same total on each page, or whose
// pages do not add up to it, or show an item twice, is read anew. What remains is that an item is deleted from a page that has been
// read, and another made, before the next page is read: then the list may lack one item.
//
// key tells items apart. page asks for the nth page, from 1 on, and is called by several goroutines at once. It returns how many the list has in all, or
// -1 if there is no such page any more, or the cloud does not tell; and whether it is the last page.
// Errors: those of page; providers.ErrBusy for a list that is never whole.
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

// read reads all pages once. The first tells how many more there are. It ends also if the cloud has another page after each, as
// one does that does not know the parameter by which pages are asked for.
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
