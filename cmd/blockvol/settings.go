package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/plugin"
)

const settingsHelp = `Settings come from the environment:
  PROVIDER        where disks come from: %s (default: local)
  CLUSTER         sets the volumes of one Swarm apart from others in the same account (default: default)
  TAKEOVER        when to take a volume from the node that holds it: never, stopped, always (default: stopped)
  DEFAULT_SIZE    size of a volume created without one, in GiB or with a unit (default: 10GiB)
  DEFAULT_FSTYPE  file system of a volume created without one: %s (default: ext4)
  CALL_TIMEOUT    how long one call of the engine may take, %s to %s (default: %s)
  LOG_LEVEL       %s (default: info)
  LOG_FORMAT      text, json (default: text)

Provider aws (docs/aws.md): instance, region and zone come from the instance's metadata, credentials from its role, or from
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN  each also as ..._FILE, a file that holds it
  AWS_REGION                                                   if set, it must be the instance's
  AWS_ENDPOINT_URL_EC2, AWS_EC2_METADATA_SERVICE_ENDPOINT      where EC2 and the metadata service are, if not where usual

Provider local:
  LOCAL_DIR         where disk images are kept (default: /data/volumes if it exists, else /var/lib/blockvol/volumes)
  LOCAL_OVERCOMMIT  true promises more bytes than that file system can hold (default: false)`

// The bounds of CALL_TIMEOUT. An engine waits 60 s for most of its calls.
const (
	minTimeout = time.Second
	maxTimeout = 55 * time.Second
)

var (
	takeovers   = []driver.Takeover{driver.TakeoverNever, driver.TakeoverStopped, driver.TakeoverAlways}
	logLevels   = []string{"error", "warning", "info", "debug"}
	clusterForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
)

// settings are what the operator decides, but for the provider's own.
type settings struct {
	provider      string
	cluster       string
	takeover      driver.Takeover
	defaultSize   int64 // bytes
	defaultFSType string
	callTimeout   time.Duration
	logLevel      logrus.Level
	logJSON       bool

	noCreate error    // a setting without which volumes that exist are served, but none is created, is wrong
	warnings []string // settings that have their default instead of what is wrong
}

// readSettings returns the settings. The error is what is wrong with those that say which volumes there are: none can be
// served. Others that are wrong have their default, TAKEOVER the most careful value, so that no typing error takes away
// volumes that exist.
func readSettings(getenv func(string) string) (settings, error) {
	var fatal, noCreate, warnings []string
	wrong := &fatal
	// An empty value counts as none: Docker passes a setting that was taken back as an empty one.
	value := func(name, fallback string) string { return cmp.Or(strings.TrimSpace(getenv(name)), fallback) }
	refuse := func(name, must string) {
		*wrong = append(*wrong, fmt.Sprintf("%s is %q but must be %s", name, getenv(name), must))
	}
	choose := func(name, fallback string, allowed []string) string {
		chosen := value(name, fallback)
		if !slices.Contains(allowed, chosen) {
			refuse(name, "one of "+strings.Join(allowed, ", "))
			return fallback
		}
		return chosen
	}

	s := settings{
		provider: choose("PROVIDER", "local", slices.Sorted(maps.Keys(constructors))),
		cluster:  value("CLUSTER", "default"),
	}
	if !clusterForm.MatchString(s.cluster) {
		refuse("CLUSTER", "up to 63 letters, digits, '.', '_' and '-', with a letter or digit at both ends")
	}

	wrong = &noCreate
	s.takeover = driver.TakeoverStopped
	if value("TAKEOVER", "") != "" {
		s.takeover = driver.Takeover(choose("TAKEOVER", string(driver.TakeoverNever), names(takeovers)))
	}
	s.defaultFSType = choose("DEFAULT_FSTYPE", "ext4", mount.FSTypes())
	var err error
	if s.defaultSize, err = driver.ParseSize(value("DEFAULT_SIZE", "10GiB")); err != nil {
		noCreate = append(noCreate, fmt.Sprintf("DEFAULT_SIZE is %q but %v", getenv("DEFAULT_SIZE"), err))
	}

	wrong = &warnings
	s.logJSON = choose("LOG_FORMAT", "text", []string{"text", "json"}) == "json"
	if s.logLevel, err = logrus.ParseLevel(choose("LOG_LEVEL", "info", logLevels)); err != nil {
		panic(err) // the list has names of levels only
	}
	s.callTimeout, err = time.ParseDuration(value("CALL_TIMEOUT", plugin.DefaultTimeout.String()))
	if err != nil || s.callTimeout < minTimeout || s.callTimeout > maxTimeout {
		refuse("CALL_TIMEOUT", fmt.Sprintf("a time from %s to %s, like %s", minTimeout, maxTimeout, plugin.DefaultTimeout))
		s.callTimeout = plugin.DefaultTimeout
	}
	s.warnings = warnings
	s.noCreate = asError(noCreate)
	return s, asError(fatal)
}

func asError(wrong []string) error {
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, "; ") + ": correct the settings and restart blockvol")
}

func names[T ~string](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, string(v))
	}
	return all
}
