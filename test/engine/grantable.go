package engine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Grantable returns a plugin directory that this machine can start: dir, or a copy without CAP_SYS_RESOURCE if this machine
// does not have it, as in many containers. Without it, growing ext4 cannot be tested.
func (e *Engine) Grantable(dir string) string {
	e.t.Helper()
	given, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		e.t.Fatalf("engine: reading the capability bounding set: %v", err)
	}
	if given == 1 {
		return dir
	}
	confined, err := os.MkdirTemp(e.Dir, "plugin-")
	if err == nil {
		_, err = run(exec.Command("cp", "--archive", "--no-target-directory", dir, confined), "cp")
	}
	file := filepath.Join(confined, "config.json")
	var config []byte
	if err == nil {
		config, err = os.ReadFile(file)
	}
	if err == nil {
		less := bytes.Replace(config, []byte(`, "CAP_SYS_RESOURCE"`), nil, 1)
		if len(less) == len(config) {
			err = fmt.Errorf("%s does not ask for CAP_SYS_RESOURCE", dir)
		} else {
			err = os.WriteFile(file, less, 0o600)
		}
	}
	if err != nil {
		e.t.Fatalf("engine: making a plugin that this machine can start: %v", err)
	}
	return confined
}
