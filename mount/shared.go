package mount

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Shared tells whether mounts under Config.Published appear outside this mount namespace, where containers get them from. An
// engine makes it so before it starts a plugin. But one that was killed and starts again can take that away from the plugin
// that it has just started (moby, plugin/manager_linux.go: the end of the old process is handled while the new one is made):
// then containers would find an empty directory where the volume should be.
//
// Without Config.Proc this is the namespace of the engine itself, and true. So it is when the processes that could tell are
// hidden.
func (h *Host) Shared(ctx context.Context) (bool, error) {
	if h.proc == "/proc" {
		return true, nil
	}
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return false, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	var published *mountinfo.Info
	for _, m := range own { // the later one is on top of the earlier
		if within(m.Mountpoint, h.published) && (published == nil || len(m.Mountpoint) >= len(published.Mountpoint)) {
			published = m
		}
	}
	if published == nil {
		return false, nil
	}
	peers := peersOf(published)
	if peers == "" {
		return false, nil
	}
	first, err := os.ReadFile(filepath.Join(h.proc, "1", "mountinfo"))
	if err != nil || hasPeer(first, published, peers) {
		return true, nil //nolint:nilerr // it is hidden, or is the peer
	}
	others, err := filepath.Glob(filepath.Join(h.proc, "[0-9]*", "mountinfo"))
	if err != nil {
		return false, err
	}
	for _, file := range others {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		table, err := os.ReadFile(file)
		if err == nil && hasPeer(table, published, peers) {
			return true, nil
		}
	}
	return false, nil
}

// hasPeer tells whether a mount table has a peer of a mount, one that shows the same directory. Every mount has an id of its
// own, also the copies of one in several namespaces.
func hasPeer(table []byte, m *mountinfo.Info, peers string) bool {
	if !bytes.Contains(table, []byte(" shared:"+peers+" ")) {
		return false
	}
	found, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), func(other *mountinfo.Info) (skip, stop bool) {
		is := peersOf(other) == peers && other.ID != m.ID && within(other.Root, m.Root)
		return !is, is
	})
	return err == nil && len(found) > 0
}

// peersOf returns the group of peers that a mount is in, or "".
func peersOf(m *mountinfo.Info) string {
	for field := range strings.FieldsSeq(m.Optional) {
		if group, ok := strings.CutPrefix(field, "shared:"); ok {
			return group
		}
	}
	return ""
}
