package local

import "github.com/blockvol/blockvol/providers"

const defaultDir = "/var/lib/blockvol/volumes"

// Settings are those of FromEnv.
var Settings = []providers.Setting{
	{Name: "LOCAL_OVERCOMMIT", Help: "`true` lets volumes be created that together are larger than the free space of the directory's file system", Default: "false"},
	{Name: "LOCAL_DIR", Help: "the directory of the disk images; the managed plugin has the mount `volumes` for it", Default: defaultDir, Daemon: true},
}
