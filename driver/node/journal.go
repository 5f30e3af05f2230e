package node

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// An Entry stands in the journal while this node may hold a volume. It is written before the volume is attached and
// removed after its detach was confirmed, so that no crash leaves a disk attached that nobody remembers.
type Entry struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`   // the uses are those of this boot of the machine
	Name    string `json:"name"`   // Docker's
	Volume  string `json:"volume"` // the cloud's id
	Serial  string `json:"serial"` // identity of the device
	// Device is the device that was mounted, in case it is pulled: the kernel may hold its file system still.
	Device mount.Device `json:"device,omitzero"`
	// Ours: this boot asked for the attach, of a volume that the cloud did not call this node's. Then the attach may be
	// called off, though no device has come.
	Ours      bool      `json:"ours,omitempty"`
	Node      string    `json:"node,omitempty"` // this node's id when it came to hold the volume; empty in entries of earlier versions
	CreatedAt time.Time `json:"createdAt,omitzero"`
	Uses      []Use     `json:"uses"`                // sorted, none twice
	Releasing bool      `json:"releasing,omitempty"` // the last use has ended; the release is not finished
	// Formatting stands from before the first byte of a mkfs until after the last. The volume is not staged before
	// that, so what a crash leaves in between is nobody's data.
	Formatting bool `json:"formatting,omitempty"`
	// Frozen stands from before the file system is frozen until after it was thawed, which the end of a process does not do.
	Frozen bool `json:"frozen,omitempty"`
	// Taken stands from before the file system is shut down because the disk was taken from this node, until the disk is mounted anew.
	Taken bool `json:"taken,omitempty"`

	unsaved bool // writing it has failed, so the disk may say something else
}

// Use is one consumer of a staged volume.
type Use struct {
	Kind   Kind   `json:"kind"`
	ID     string `json:"id"`
	Target string `json:"target,omitempty"` // the path that it is published at, if that is not the staged one
}

// Kind is what a use is.
type Kind string

// The kinds of uses.
const (
	Docker   Kind = "docker"   // by Docker, whose ID is the mount ID
	Operator Kind = "operator" // by an operator's command, which fills the volume and has it for itself
)

func compareUses(a, b Use) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Target, b.Target))
}

// journalVersion is the version of the entries that this program writes. Version 1 had the mount IDs alone.
const journalVersion = 2

// Has tells whether the use is in the entry.
func (e *Entry) Has(use Use) bool {
	_, found := slices.BinarySearchFunc(e.Uses, use, compareUses)
	return found
}

// HasKind tells whether the entry has a use of that kind.
func (e *Entry) HasKind(kind Kind) bool {
	return slices.ContainsFunc(e.Uses, func(use Use) bool { return use.Kind == kind })
}

// IDs are those of the uses, for people.
func (e *Entry) IDs() []string {
	ids := make([]string, len(e.Uses))
	for i, use := range e.Uses {
		ids[i] = use.ID
	}
	return ids
}

// isStray tells whether nothing but the cloud's answer says that this node holds the volume.
func (e *Entry) isStray() bool { return !e.Ours && e.Device == (mount.Device{}) }

// but is the entry after a change. The original stays as it is.
func (e *Entry) but(change func(*Entry)) *Entry {
	changed := *e
	change(&changed)
	return &changed
}

func (e *Entry) with(use Use, dev mount.Device) *Entry {
	return e.but(func(e *Entry) {
		e.Device, e.Releasing = dev, false
		if at, found := slices.BinarySearchFunc(e.Uses, use, compareUses); !found {
			e.Uses = slices.Insert(slices.Clone(e.Uses), at, use)
		}
	})
}

func (e *Entry) without(use Use) *Entry {
	return e.but(func(e *Entry) {
		e.Uses = slices.DeleteFunc(slices.Clone(e.Uses), func(other Use) bool { return other == use })
	})
}

// releasing is the entry once nobody uses the volume.
func (e *Entry) releasing() *Entry {
	return e.but(func(e *Entry) { e.Uses, e.Releasing = nil, true })
}

// Journal keeps entries, one per volume, durably.
type Journal interface {
	// Load returns all entries. Those that cannot be read are set aside, never deleted, and returned as damaged. Those of a
	// later version of blockvol stay as they are.
	Load() (Loaded, error)
	Put(e *Entry) error
	Remove(name string) error
	// Check returns why no entry can be written now, or nil.
	Check() error
	// Examine checks the entries, and changes none. boot is the identity of this boot of the machine.
	Examine(boot string) []providers.Finding
}

// Loaded is what a journal holds.
type Loaded struct {
	Entries []*Entry
	Damaged []error
	Newer   map[string]error // by name: volumes whose entries a later version of blockvol has written
}

// journalDir is a journal of one file per volume, so that volumes do not wait for each other and damage stays with one.
type journalDir string

// OpenJournal returns the journal in a directory, which is made if it is not there.
func OpenJournal(dir string) (Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the state directory cannot be used: %w; check that it exists on the host and can be written", err)
	}
	return journalDir(dir), nil
}

const (
	entrySuffix   = ".json"
	damagedSuffix = ".damaged"
	partSuffix    = ".part"

	maxEntry = 16 << 20 // bytes; a mount ID takes less than 100
)

func (dir journalDir) file(name string) string {
	return filepath.Join(string(dir), DirOf(name)+entrySuffix)
}

// Load implements Journal.
func (dir journalDir) Load() (Loaded, error) {
	loaded := Loaded{Newer: map[string]error{}}
	files, err := os.ReadDir(string(dir))
	if err != nil {
		return loaded, fmt.Errorf("the journal cannot be read: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(string(dir), f.Name())
		if !strings.HasSuffix(f.Name(), entrySuffix) {
			continue
		}
		e, err := readEntry(path)
		if err == nil && DirOf(e.Name)+entrySuffix != f.Name() {
			err = fmt.Errorf("it is about volume %q", e.Name)
		}
		switch {
		case err == nil:
			loaded.Entries = append(loaded.Entries, e)
			continue
		case errors.Is(err, errNewer):
			loaded.Newer[e.Name] = err
			continue
		}
		loaded.Damaged = append(loaded.Damaged, fmt.Errorf("%s: %w", path, err))
		if err := setAside(path); err != nil {
			loaded.Damaged = append(loaded.Damaged, fmt.Errorf("%s could not be set aside: %w", path, err))
		}
	}
	return loaded, nil
}

// readEntry reads an entry from a regular file. It never blocks, whatever has the file's name.
func readEntry(path string) (*Entry, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("not a file but %s", info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxEntry))
	if err != nil {
		return nil, err
	}
	return decodeEntry(data)
}

// setAside renames a damaged entry to a name that no earlier one has.
func setAside(path string) error {
	aside := path + damagedSuffix
	for n := 2; ; n++ {
		_, err := os.Lstat(aside)
		if errors.Is(err, fs.ErrNotExist) {
			return os.Rename(path, aside)
		}
		if err != nil {
			return err
		}
		aside = fmt.Sprintf("%s%s.%d", path, damagedSuffix, n)
	}
}

var errNewer = errors.New("its journal entry was written by a later version of blockvol")

// decodeEntry reads an entry and checks that it can be acted upon. With errNewer the entry has a name alone.
func decodeEntry(data []byte) (*Entry, error) {
	var head struct { // what is the same in all versions, while a later one may give any other field another type
		Version int
		Name    string
	}
	var e struct {
		Entry
		IDs []string `json:"ids"` // of version 1: mount IDs
	}
	err := json.Unmarshal(data, &head)
	if err == nil && head.Name != "" && head.Version > journalVersion {
		return &Entry{Name: head.Name}, &volume.Error{
			Code: volume.Unavailable, Cause: fmt.Errorf("%w (version %d, where this one knows %d)", errNewer, head.Version, journalVersion),
			Advice: "install that version again, or release the volume with it first",
		}
	}
	if err == nil {
		err = json.Unmarshal(data, &e)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("not a journal entry: %w", err)
	case e.Name == "":
		return nil, errors.New("not a journal entry: it names no volume")
	case e.Version != 1 && e.Version != journalVersion:
		return nil, fmt.Errorf("version %d, where this program writes %d", e.Version, journalVersion)
	case e.Volume == "" || e.Serial == "":
		return nil, errors.New("not a journal entry: volume or serial is missing")
	}
	if e.Version == 1 {
		for _, id := range e.IDs {
			e.Uses = append(e.Uses, Use{Kind: Docker, ID: id})
		}
	}
	e.Version = journalVersion
	slices.SortFunc(e.Uses, compareUses)
	e.Uses = slices.Compact(e.Uses)
	return &e.Entry, nil
}

// Put implements Journal.
func (dir journalDir) Put(e *Entry) error {
	data, err := json.Marshal(e)
	if err == nil {
		err = host.ReplaceFile(dir.file(e.Name), dir.file(e.Name)+partSuffix, append(data, '\n'), nil)
	}
	if err != nil {
		return cannotWrite(err)
	}
	return nil
}

// Remove implements Journal.
func (dir journalDir) Remove(name string) error {
	err := os.Remove(dir.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = host.SyncDir(string(dir))
	}
	if err != nil {
		return cannotWrite(err)
	}
	return nil
}

// Check implements Journal: it writes a file, which no entry has the name of, as an entry is written.
func (dir journalDir) Check() error {
	file := filepath.Join(string(dir), "check")
	if err := host.ReplaceFile(file, file+partSuffix, []byte("can be written\n"), nil); err != nil {
		return cannotWrite(err)
	}
	return nil
}

func cannotWrite(err error) error {
	return &volume.Error{Code: volume.Unavailable, Cause: fmt.Errorf("the journal cannot be written: %w", err), Advice: "make room or repair the state directory on this node"}
}
