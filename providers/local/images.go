package local

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/providers"
)

// errDamaged: what is on disk is not what this package wrote there. It is never taken for a volume that is not there.
var errDamaged = errors.New("damaged")

// version of the descriptions on disk.
const version = 1

// meta describes an image on disk.
type meta struct {
	Version  int               `json:"version"`
	ID       string            `json:"id"`
	Cluster  string            `json:"cluster,omitempty"` // empty: forgotten, waits for an Adopt
	Name     string            `json:"name,omitempty"`
	Size     int64             `json:"size"` // bytes; the image is as large, or larger if a Modify was cut short
	Created  time.Time         `json:"created"`
	Record   providers.Record  `json:"record,omitempty"`
	Tags     map[string]string `json:"tags,omitempty"`
	Snapshot string            `json:"snapshot,omitempty"` // a volume: the snapshot it was made from
	Volume   string            `json:"volume,omitempty"`   // a snapshot: the volume it was taken from
	Needs    int64             `json:"needs,omitempty"`    // a snapshot: bytes that it takes while it is made
	Holder   *holder           `json:"holder,omitempty"`
	Formerly *former           `json:"formerly,omitempty"` // of a forgotten volume
}

type holder struct {
	Node string    `json:"node"`
	Boot string    `json:"boot"`
	At   time.Time `json:"at"`
}

type former struct {
	Cluster string `json:"cluster"`
	Name    string `json:"name"`
}

// decode reads a description and refuses what this version would not write.
func decode(data []byte) (*meta, error) {
	var m meta
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		var v struct{ Version int }
		if json.Unmarshal(data, &v) == nil && v.Version > version {
			return nil, fmt.Errorf("it has format %d, written by a newer blockvol; this one knows %d", v.Version, version)
		}
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows its end")
	}
	switch {
	case m.Version != version:
		return nil, fmt.Errorf("it has format %d", m.Version)
	case m.Size <= 0:
		return nil, fmt.Errorf("its size is %d", m.Size)
	case (m.Name == "") != (m.Cluster == ""):
		return nil, errors.New("it has a name without a cluster, or a cluster without a name")
	case m.Holder != nil && (m.Holder.Node == "" || m.Holder.Boot == ""):
		return nil, errors.New("its holder is incomplete")
	}
	return &m, nil
}

// imageDir is a directory of images with their descriptions and names.
type imageDir struct {
	dir    string
	prefix string // of ids

	// before, if set, is called before each change on disk and may veto it. Tests die or fail here.
	before func(op, path string) error
}

