package local

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/providers"
)

// imageDir is a directory of images with their descriptions and names.
type imageDir struct {
	dir    string
	prefix string // of ids

	// before, if set, is called before each change on disk and can prevent it. Tests die or fail there.
	before func(op, path string) error
}

// Extensions of images.
const (
	ready    = ".img"
	making   = ".new"
	deleting = ".del"
)

func (s *imageDir) make() error {
	for _, sub := range []string{"disks", "unfinished", "names"} {
		if err := os.MkdirAll(filepath.Join(s.dir, sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

var idPattern = regexp.MustCompile(`^(vol|snap)-[0-9a-f]{16}$`)

// valid reports whether id has the form of this directory's ids. An id from outside is checked before it becomes a path.
func (s *imageDir) valid(id string) bool {
	return strings.HasPrefix(id, s.prefix) && idPattern.MatchString(id)
}

func (s *imageDir) newID() string {
	var b [8]byte
	rand.Read(b[:])
	return s.prefix + hex.EncodeToString(b[:])
}

func (s *imageDir) path(id, ext string) string {
	sub := "disks"
	if ext == making || ext == deleting {
		sub = "unfinished"
	}
	return filepath.Join(s.dir, sub, id+ext)
}

func (s *imageDir) has(id, ext string) bool {
	_, err := os.Lstat(s.path(id, ext))
	return err == nil
}

func (s *imageDir) names(cluster string) string {
	return filepath.Join(s.dir, "names", digest(cluster))
}

func (s *imageDir) link(cluster, name string) string {
	return filepath.Join(s.names(cluster), digest(name))
}

func digest(word string) string {
	sum := sha256.Sum256([]byte(word))
	return hex.EncodeToString(sum[:])
}

// ids returns the ids of the images with that extension.
func (s *imageDir) ids(ext string) ([]string, error) {
	d, err := os.Open(filepath.Dir(s.path("", ext)))
	if err != nil {
		return nil, unreadable(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, unreadable(err)
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, ext); ok && s.valid(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// notFound is ErrNotFound, unless the whole directory is missing.
func (s *imageDir) notFound(why string) error {
	if _, err := os.Stat(filepath.Join(s.dir, "disks")); err != nil {
		return unreadable(err)
	}
	return fmt.Errorf("%w: %s", providers.ErrNotFound, why)
}

// at reads the description in file, which may be a link to it. Errors: fs.ErrNotExist, errDamaged.
func (s *imageDir) at(file string) (*meta, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m, err := decode(data)
	if err == nil && !s.valid(m.ID) {
		err = fmt.Errorf("its id is %q", m.ID)
	}
	if err != nil {
		if target, e := filepath.EvalSymlinks(file); e == nil {
			file = target
		}
		if errors.As(err, &later{}) {
			return nil, later{fmt.Errorf("the description of a volume, %s, was written by a later version of blockvol (%w): install that version again; it was not changed", file, err)}
		}
		return nil, fmt.Errorf("%w description of a volume: %s: %w; it was not changed", errDamaged, file, err)
	}
	return m, nil
}

// read returns the description of id, whether or not its image exists. Errors: fs.ErrNotExist, errDamaged.
func (s *imageDir) read(id string) (*meta, error) {
	m, err := s.at(s.path(id, ".json"))
	if err == nil && m.ID != id {
		return nil, fmt.Errorf("%w: %s describes %s", errDamaged, s.path(id, ".json"), m.ID)
	}
	return m, err
}

func (s *imageDir) noDescription(id string) error {
	return fmt.Errorf("%w: the description %s of an image is missing", errDamaged, s.path(id, ".json"))
}

// find returns the description of the image of that name. Without the directory's lock, an image that is just being created
// or deleted can look lost (errLost): the caller then asks again with the lock.
// Errors: providers.ErrNotFound, errMaking if another process is creating it, errLost, errDamaged.
func (s *imageDir) find(cluster, name string) (*meta, error) {
	m, err := s.linked(cluster, digest(name))
	if err != nil {
		return nil, err
	}
	return m, s.check(m.ID)
}

// linked returns the description that a link of the cluster leads to, if it has the name that the link is for.
func (s *imageDir) linked(cluster, name string) (*meta, error) {
	link := filepath.Join(s.names(cluster), name)
	m, err := s.at(link)
	switch {
	case err == nil && m.Cluster == cluster && digest(m.Name) == name:
		return m, nil
	case err == nil:
		return nil, s.notFound("forgotten, or adopted under another name")
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if target, err := os.Readlink(link); err == nil {
		id := strings.TrimSuffix(filepath.Base(target), ".json")
		// In this order: the description is written before the image gets its place, and removed after it has lost it.
		if !s.has(id, ".json") && s.has(id, ready) {
			return nil, s.noDescription(id)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, s.notFound("none has this name")
}

// check returns nil if the image of a description exists.
func (s *imageDir) check(id string) error {
	if s.has(id, ready) {
		return nil
	}
	if f, err := os.Open(s.path(id, making)); err == nil {
		defer f.Close()
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return fmt.Errorf("%s %w", id, errMaking)
		}
		return s.notFound(id + " was never completed")
	}
	switch {
	case s.has(id, deleting):
		return s.notFound(id)
	case s.has(id, ready): // completed just now
		return nil
	case !s.has(id, ".json"): // deleted just now
		return s.notFound(id)
	}
	return fmt.Errorf("%w: %s does not exist, but its description does: restore the image or remove the volume", errLost, s.path(id, ready))
}

// open takes the image's flock and returns its description. The caller closes lock.
// Errors: providers.ErrNotFound, errLost, errDamaged, providers.ErrBusy.
func (s *imageDir) open(ctx context.Context, id string) (m *meta, lock *os.File, err error) {
	if !s.valid(id) {
		return nil, nil, s.notFound(fmt.Sprintf("%q is no id of provider local", id))
	}
	lock, err = os.Open(s.path(id, ready))
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.check(id); err != nil && !errors.Is(err, errMaking) {
			return nil, nil, err
		}
		return nil, nil, s.notFound(id)
	} else if err != nil {
		return nil, nil, err
	}
	if err := flock(ctx, lock); err != nil {
		return nil, nil, err
	}
	if !s.has(id, ready) { // deleted during the wait
		err = s.notFound(id)
	} else if m, err = s.read(id); errors.Is(err, fs.ErrNotExist) {
		err = s.noDescription(id)
	}
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return m, lock, nil
}

// begin creates an unfinished image, empty and of the description's size, with its description and name. The caller holds the
// directory's lock. It owns the image until it closes it.
func (s *imageDir) begin(m *meta) (*os.File, error) {
	m.ID, m.Created = s.newID(), time.Now().UTC().Truncate(time.Millisecond)
	f, err := s.image(m)
	if err == nil {
		err = s.write(m)
	}
	if err == nil {
		err = s.name(m)
	}
	if err == nil {
		return f, nil
	}
	if f != nil {
		f.Close()
	}
	if e := s.erase(m.ID); e != nil {
		return nil, errors.Join(err, e)
	}
	return nil, errors.Join(err, s.drop(m.ID))
}

func (s *imageDir) image(m *meta) (*os.File, error) {
	file := s.path(m.ID, making)
	if err := s.step("make", file); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return f, fmt.Errorf("flock %s: %w", file, err)
	}
	err = f.Truncate(m.Size)
	if errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EINVAL) {
		err = invalid("the file system of %s allows no file of %s: %w", s.dir, bytesize(m.Size), err)
	}
	return f, err
}

// commit completes an image of begin, once its bytes are on disk.
func (s *imageDir) commit(id string, f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return s.rename(s.path(id, making), s.path(id, ready))
}

// markDeleted ends a volume or snapshot. The caller holds the directory's lock and the image's flock. It calls drop after
// releasing the lock, because freeing a large image takes long.
func (s *imageDir) markDeleted(id string) error {
	if err := s.rename(s.path(id, ready), s.path(id, deleting)); err != nil {
		return err
	}
	return s.erase(id)
}

// erase durably removes the name and description of an unfinished image. The caller holds the directory's lock. Until it is
// done the image must stay: it shows that name and description do not count.
func (s *imageDir) erase(id string) error {
	if m, err := s.read(id); err == nil {
		if err := s.unname(m); err != nil {
			return err
		}
	}
	for _, ext := range []string{".json.tmp", ".json"} {
		if err := s.remove(s.path(id, ext)); err != nil {
			return err
		}
	}
	return host.SyncDir(filepath.Join(s.dir, "disks"))
}

// drop removes the bytes of an erased image. They are truncated first: after a mere remove, xfs frees the space some time
// later, and the next volume may need it.
func (s *imageDir) drop(id string) error {
	for _, ext := range []string{making, deleting} {
		file := s.path(id, ext)
		if err := os.Truncate(file, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := s.remove(file); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes the unfinished images of dead processes. The caller holds the directory's lock.
func (s *imageDir) sweep() error {
	for _, ext := range []string{making, deleting} {
		ids, err := s.ids(ext)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := s.sweepImage(id, ext); err != nil {
				return fmt.Errorf("unfinished image %s cannot be removed: %w", s.path(id, ext), err)
			}
		}
	}
	return nil
}

func (s *imageDir) sweepImage(id, ext string) error {
	f, err := os.Open(s.path(id, ext))
	if err != nil {
		return nil // its owner has finished it
	}
	defer f.Close()
	// Its owner has the flock, or may have finished it just now.
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !s.has(id, ext) {
		return nil
	}
	if err := s.erase(id); err != nil {
		return err
	}
	return s.drop(id)
}

// name makes the link of the description's name.
func (s *imageDir) name(m *meta) error {
	if err := os.MkdirAll(s.names(m.Cluster), 0o700); err != nil {
		return err
	}
	link := s.link(m.Cluster, m.Name)
	aside := link + ".tmp"
	if err := s.remove(aside); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join("..", "..", "disks", m.ID+".json"), aside); err != nil {
		return err
	}
	if err := s.rename(aside, link); err != nil {
		return err
	}
	return host.SyncDir(filepath.Join(s.dir, "names"))
}

// unname removes the link of the description's name, if it leads to this description.
func (s *imageDir) unname(m *meta) error {
	link := s.link(m.Cluster, m.Name)
	if target, err := os.Readlink(link); err != nil || filepath.Base(target) != m.ID+".json" {
		return nil //nolint:nilerr // no link of this volume
	}
	return s.remove(link)
}

// write replaces a description, whichever version wrote the former one.
func (s *imageDir) write(m *meta) error {
	m.Version = version
	data, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return s.replace(s.path(m.ID, ".json"), append(data, '\n'))
}

// replace replaces a file atomically and durably.
func (s *imageDir) replace(file string, data []byte) error {
	return noSpace(host.ReplaceFile(file, file+".tmp", data, s.before))
}

func (s *imageDir) rename(from, to string) error {
	if err := s.step("rename", to); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := host.SyncDir(filepath.Dir(to)); err != nil || filepath.Dir(from) == filepath.Dir(to) {
		return err
	}
	return host.SyncDir(filepath.Dir(from))
}

func (s *imageDir) remove(file string) error {
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := s.step("remove", file); err != nil {
		return err
	}
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *imageDir) step(op, path string) error {
	if s.before == nil {
		return nil
	}
	return s.before(op, path)
}
