package rest

import "github.com/blockvol/blockvol/providers/queue"

// Line is queue.Queue.
type Line = queue.Queue
