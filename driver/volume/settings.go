// Package volume has the words that both halves of the driver use of a volume: its settings, its phases and its errors.
package volume

import (
	"cmp"
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// The keys of a volume's Record: what any node must know to mount it. Their values are the create options, verbatim.
const (
	KeyFormatted    = "formatted" // the file system it was formatted with; set after formatting, never unset
	KeyLayout       = "layout"    // what the container sees: mount.LayoutData or mount.LayoutRoot; never changes
	KeyFSType       = "fstype"
	KeyMkfsOptions  = "mkfs-options"
	KeyMountOptions = "mount-options"
	KeyUID          = "uid"
	KeyGID          = "gid"
	KeyMode         = "mode"
	KeyReclaim      = "reclaim"
	KeySchedule     = "snap-schedule" // NoSchedule on a copy of a volume that had one
	KeyKeep         = "snap-keep"
	KeySince        = "snap-since"  // when the schedule was given to a volume that existed, RFC 3339
	KeyFrom         = "from"        // the volume that it was made a copy of
	KeyTaken        = "taken"       // of a snapshot: why
	KeyReplacedBy   = "replaced-by" // the disk that has or gets its name
	KeyReplaces     = "replaces"    // of a disk that was made to replace another: that one
	KeyFence        = "fence"       // which node is or was powered off to take the volume from it, by which node, and when: controller/fence.go
	KeyTags         = "tags"        // a digest: the tags themselves are the cloud's, and people change them there
)

// NoSchedule is the value of KeySchedule that stands for none.
const NoSchedule = "none"

// Reclaim is what Remove does with the disk.
type Reclaim string

// The reclaim policies.
const (
	ReclaimDelete   Reclaim = "delete"
	ReclaimRetain   Reclaim = "retain"
	ReclaimSnapshot Reclaim = "snapshot"
)

// Settings are a volume's Record, decoded.
type Settings struct {
	Formatted    bool
	FSType       string // empty for a disk from elsewhere: whatever is on it
	Layout       string
	MkfsOptions  []string
	MountOptions []string
	UID, GID     *int
	Mode         *os.FileMode
	Reclaim      Reclaim
}

// SettingsOf decodes a volume's Record.
func SettingsOf(rec providers.Record) Settings {
	s := Settings{
		Formatted:   rec[KeyFormatted] != "",
		FSType:      rec[KeyFSType],
		Layout:      cmp.Or(rec[KeyLayout], mount.LayoutRoot),
		MkfsOptions: strings.Fields(rec[KeyMkfsOptions]),
		UID:         parseID(rec[KeyUID]),
		GID:         parseID(rec[KeyGID]),
		Reclaim:     Reclaim(cmp.Or(rec[KeyReclaim], string(ReclaimDelete))),
	}
	if o := rec[KeyMountOptions]; o != "" {
		s.MountOptions = strings.Split(o, ",")
	}
	if m, err := ParseMode(rec[KeyMode]); err == nil {
		s.Mode = &m
	}
	return s
}

func parseID(value string) *int {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return nil
	}
	id := int(n)
	return &id
}

// ParseMode reads an octal file mode, up to 7777.
func ParseMode(value string) (os.FileMode, error) {
	n, err := strconv.ParseUint(value, 8, 12)
	if err != nil {
		return 0, errors.New("must be an octal mode from 0 to 7777, like 0750")
	}
	mode := os.FileMode(n & 0o777)
	for bit, flag := range map[uint64]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if n&bit != 0 {
			mode |= flag
		}
	}
	return mode, nil
}
