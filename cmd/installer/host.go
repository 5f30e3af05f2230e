package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/plugin/engine"
)

// record is what the installer remembers on the host, in the plugin's state directory. A process that was killed is followed by one
// that goes on from there.
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
	Findings  []string          `json:"findings"` // what was wrong then
}

// refusal is why a target was given up.
type refusal struct {
	Target string    `json:"target"`
	At     time.Time `json:"at"`
	Why    string    `json:"why"`
	Code   int       `json:"code"`
}

// work is what a container does on the host, whose directories it has bound.
type work struct {
	Secrets map[string]string // to be kept in files, if not nil
	Keep    []string          // the names of the only files of secrets to be kept, if not nil
	Record  *record           // to be written, if not nil
	Command bool              // install the command line
	Clean   bool              // remove all that was installed
}

// done is its answer.
type done struct {
	Record  record
	Secrets map[string]string // the names of the files
}

// The host's directories, as that container sees them.
const (
	stateDir   = "/host/state"
	volumesDir = "/host/volumes"
	programDir = "/host/program" // of the plugin
	commandDir = "/host/command" // of the host's own programs
)

const (
	workFile   = "work"
	recordFile = "installer.json"
	secretsDir = "secrets"
)

// onTheHost has a container do the work. The engine makes the directories that are missing.
func (i *installer) onTheHost(ctx context.Context, dirs sources, w work, more ...string) (d done, err error) {
	text, err := json.Marshal(w)
	if err != nil {
		return d, err
	}
	out, err := i.engine.Run(ctx, engine.Job{
		Image: i.image, Command: []string{"host"}, Files: map[string]string{workFile: string(text)},
		Binds: append([]string{dirs.state + ":" + stateDir, dirs.volumes + ":" + volumesDir}, more...),
	})
	if err != nil {
		return d, err
	}
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		return d, fmt.Errorf("what works on the host answers %q: %w", out, err)
	}
	return d, nil
}

// onHost is what runs in that container.
func onHost(answer io.Writer) error {
	var w work
	text, err := os.ReadFile("/" + workFile)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &w); err != nil {
		return err
	}
	d, err := w.do()
	if err != nil {
		return err
	}
	return json.NewEncoder(answer).Encode(d)
}

func (w work) do() (d done, err error) {
	if w.Clean {
		return d, clean()
	}
	for _, dir := range []string{stateDir, volumesDir} { // only root may enter what was made just now
		if inside, err := os.ReadDir(dir); err == nil && len(inside) == 0 {
			if err := os.Chmod(dir, 0o700); err != nil {
				return d, err
			}
		}
	}
	if w.Secrets != nil {
		if d.Secrets, err = keepSecrets(filepath.Join(stateDir, secretsDir), w.Secrets); err != nil {
			return d, err
		}
	}
	path := filepath.Join(stateDir, recordFile)
	if w.Record != nil {
		text, err := json.MarshalIndent(w.Record, "", "  ")
		if err == nil {
			err = host.ReplaceFile(path, path+".part", append(text, '\n'), nil)
		}
		if err != nil {
			return d, err
		}
	}
	if w.Keep != nil {
		if err := removeExcept(filepath.Join(stateDir, secretsDir), w.Keep); err != nil {
			return d, err
		}
	}
	if w.Command {
		program, err := os.ReadFile(filepath.Join(programDir, "blockvol"))
		if err != nil {
			return d, err
		}
		if err := installCommand(filepath.Join(commandDir, "blockvol"), program); err != nil {
			return d, err
		}
	}
	switch text, err := os.ReadFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return d, err
	default:
		if err := json.Unmarshal(text, &d.Record); err != nil {
			return d, fmt.Errorf("%s in the state directory is damaged: remove it: %w", recordFile, err)
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

// installCommand replaces the command line if it differs. One that runs goes on.
func installCommand(path string, program []byte) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(program) {
		return nil
	}
	part := path + ".part"
	if err := os.WriteFile(part, program, 0o755); err != nil { //nolint:gosec // the path is a constant's
		return err
	}
	return errors.Join(os.Chmod(part, 0o755), os.Rename(part, path))
}

// clean removes what was installed beside the plugin. What volumes need stays.
func clean() error {
	err := errors.Join(os.RemoveAll(filepath.Join(stateDir, secretsDir)), os.RemoveAll(filepath.Join(stateDir, recordFile)))
	command := filepath.Join(commandDir, "blockvol")
	return errors.Join(err, os.RemoveAll(command), os.RemoveAll(command+".part"))
}
