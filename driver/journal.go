package driver

import (
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

	"github.com/blockvol/blockvol/mount"
)

// An entry stands in the journal while this node may hold a volume. It is written before the volume is attached and
// removed after its detach was confirmed, so that no crash leaves a disk attached that nobody remembers.
type entry struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`   // the mount IDs are those of this boot of the machine
	Name    string `json:"name"`   // Docker's
	Volume  string `json:"volume"` // the cloud's id
	Serial  string `json:"serial"` // identity of the device
	// Device is the device that was mounted, in case it is pulled: the kernel may hold its file system still.
	Device mount.Device `json:"device,omitzero"`
	// Ours: this boot asked for the attach, of a volume that the cloud did not call this node's. Then the attach may be called
	// off, though no device has come.
	Ours      bool      `json:"ours,omitempty"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	IDs       []string  `json:"ids"`                 // mount IDs in use, sorted, none twice
	Releasing bool      `json:"releasing,omitempty"` // the last user has left; the release is not finished
	// Formatting stands from before the first byte of a mkfs until after the last. The volume is not published before
	// that, so what a crash leaves in between is nobody's data.
	Formatting bool `json:"formatting,omitempty"`

	unsaved bool // writing it has failed, so the disk may say something else
}

const journalVersion = 1

func (e *entry) has(id string) bool {
	_, found := slices.BinarySearch(e.IDs, id)
	return found
}

// isStray tells whether nothing but the cloud's word says that this node holds the volume.
func (e *entry) isStray() bool { return !e.Ours && e.Device == (mount.Device{}) }

func (e *entry) with(id string, dev mount.Device) *entry {
	changed := *e
	changed.Device = dev
	if at, found := slices.BinarySearch(e.IDs, id); !found {
		changed.IDs = slices.Insert(slices.Clone(e.IDs), at, id)
	}
	changed.Releasing = false
	return &changed
}

func (e *entry) without(id string) *entry {
	changed := *e
	if at, found := slices.BinarySearch(e.IDs, id); found {
		changed.IDs = slices.Delete(slices.Clone(e.IDs), at, at+1)
	}
	return &changed
}

// unwritten is the entry when the disk may say something else.
func (e *entry) unwritten() *entry {
	changed := *e
	changed.unsaved = true
	return &changed
}

// holding is the entry of a volume that this node is about to attach, or holds by an attach that is ours or not.
func (e *entry) holding(ours bool) *entry {
	changed := *e
	changed.Releasing = false
	if ours {
		changed.Ours = true
	}
	return &changed
}

// formatting is the entry while the volume is being formatted, or no longer.
func (e *entry) formatting(is bool) *entry {
	changed := *e
	changed.Formatting = is
	return &changed
}

// releasing is the entry once nobody uses the volume.
func (e *entry) releasing() *entry {
	changed := *e
	changed.IDs, changed.Releasing = nil, true
	return &changed
}

// note makes e the volume's entry, on disk and in memory. If the disk cannot be written it is so in memory only, and the
// error is returned.
func (d *Driver) note(v *volume, e *entry) error {
	saved := *e
	err := d.journal.put(&saved)
	saved.unsaved = err != nil
	v.setEntry(&saved)
	return err
}

// journalStore keeps entries, one per volume, durably.
type journalStore interface {
	// load returns all entries. Those that cannot be read are set aside, never deleted, and returned as problems.
	load() (entries []*entry, damaged []error, err error)
	put(e *entry) error
	remove(name string) error
}

// journalDir is a journal of one file per volume, so that volumes do not wait for each other and damage stays with one.
type journalDir string

func openJournal(dir string) (journalDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("the state directory cannot be used: %w; check that it exists on the host and can be written", err)
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
	return filepath.Join(string(dir), dirOf(name)+entrySuffix)
}

func (dir journalDir) load() ([]*entry, []error, error) {
	files, err := os.ReadDir(string(dir))
	if err != nil {
		return nil, nil, fmt.Errorf("the journal cannot be read: %w", err)
	}
	var entries []*entry
	var damaged []error
	for _, f := range files {
		path := filepath.Join(string(dir), f.Name())
		if !strings.HasSuffix(f.Name(), entrySuffix) {
			continue
		}
		e, err := readEntry(path)
		if err == nil && dirOf(e.Name)+entrySuffix != f.Name() {
			err = fmt.Errorf("it speaks of volume %q", e.Name)
		}
		if err == nil {
			entries = append(entries, e)
			continue
		}
		damaged = append(damaged, fmt.Errorf("%s: %w", path, err))
		if err := setAside(path); err != nil {
			damaged = append(damaged, fmt.Errorf("%s could not be set aside: %w", path, err))
		}
	}
	return entries, damaged, nil
}

// readEntry reads an entry from a regular file. It never blocks, whatever has the file's name.
func readEntry(path string) (*entry, error) {
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

// decodeEntry reads an entry and checks that it can be acted upon.
func decodeEntry(data []byte) (*entry, error) {
	var e entry
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("not a journal entry: %w", err)
	}
	switch {
	case e.Version != journalVersion:
		return nil, fmt.Errorf("version %d, where this program writes %d", e.Version, journalVersion)
	case e.Name == "" || e.Volume == "" || e.Serial == "":
		return nil, errors.New("not a journal entry: name, volume or serial is missing")
	}
	slices.Sort(e.IDs)
	e.IDs = slices.Compact(e.IDs)
	return &e, nil
}

func (dir journalDir) put(e *entry) error {
	data, err := json.Marshal(e)
	if err == nil {
		err = replaceFile(dir.file(e.Name), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("the journal cannot be written: %w; make room or mend the state directory on this node", err)
	}
	return nil
}

func (dir journalDir) remove(name string) error {
	err := os.Remove(dir.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(string(dir))
	}
	if err != nil {
		return fmt.Errorf("the journal cannot be written: %w", err)
	}
	return nil
}

// replaceFile makes data the file's content, durably: after a crash the old or the new content is there, whole.
func replaceFile(path string, data []byte) error {
	part := path + partSuffix
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) { // what a crash has left, or whatever it is
		return err
	}
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
