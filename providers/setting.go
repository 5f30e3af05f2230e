package providers

// Setting is one setting of the plugin or of a provider: an environment variable.
type Setting struct {
	Name    string
	Help    string // what it decides: a phrase without a full stop, values in backquotes
	Default string // what holds without it, a value or a phrase; empty: nothing does
	Secret  bool   // the value can also be in a file, which Name with FileSuffix names
	Shared  bool   // a random secret that the nodes of a cluster may have in common: what they prove themselves with to each other comes from it
	Daemon  bool   // only a daemon has it: config.json does not let the managed plugin have it
}

// FileSuffix makes the name of a secret setting that of the setting which names a file with its value.
const FileSuffix = "_FILE"
