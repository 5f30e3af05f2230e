package driver

import (
	"errors"
	"time"
)

// Info is what Docker is told of a volume.
type Info struct {
	Name       string
	Mountpoint string         // empty unless mounted on this node
	CreatedAt  time.Time      // zero if unknown
	Status     map[string]any // effective values, for people
}

// The answers of Get that Docker's protocol tells apart.
var (
	// ErrNotFound: the cloud itself says that there is no volume of this name.
	ErrNotFound = errors.New("no such volume")
	// ErrUnsure: whether the volume exists cannot be told now. An engine must not read this as "it does not exist".
	ErrUnsure = errors.New("cannot tell whether the volume exists")
)
