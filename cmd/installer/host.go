package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/plugin/engine"
)

// record is what the installer remembers on the host. A process that was killed is followed by one that goes on from there.
type record struct {
	Set     []string `json:"set"`               // the settings that it has made; others are an operator's
	Done    string   `json:"done,omitempty"`    // the target that works
	Before  *former  `json:"before,omitempty"`  // what worked before the change that has begun
	Refused *refusal `json:"refused,omitempty"` // the target that does not work
}

// former is a state of the plugin to go back to.
type former struct {
	Reference string            `json:"reference"`
	Settings  map[string]string `json:"settings"`
}

// refusal is why a target was given up.
type refusal struct {
	Target string    `json:"target"`
	At     time.Time `json:"at"`
	Why    string    `json:"why"`
	Code   int       `json:"code"`
}

// isFresh tells whether the target is still to be left alone. The clock may have been wrong.
func (r refusal) isFresh() bool {
	age := time.Since(r.At)
	return age >= 0 && age < again
}

// work is what a container does on the host, whose directories it has bound.
type work struct {
	Secrets map[string]string // to be kept in files, if not nil
	Keep    []string          // the names of the only files of secrets to be kept, if not nil
	Record  *record           // to be written, if not nil
	Command bool              // install the command line
	Clean   bool              // remove all that was installed
	State   string            // the state directory, for Clean
}

// done is its answer.
type done struct {
	Record  record
	Secrets map[string]string // the names of the files
}

// The host's directories, as that container sees them.
const (
	ownDir     = "/host/installer" // the record's
	stateDir   = "/host/state"     // the plugin's, as volumesDir is
	volumesDir = "/host/volumes"
	programDir = "/host/program" // of the plugin
	commandDir = "/host/command" // of the host's own programs
	baseDir    = "/host/base"    // has ownDir
	parentDir  = "/host/parent"  // has stateDir
)

const (
	workFile   = "work"
	base       = "/var/lib/blockvol"
	own        = "installer" // in base
	recordFile = "record.json"
	secretsDir = "secrets" // in the state directory
)

// onTheHost has a container do the work, with the plugin's directories if they are given. The engine makes those that are missing.
func (i *installer) onTheHost(ctx context.Context, dirs sources, w work, more ...string) (d done, err error) {
	text, err := json.Marshal(w)
	if err != nil {
		return d, err
	}
	binds := append([]string{path.Join(base, own) + ":" + ownDir}, more...)
	switch {
	case w.Clean:
		binds = append(more, base+":"+baseDir, path.Dir(dirs.state)+":"+parentDir, dirs.state+":"+stateDir) // which may be a link
	case dirs != sources{}:
		binds = append(binds, dirs.state+":"+stateDir, dirs.volumes+":"+volumesDir)
	}
	out, err := i.engine.Run(ctx, engine.Job{
		Image: i.image, Command: []string{"host"}, Files: map[string]string{workFile: string(text)}, Binds: binds,
	})
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		return d, fmt.Errorf("what works on the host answers %q: %w", out, err)
	}
	return d, nil
}

// onHost is what runs in that container, whose root directory is root.
func onHost(root string, answer io.Writer) error {
	var w work
	text, err := os.ReadFile(filepath.Join(root, workFile)) //nolint:gosec // the container's own
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &w); err != nil {
		return err
	}
	d, err := w.do(root)
	if err != nil {
		return err
	}
	return json.NewEncoder(answer).Encode(d)
}