const (
	ready  = ".img"
	making = ".new"
	going  = ".del"
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

// valid tells whether id can be one of this directory's. What comes from outside is checked before it becomes a path.
func (s *imageDir) valid(id string) bool {
	return strings.HasPrefix(id, s.prefix) && idPattern.MatchString(id)
}

func (s *imageDir) newID() string {
	var b [8]byte
	rand.Read(b[:])
	return s.prefix + hex.EncodeToString(b[:])
}

func (s *imageDir) path(id, ext string) string {
	dir := "disks"
	if ext == making || ext == going {
		dir = "unfinished"
	}
	return filepath.Join(s.dir, dir, id+ext)
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

// notFound is the answer for a name or id, unless the whole directory is away.
func (s *imageDir) notFound(why string) error {
	if _, err := os.Stat(filepath.Join(s.dir, "disks")); err != nil {
		return fmt.Errorf("the directory for volumes is away; is its file system mounted?: %w: %w", providers.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %s", providers.ErrNotFound, why)
}

// at reads the description in file, which may be a link to it.
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
		return nil, fmt.Errorf("%w description of a volume, left as it is: %s: %w", errDamaged, file, err)
	}
	return m, nil
}

// read returns the description of id, whether or not its image is there. Errors: fs.ErrNotExist, errDamaged.
func (s *imageDir) read(id string) (*meta, error) {
	m, err := s.at(s.path(id, ".json"))
	if err == nil && m.ID != id {
		return nil, fmt.Errorf("%w: %s describes %s", errDamaged, s.path(id, ".json"), m.ID)
	}
	return m, err
}

// find returns the description of the image of that name. Under the directory's lock the answer is final; without it an
// image that is just made or destroyed looks lost (errLost), and whoever asks looks again under the lock.
// Errors: providers.ErrNotFound, errMaking if some process is at work on it, errLost, errDamaged.
func (s *imageDir) find(cluster, name string) (*meta, error) {
	m, err := s.behind(cluster, digest(name))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	return m, s.standing(m.ID)
}

// behind returns the description that a link of the cluster leads to, if it has the name that the link stands for.
func (s *imageDir) behind(cluster, name string) (*meta, error) {
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
		// In this order: a description comes before its image's place, and goes after it.
		if !s.has(id, ".json") && s.has(id, ready) {
			return nil, fmt.Errorf("%w: the description %s of an image is missing", errDamaged, s.path(id, ".json"))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, s.notFound("no volume has that name")
}

var (
	errLost   = errors.New("the image is lost")
	errMaking = errors.New("is being made")
)

// standing tells how the image of a description stands: nil if it is there.
func (s *imageDir) standing(id string) error {
	if s.has(id, ready) {
		return nil
	}
	f, err := os.Open(s.path(id, making))
	if err == nil {
		defer f.Close()
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			return fmt.Errorf("%s %w", id, errMaking)
		}
		return s.notFound(id + " was never finished")
	}
	if s.has(id, going) {
		return s.notFound(id)
	}
	if s.has(id, ready) { // finished in this moment
		return nil
	}
	if !s.has(id, ".json") { // destroyed in this moment
		return s.notFound(id)
	}
	return fmt.Errorf("%w: %s is not there, though its description is; bring it back or remove the volume", errLost, s.path(id, ready))
}

// all returns the ids of the images that are there.
func (s *imageDir) all() ([]string, error) {
	return s.ids(ready)
}

// ids returns the ids that there is a file of that extension for.
func (s *imageDir) ids(ext string) ([]string, error) {
	d, err := os.Open(filepath.Dir(s.path("", ext)))
	if err != nil {
		return nil, fmt.Errorf("cannot read the directory for volumes: %w: %w", providers.ErrUnavailable, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutSuffix(name, ext); ok && s.valid(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// open takes the image's flock and returns its description. The caller closes lock.
// Errors: providers.ErrNotFound, errLost, errDamaged, providers.ErrBusy.
func (s *imageDir) open(ctx context.Context, id string) (m *meta, lock *os.File, err error) {
	if !s.valid(id) {
		return nil, nil, s.notFound(fmt.Sprintf("%q is no id of provider local", id))
	}
	lock, err = os.Open(s.path(id, ready))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := s.read(id); errors.Is(err, fs.ErrNotExist) {
			return nil, nil, s.notFound(id)
		}
		if err := s.standing(id); err != nil && !errors.Is(err, errMaking) {
			return nil, nil, err
		}
		return nil, nil, s.notFound(id)
	} else if err != nil {
		return nil, nil, err
	}
	if err := flock(ctx, lock); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", id, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if !s.has(id, ready) { // destroyed while this call waited
		return nil, nil, s.notFound(id)
	}
	m, err = s.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: the description %s of an image is missing", errDamaged, s.path(id, ".json"))
	}
	return m, lock, err
}

// begin makes a new image, empty and of the description's size, still without a place among the volumes. The caller
// holds the directory's lock, and owns the image until it closes it.
func (s *imageDir) begin(m *meta) (*os.File, error) {
	m.Version, m.ID, m.Created = version, s.newID(), time.Now().UTC().Truncate(time.Millisecond)
	f, err := s.image(m)
	if err == nil {
		err = s.write(m)
	}
	if err == nil {
		err = s.name(m)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		if e := s.erase(m.ID); e != nil {
			return nil, errors.Join(err, e)
		}
		return nil, errors.Join(err, s.drop(m.ID))
	}
	return f, nil
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
	if err := f.Truncate(m.Size); errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EINVAL) {
		return f, fmt.Errorf("%w: the file system holds no file of %s: %w", providers.ErrInvalid, bytesize(m.Size), err)
	} else if err != nil {
		return f, err
	}
	return f, nil
}

// commit gives an image that begin made its place, after its bytes are on disk.
func (s *imageDir) commit(id string, f *os.File) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return s.rename(s.path(id, making), s.path(id, ready))
}

// markDeleted takes an image from among the volumes. The caller holds the directory's lock and the image's flock; it calls
// drop when it has let go of the lock, since freeing a large image takes long.
func (s *imageDir) markDeleted(id string) error {
	if err := s.rename(s.path(id, ready), s.path(id, going)); err != nil {
		return err
	}
	return s.erase(id)
}

// erase removes name and description of an image that is half made or half destroyed. The caller holds the directory's
// lock. When it is durable, the image may go too; until then the image is the sign that they stand for nothing.
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

// drop removes the bytes of an erased image. They are truncated first, since xfs frees what is only removed some time
// later, and the next volume may need the space.
func (s *imageDir) drop(id string) error {
	for _, ext := range []string{making, going} {
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

// sweep finishes what dead processes left half made or half destroyed. The caller holds the directory's lock.
func (s *imageDir) sweep() error {
	for _, ext := range []string{making, going} {
		ids, err := s.ids(ext)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := s.finish(id, ext); err != nil {
				return fmt.Errorf("cannot clear away what is left of %s: %w", id, err)
			}
		}
	}
	return nil
}

// finish destroys a half made or half destroyed image unless some process is at work on it.
func (s *imageDir) finish(id, ext string) error {
	f, err := os.Open(s.path(id, ext))
	if err != nil {
		return nil //nolint:nilerr // its owner was quicker
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !s.has(id, ext) { // its owner is at work, or was quicker
		return nil
	}
	if err := s.erase(id); err != nil {
		return err
	}
	return s.drop(id)
}

// name makes the description's name lead to it.
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

// unname removes the description's name if it leads there.
func (s *imageDir) unname(m *meta) error {
	link := s.link(m.Cluster, m.Name)
	if target, err := os.Readlink(link); err != nil || filepath.Base(target) != m.ID+".json" {
		return nil //nolint:nilerr // no link of this volume
	}
	return s.remove(link)
}

// write replaces a description.
func (s *imageDir) write(m *meta) error {
	data, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return s.replace(s.path(m.ID, ".json"), append(data, '\n'))
}

// replace writes a file so that after a crash either the old or the new contents stand.
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

// text tells why a word cannot be kept, or nil.
func text(what, word string, limit int) error {
	switch {
	case len(word) > limit:
		return fmt.Errorf("%w: %s has %d bytes, at most %d are possible", providers.ErrInvalid, what, len(word), limit)
	case !utf8.ValidString(word):
		return fmt.Errorf("%w: %s %q is not UTF-8", providers.ErrInvalid, what, word)
	}
	return nil
}
