package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/plugin/docker"
	"github.com/blockvol/blockvol/providers"
)

// The bounds of CALL_TIMEOUT. An engine waits 60 s for most of its calls.
const (
	minTimeout = time.Second
	maxTimeout = 55 * time.Second
)

var (
	takeovers   = []controller.Takeover{controller.TakeoverNever, controller.TakeoverStopped, controller.TakeoverFence, controller.TakeoverAlways}
	afterFence  = []string{"poweroff", "reboot"}
	logLevels   = []string{"error", "warning", "info", "debug"}
	logFormats  = []string{"text", "json"}
	clusterForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
)

// generalSettings are those that do not depend on the provider.
var generalSettings = []providers.Setting{
	{Name: "PROVIDER", Default: "local", Help: "where disks come from: " + quoted(providerNames())},
	{Name: "CLUSTER", Default: "default", Help: "separates the volumes of one Swarm from others in the same account: blockvol sees only the volumes of its own cluster"},
	{Name: "TAKEOVER", Default: string(controller.TakeoverStopped), Help: "when a volume is taken from the node that holds it: `never`; `stopped`: if the cloud says that this node is stopped or gone; `fence`: the same, and a node that answers no other one is powered off first; `always`: also if this node does not release it within 15 s"},
	{Name: "FENCE", Default: "poweroff", Help: "what becomes of a node that `TAKEOVER=fence` has had powered off: it stays so (`poweroff`), or is started again when its volumes are gone (`reboot`)"},
	{Name: "DEFAULT_SIZE", Default: "10GiB", Help: "size of a volume that is created without one, in GiB or with a unit"},
	{Name: "DEFAULT_FSTYPE", Default: "ext4", Help: "file system of a volume that is created without one: " + quoted(mount.FSTypes())},
	{Name: "CALL_TIMEOUT", Default: docker.DefaultTimeout.String(), Help: fmt.Sprintf("how long a call of Docker may take, `%s` to `%s`. A mount that takes longer is answered with an error and goes on in the background; the next call joins it", minTimeout, maxTimeout)},
	{Name: "LOG_LEVEL", Default: "info", Help: "the least severe messages that are logged: " + quoted(logLevels)},
	{Name: "LOG_FORMAT", Default: "text", Help: "the format of the log: " + quoted(logFormats)},
	{Name: "METRICS_ADDRESS", Help: "host and port on which Prometheus metrics and health checks are served to anybody who asks, such as `127.0.0.1:9642`. The plugin's socket has them in any case"},
	{Name: "PEER_LISTEN", Default: ":7373", Help: "where this node answers others of its cluster, which ask it to let go of volumes that nothing uses: an address with a port, which is the same on all nodes, or `off`. It listens only if there is a key"},
	{Name: "PEER_KEY", Default: "made from the cloud's token or secret key", Help: "what the nodes of a cluster prove themselves with to each other: at least 32 random characters; while it is being replaced, the new key and the former one with a space between them", Secret: true},
	{Name: "PEER_ADDRESSES", Default: "the private addresses that the cloud tells", Help: "addresses of nodes, as `NODE=ADDRESS` with commas between them; NODE is the cloud's id"},
	{Name: "HTTPS_PROXY", Help: "URL of the proxy to a cloud's API"},
	{Name: "NO_PROXY", Help: "hosts to which requests go without the proxy, separated by commas"},
}

// quoted lists values in backquotes, as the help of a setting has them.
func quoted(values []string) string { return "`" + strings.Join(values, "`, `") + "`" }

// settings are the values of generalSettings.
type settings struct {
	provider      string
	cluster       string
	takeover      controller.Takeover
	reboot        bool  // a node that was powered off is started again
	defaultSize   int64 // bytes
	defaultFSType string
	callTimeout   time.Duration
	logLevel      logrus.Level
	logJSON       bool

	metricsAddress string // empty: on the plugin's socket only
	peers          peerSettings

	noCreate error    // why no volume can be created; existing ones are served
	noPeers  error    // why other nodes are neither asked nor answered, though that was asked for
	warnings []string // wrong settings whose default is used
}

// readSettings returns the settings. An error means that no volume can be served: a setting that decides which volumes there are
// is wrong. Any other wrong setting gets its default, TAKEOVER the most careful value, so that no typing error makes existing
// volumes disappear.
func readSettings(getenv func(string) string) (settings, error) {
	var fatal, noCreate, warnings []string
	wrong := &fatal
	// An empty value counts as none: Docker passes an unset setting as an empty one.
	value := func(name string) string {
		declared := slices.IndexFunc(generalSettings, func(s providers.Setting) bool { return s.Name == name })
		return cmp.Or(strings.TrimSpace(getenv(name)), generalSettings[declared].Default)
	}
	refuse := func(name, must string) {
		*wrong = append(*wrong, fmt.Sprintf("%s is %q but must be %s", name, getenv(name), must))
	}
	choose := func(name string, allowed []string) (chosen string, ok bool) {
		chosen = value(name)
		ok = slices.Contains(allowed, chosen)
		if !ok {
			refuse(name, "one of "+strings.Join(allowed, ", "))
		}
		return chosen, ok
	}

	s := settings{cluster: value("CLUSTER")}
	s.provider, _ = choose("PROVIDER", providerNames())
	if !clusterForm.MatchString(s.cluster) {
		refuse("CLUSTER", "up to 63 letters, digits, '.', '_' and '-', with a letter or digit at both ends")
	}

	wrong = &noCreate
	s.takeover = controller.TakeoverNever
	if chosen, ok := choose("TAKEOVER", names(takeovers)); ok {
		s.takeover = controller.Takeover(chosen)
	}
	s.defaultFSType, _ = choose("DEFAULT_FSTYPE", mount.FSTypes())
	var err error
	if s.defaultSize, err = volume.ParseSize(value("DEFAULT_SIZE")); err != nil {
		noCreate = append(noCreate, fmt.Sprintf("DEFAULT_SIZE is %q but %v", getenv("DEFAULT_SIZE"), err))
	}

	wrong = &warnings
	fence, _ := choose("FENCE", afterFence)
	s.reboot = fence == "reboot"
	format, _ := choose("LOG_FORMAT", logFormats)
	s.logJSON = format == "json"
	s.logLevel = logrus.InfoLevel
	if chosen, ok := choose("LOG_LEVEL", logLevels); ok {
		s.logLevel, _ = logrus.ParseLevel(chosen) // it is a level's name
	}
	s.callTimeout, err = time.ParseDuration(value("CALL_TIMEOUT"))
	if err != nil || s.callTimeout < minTimeout || s.callTimeout > maxTimeout {
		refuse("CALL_TIMEOUT", fmt.Sprintf("a time from %s to %s, like %s", minTimeout, maxTimeout, docker.DefaultTimeout))
		s.callTimeout = docker.DefaultTimeout
	}
	s.metricsAddress = value("METRICS_ADDRESS")
	if _, port, err := net.SplitHostPort(s.metricsAddress); s.metricsAddress != "" && (err != nil || port == "") {
		refuse("METRICS_ADDRESS", "host:port, like 127.0.0.1:9642")
		s.metricsAddress = ""
	}
	s.peers, s.noPeers = readPeerSettings(getenv, value("PEER_LISTEN"), s)
	s.warnings = warnings
	s.noCreate = asError(noCreate)
	return s, asError(fatal)
}

func asError(wrong []string) error {
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, "; ") + correction)
}

// correction ends the sentence about wrong settings.
const correction = ": correct the settings and restart blockvol"

func names[T ~string](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, string(v))
	}
	return all
}