func (w work) do(root string) (d done, err error) {
	in := func(dir string, names ...string) string {
		return filepath.Join(append([]string{root, dir}, names...)...)
	}
	if w.Clean {
		return d, clean(in(baseDir), in(stateDir), in(parentDir, filepath.Base(w.State)), in(commandDir))
	}
	for _, dir := range []string{in(stateDir), in(volumesDir)} { // only root may enter what was made just now
		if inside, err := os.ReadDir(dir); err == nil && len(inside) == 0 {
			if err := os.Chmod(dir, 0o700); err != nil {
				return d, err
			}
		}
	}
	if w.Secrets != nil {
		if d.Secrets, err = keepSecrets(in(stateDir, secretsDir), w.Secrets); err != nil {
			return d, err
		}
	}
	file := in(ownDir, recordFile)
	if w.Record != nil {
		text, err := json.MarshalIndent(w.Record, "", "  ")
		if err == nil {
			err = host.ReplaceFile(file, file+".part", append(text, '\n'), nil)
		}
		if err != nil {
			return d, err
		}
	}
	if w.Keep != nil {
		if err := removeExcept(in(stateDir, secretsDir), w.Keep); err != nil {
			return d, err
		}
	}
	if w.Command {
		if err := installCommand(in(commandDir, "blockvol"), in(programDir, "blockvol")); err != nil {
			return d, err
		}
	}
	switch text, err := os.ReadFile(file); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return d, err
	default:
		if err := json.Unmarshal(text, &d.Record); err != nil {
			return d, fmt.Errorf("%s is damaged: remove it: %w", path.Join(base, own, recordFile), err)
		}
	}
	return d, nil
}

// keepSecrets writes each secret to a file of its own and returns their names. A secret that is there already keeps its file, a
// changed one gets a new file, so that the plugin's settings change with it and can be changed back.
func keepSecrets(dir string, secrets map[string]string) (map[string]string, error) {
	names := map[string]string{}
	if len(secrets) == 0 {
		return names, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for name, value := range secrets {
		files, err := filepath.Glob(filepath.Join(dir, name+".*"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && string(text) == value+"\n" {
				names[name] = filepath.Base(file)
			}
		}
		if names[name] != "" {
			continue
		}
		names[name] = name + "." + strings.ToLower(rand.Text()[:8])
		path := filepath.Join(dir, names[name])
		if err := host.ReplaceFile(path, filepath.Join(dir, "part"), []byte(value+"\n"), nil); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func removeExcept(dir string, names []string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	keep := map[string]bool{}
	for _, name := range names {
		keep[name] = true
	}
	for _, file := range files {
		if !keep[file.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(dir, file.Name())))
		}
	}
	if len(names) == 0 {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// installCommand replaces the command line if it differs from the plugin's program. One that runs goes on.
func installCommand(path, program string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
		return nil
	}
	part := path + ".part"
	if err := os.WriteFile(part, text, 0o755); err != nil { //nolint:gosec // the path is a constant's
		return err
	}
	return errors.Join(os.Chmod(part, 0o755), os.Rename(part, path))
}

// clean removes what was installed beside the plugin, and what the plugin keeps for itself. What it does not know stays, above all
// journal entries of volumes that are not released, and with them the id of this node, which holds the disks. The state directory is
// at state; entry is its name in the directory above, which may be a link. Errors: a blockvol serves with that state directory.
func clean(base, state, entry, commands string) error {
	lock, err := os.OpenFile(filepath.Join(state, "lock"), os.O_RDWR, 0)
	if err == nil {
		defer lock.Close()
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errors.New("another blockvol serves volumes with this state directory: stop it first, for example the daemon (systemctl stop blockvol)")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err = os.RemoveAll(filepath.Join(base, own))
	err = errors.Join(err, os.RemoveAll(filepath.Join(state, secretsDir)))
	for _, empty := range []string{"journal", "staging"} {
		_ = unix.Rmdir(filepath.Join(state, empty)) // if it is; never a link
	}
	if _, e := os.Lstat(filepath.Join(state, "journal")); errors.Is(e, fs.ErrNotExist) {
		for _, name := range []string{"jobs", "node", "peers.json", "lock"} {
			err = errors.Join(err, os.RemoveAll(filepath.Join(state, name)))
		}
	}
	for _, empty := range []string{entry, filepath.Join(base, "volumes")} {
		_ = unix.Rmdir(empty)
	}
	command := filepath.Join(commands, "blockvol")
	return errors.Join(err, os.RemoveAll(command), os.RemoveAll(command+".part"))
}
