package linode

import (
	"os"
	"strings"
)

// ForgetEnvironment takes from this process's environment what the SDK of Linode would find there: a test must not depend on it.
func ForgetEnvironment() {
	for _, setting := range os.Environ() {
		if name, _, _ := strings.Cut(setting, "="); strings.HasPrefix(name, "LINODE_") {
			_ = os.Unsetenv(name)
		}
	}
}
