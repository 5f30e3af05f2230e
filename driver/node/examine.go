package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// The least free space of the state directory, in bytes: an entry of the journal has less than a KiB, and is written as a new file.
const (
	littleState = 64 << 20
	leastState  = 1 << 20
)

// ExamineDirs checks the directories of this node: whether they are there, closed to all but root, and can be written. It changes
// nothing.
func ExamineDirs(state, published string) (found []providers.Finding) {
	for _, dir := range []string{state, published} {
		found = append(found, examineDir(dir)...)
	}
	if len(found) > 0 {
		return found
	}
	var st unix.Statfs_t
	if err := unix.Statfs(state, &st); err == nil {
		free := int64(st.Bavail) * st.Bsize
		low := providers.Finding{
			Severity: providers.Warning, Check: "directories", Code: "state-space-low",
			Message: fmt.Sprintf("the file system of the state directory %s has %s left: when it is full, nothing can be mounted", state, volume.FormatSize(free&^(1<<20-1))),
			Remedy:  "make room in it",
		}
		switch {
		case free < leastState, st.Files > 0 && st.Ffree == 0:
			low.Severity, low.Code = providers.Problem, "state-full"
			low.Message = fmt.Sprintf("the file system of the state directory %s is full: nothing can be mounted", state)
			return append(found, low)
		case free < littleState:
			return append(found, low)
		}
	}
	return append(found, providers.Passed("directories", "the state directory and the published directory are root's alone, and can be written"))
}

func examineDir(dir string) []providers.Finding {
	problem := func(code, message, remedy string) []providers.Finding {
		return []providers.Finding{{Severity: providers.Problem, Check: "directories", Code: code, Message: message, Remedy: remedy}}
	}
	info, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return problem("directory-missing", fmt.Sprintf("the directory %s is missing", dir), "create it on the host (mkdir -p -m 700), and restart blockvol")
	case err != nil:
		return problem("directory-unusable", fmt.Sprintf("a directory cannot be examined: %v", err), "look for errors of its disk in the kernel's log (dmesg)")
	case !info.IsDir():
		return problem("directory-unusable", fmt.Sprintf("%s is no directory", dir), "make it one, and restart blockvol")
	}
	if owner, is := info.Sys().(*syscall.Stat_t); is && owner.Uid != 0 {
		return problem("directory-open", fmt.Sprintf("the directory %s belongs to user %d: whoever gets in could use set-uid programs of containers, or change the journal", dir, owner.Uid), "chown root:root "+dir+" and chmod 700 "+dir)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return problem("directory-open", fmt.Sprintf("the directory %s is open to others than root (mode %04o): whoever gets in could use set-uid programs of containers, or change the journal", dir, info.Mode().Perm()), "chmod 700 "+dir)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return problem("directory-read-only", fmt.Sprintf("the directory %s cannot be written: %v", dir, err), "look for errors of its disk in the kernel's log (dmesg), and mount its file system for writing again")
	}
	return nil
}

// ExamineJournal checks the journal in a directory, where there is no Node. It changes nothing.
func ExamineJournal(dir string) []providers.Finding {
	boot, err := host.BootID()
	if err != nil {
		return nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil // this node has never served volumes
	}
	return journalDir(dir).Examine(boot)
}

// Examine implements Journal.
func (dir journalDir) Examine(boot string) (found []providers.Finding) {
	files, err := os.ReadDir(string(dir))
	if err != nil {
		return []providers.Finding{{
			Severity: providers.Problem, Check: "journal", Code: "journal-unreadable", Message: fmt.Sprintf("the journal cannot be read: %v", err),
			Remedy: "look for errors of the state directory's disk in the kernel's log (dmesg)",
		}}
	}
	entries := 0
	for _, f := range files {
		path := filepath.Join(string(dir), f.Name())
		if !strings.HasSuffix(f.Name(), entrySuffix) {
			if strings.Contains(f.Name(), entrySuffix+damagedSuffix) {
				found = append(found, setAsideAs(path))
			}
			continue
		}
		e, err := readEntry(path)
		switch {
		case err == nil && e.Boot != boot:
			found = append(found, providers.Finding{
				Severity: providers.Warning, Check: "journal", Code: "journal-old", Volume: e.Name,
				Message: "the journal has the volume from an earlier boot of the machine, and blockvol has not settled since whether this node still holds its disk",
				Remedy:  "let blockvol serve volumes on this node: it releases such disks by itself",
			})
		case err == nil:
			entries++
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case errors.Is(err, errNewer):
			found = append(found, finding(providers.Problem, "journal", "journal-newer", e.Name, err))
		default:
			found = append(found, providers.Finding{
				Severity: providers.Problem, Check: "journal", Code: "journal-damaged", Message: fmt.Sprintf("the journal entry %s is damaged: %v", path, err),
				Remedy: "restart blockvol: it sets the entry aside, and finds out from the kernel whether the volume is used",
			})
		}
	}
	if len(found) == 0 {
		return []providers.Finding{providers.Passed("journal", fmt.Sprintf("the journal is whole, entries: %d", entries))}
	}
	return found
}

