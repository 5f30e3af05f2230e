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
// engine takes care of that before it starts a plugin. But an engine that was killed and starts again can undo it for the plugin that
// it has just started (moby, plugin/manager_linux.go: it handles the exit of the old process while it starts the new one). Then
// containers would find an empty directory instead of the volume.
//
// If Config.Proc is /proc, this process runs in the engine's own namespace, and the result is true. It is also true if the processes
// that could have the mounts are hidden.
func (h *Host) Shared(ctx context.Context) (bool, error) {
	if h.proc == "/proc" {
		return true, nil
	}
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return false, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	published := mountAround(own, h.published)
	if published == nil {
		return false, nil
	}
	peers := peersOf(published)
	if peers == "" {
		return false, nil
	}
	first, err := os.ReadFile(filepath.Join(h.proc, "1", "mountinfo"))
	if err != nil || hasPeer(first, published, peers) {
		return true, nil //nolint:nilerr // it is hidden, or has a peer
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

// hasPeer tells whether a mount table has another mount of the same peer group that shows the same directory. Copies of a mount in
// other namespaces have IDs of their own.
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

// peersOf returns the peer group of a mount, or "".
func peersOf(m *mountinfo.Info) string {
	for field := range strings.FieldsSeq(m.Optional) {
		if group, ok := strings.CutPrefix(field, "shared:"); ok {
			return group
		}
	}
	return ""
}
