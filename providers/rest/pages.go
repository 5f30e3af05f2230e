package rest

import (
	"fmt"

	"github.com/blockvol/blockvol/providers"
)

// Pages reads a whole list of a cloud that cuts a page out of what there is at the moment when it is asked for. What is deleted
// between two pages moves others to one that has been read, so a list that has not the same total on each page is read anew.
//
// page asks for the nth page, from 1 on, and returns how many the list has in all, or -1 if there is no such page any more, and
// whether it is the last one. Errors: those of page; providers.ErrBusy for a list that changes all the time.
func Pages[T any](cloud string, page func(n int) (items []T, total int, last bool, err error)) ([]T, error) {
	var list []T
	for n, before, tries := 1, 0, 5; tries > 0; n++ {
		items, total, last, err := page(n)
		if err != nil {
			return nil, err
		}
		if n > 1 && total != before {
			n, list, tries = 0, nil, tries-1
			continue
		}
		before = total
		list = append(list, items...)
		if len(items) == 0 || last && len(list) >= total { // a page may have less than was asked for
			return list, nil
		}
	}
	return nil, fmt.Errorf("%w: what %s lists comes and goes so fast that the list is never whole", providers.ErrBusy, cloud)
}
