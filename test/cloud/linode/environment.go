package linode

import (
	"os"
	"strings"
)

// ForgetEnvironment removes the Linode SDK's settings from this process's environment, since a test must not depend on them.
func ForgetEnvironment() {
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "LINODE_") {
			_ = os.Unsetenv(name)
		}
	}
}