// setAsideAs is the finding for a damaged journal entry that was set aside at an earlier start.
func setAsideAs(path string) providers.Finding {
	return providers.Finding{
		Severity: providers.Warning, Check: "journal", Code: "journal-set-aside", Message: fmt.Sprintf("a damaged journal entry was set aside as %s: uses of its volume may be unknown", path),
		Remedy: "see with blockvol status whether its volume is as it should be, and remove the file",
	}
}

// finding is one whose cause and remedy are in an error.
func finding(severity providers.Severity, check, code, name string, err error) providers.Finding {
	f := providers.Finding{Severity: severity, Check: check, Code: code, Volume: name, Message: err.Error()}
	if e, is := errors.AsType[*volume.Error](err); is {
		f.Message, f.Remedy = e.Cause.Error(), e.Advice
	}
	return f
}

// Examine checks the journal and what this node shows to containers. It changes nothing. known are the directories of the volumes that
// are in the journal.
func (n *Node) Examine(ctx context.Context, known map[string]bool) []providers.Finding {
	return append(n.journal.Examine(n.boot), n.examineMounts(ctx, known)...)
}

// Mounted returns the directories, see DirOf, at which this node shows something to containers.
func (n *Node) Mounted() (map[string]bool, error) {
	dirs, err := n.host.Mounted()
	if err != nil {
		return nil, err
	}
	mounted := make(map[string]bool, len(dirs))
	for _, dir := range dirs {
		mounted[dir] = true
	}
	return mounted, nil
}

func (n *Node) examineMounts(ctx context.Context, known map[string]bool) (found []providers.Finding) {
	seen, err := n.host.Shared(ctx)
	if err == nil && !seen {
		found = append(found, providers.Finding{
			Severity: providers.Problem, Check: "mounts", Code: "mounts-invisible", Message: "the engine does not see what the plugin mounts: a container would get an empty directory, so nothing is mounted",
			Remedy: "restart the plugin: docker plugin disable --force, then docker plugin enable; if it stays so, give the published directory shared propagation",
		})
	}
	mounted, err := n.host.Mounted()
	if err != nil {
		return append(found, providers.Finding{Severity: providers.Problem, Check: "mounts", Code: "mounts-unreadable", Message: err.Error(), Remedy: "make /proc readable for blockvol"})
	}
	for _, dir := range mounted {
		if !known[dir] {
			found = append(found, providers.Finding{
				Severity: providers.Warning, Check: "mounts", Code: "mount-unknown", Message: fmt.Sprintf("something is mounted at %s that the journal does not know: it is in the way of a volume", n.path(dir)),
				Remedy: "see with findmnt what it is; if no container uses it, unmount it",
			})
		}
	}
	if len(found) > 0 {
		return found
	}
	return append(found, providers.Passed("mounts", fmt.Sprintf("the engine sees what is mounted, %d in all", len(mounted))))
}

// Look is what the kernel shows of a volume at one moment.
type Look struct {
	Device mount.Device
	Err    error       // why Device is not known: mount.ErrNoDevice, mount.ErrAmbiguousDevice, …
	Staged bool        // its file system is at its path
	Users  mount.Users // who has its file system mounted, other than blockvol; one that is not known may be none
	Wrong  []mount.Finding
	Space  mount.Space // zero if it is not staged
}

// Look asks the kernel about the volume, which has an entry. It changes nothing.
func (v *Volume) Look(ctx context.Context) (l Look) {
	e, host := v.Entry(), v.node.host
	if e == nil {
		return Look{Err: mount.ErrNoDevice} // released meanwhile
	}
	if l.Device, l.Err = host.Find(ctx, e.Serial); l.Err == nil {
		l.Staged, _ = host.IsStaged(ctx, v.dir, l.Device)
		dir := ""
		if l.Staged {
			dir = v.dir
			l.Space, _ = host.Space(ctx, v.dir, l.Device)
		}
		l.Wrong = host.Examine(ctx, l.Device, dir)
	}
	l.Users, _ = v.Users(ctx)
	return l
}
