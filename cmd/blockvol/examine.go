package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/peer"
	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/providers"
)

// examination is what blockvol doctor has checked. It works with what there is: without a driver it checks the provider, and without a
// provider the rest.
type examination struct {
	options  options
	settings settings
	getenv   func(string) string
	wrong    error      // why no volumes can be served, whatever else is right; may be nil
	paths    host.Paths // of the state directory, which other messages name as settings do

	mu       sync.Mutex
	provider providers.Provider // nil: it could not be made
	driver   *driver.Driver     // nil: no volumes are served
	members  *peer.Members      // nil: nodes do not ask each other
	deaf     error              // why this node cannot be asked
}

// addTo makes the checks part of what operators can ask for.
func (x *examination) addTo(operators *admin.Server) {
	operators.HideInFindings(x.secrets)
	operators.AddCheck("the settings", x.checkSettings)
	operators.AddCheck("the machine", x.checkMachine)
	operators.AddCheck("the directories", x.checkDirs)
	operators.AddCheck("the other nodes", x.checkPeers)
	operators.AddCheck("the cloud and the volumes", x.checkVolumes)
}

func (x *examination) set(provider providers.Provider, d *driver.Driver) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.provider, x.driver = provider, d
}

func (x *examination) setPeers(members *peer.Members, deaf error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.members, x.deaf = members, deaf
}

func (x *examination) known() (providers.Provider, *driver.Driver) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.provider, x.driver
}

// checkVolumes checks the cloud and, if volumes are served, those.
func (x *examination) checkVolumes(ctx context.Context) []driver.Finding {
	provider, d := x.known()
	if d != nil {
		return d.Diagnose(ctx)
	}
	if provider == nil {
		provider = x.spareProvider()
	}
	var cloud []driver.Finding
	if examiner, can := provider.(providers.Examiner); can {
		cloud = examiner.Examine(ctx)
	}
	broken := slices.ContainsFunc(cloud, func(f driver.Finding) bool { return f.Severity == driver.Problem })
	if fencer, can := provider.(providers.Fencer); can && !broken && x.settings.takeover == controller.TakeoverFence {
		cloud = append(cloud, fencer.ExamineFence(ctx))
	}
	return append(cloud, node.ExamineJournal(filepath.Join(x.options.state, "journal"))...)
}

// spareProvider makes a provider to check the credentials with, though something else is wrong; nil if it cannot be made. Only one with
// credentials is made: the others change something on this machine.
func (x *examination) spareProvider() providers.Provider {
	c, is := constructors[x.settings.provider]
	if !is || !slices.ContainsFunc(c.settings, func(s providers.Setting) bool { return s.Secret }) {
		return nil
	}
	cluster := x.settings.cluster
	if !clusterForm.MatchString(cluster) {
		cluster = "default"
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	provider, err := c.fromEnv(x.getenv, "", cluster, log, nil)
	if err != nil {
		return nil // which is why no volumes are served
	}
	return provider
}

func (x *examination) checkMachine(ctx context.Context) []driver.Finding {
	provider, _ := x.known()
	cfg := mount.Config{Sysfs: x.options.sysfs, Proc: x.options.proc}
	if provider != nil {
		cfg.Buses = provider.Buses()
	}
	return driver.ExamineMachine(ctx, cfg)
}

func (x *examination) checkDirs(context.Context) []driver.Finding {
	_, d := x.known()
	found := slices.DeleteFunc(node.ExamineDirs(x.options.state, x.options.published), func(f driver.Finding) bool {
		return d == nil && f.Code == "directory-missing" // a start makes it, and what prevents that is why no volumes are served
	})
	for i := range found {
		found[i].Message, found[i].Remedy = x.paths.In(found[i].Message), x.paths.In(found[i].Remedy)
	}
	return found
}

// checkSettings finds settings that are wrong, though volumes are served, and those that have no effect.
func (x *examination) checkSettings(context.Context) (found []driver.Finding) {
	warn := func(code, message, remedy string) {
		found = append(found, driver.Finding{Severity: driver.Warning, Check: "settings", Code: code, Message: message, Remedy: remedy})
	}
	for _, warning := range x.settings.warnings {
		warn("setting-ignored", warning+": the default is used", "correct the setting and restart blockvol")
	}
	if x.settings.noPeers != nil {
		warn("no-peers", "other nodes are neither asked for volumes nor answered: "+x.settings.noPeers.Error(), "correct the setting and restart blockvol")
	}
	if x.settings.noCreate != nil {
		cause, _, _ := strings.Cut(x.settings.noCreate.Error(), correction)
		found = append(found, driver.Finding{
			Severity: driver.Problem, Check: "settings", Code: "no-create", Message: "no volume can be created: " + cause, Remedy: "correct the settings and restart blockvol",
		})
	}
	for _, s := range generalSettings {
		if s.Secret {
			found = append(found, x.checkFile(s)...)
		}
	}
	for _, name := range providerNames() {
		for _, s := range constructors[name].settings {
			switch {
			case name != x.settings.provider && s.Secret && x.isSet(s) && slices.Contains(providerNames(), x.settings.provider):
				warn("setting-unused", fmt.Sprintf("%s is set, which is for PROVIDER=%s, and PROVIDER is %s", s.Name, name, x.settings.provider), "set PROVIDER to the cloud that this node is in, or leave the other setting out")
			case name == x.settings.provider && s.Secret:
				found = append(found, x.checkFile(s)...)
			}
		}
	}
	if len(found) == 0 && x.wrong == nil {
		found = append(found, driver.Finding{Severity: driver.OK, Check: "settings", Message: "no setting is wrong, or for another provider"})
	}
	return found
}

func (x *examination) isSet(s providers.Setting) bool {
	return x.getenv(s.Name) != "" || x.getenv(s.Name+providers.FileSuffix) != ""
}

// checkFile finds a file with a secret that others than root can read. That it cannot be read at all, the provider says.
func (x *examination) checkFile(s providers.Setting) []driver.Finding {
	file := x.getenv(s.Name + providers.FileSuffix)
	info, err := os.Stat(file)
	if file == "" || err != nil || info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	return []driver.Finding{{
		Severity: driver.Warning, Check: "settings", Code: "secret-readable",
		Message: fmt.Sprintf("the file that %s names can be read by others than root (mode %04o)", s.Name+providers.FileSuffix, info.Mode().Perm()), Remedy: "chmod 600 " + x.paths.In(file),
	}}
}

// secrets are the values of the secret settings.
func (x *examination) secrets() (all []string) {
	declared := slices.Clone(generalSettings)
	for _, name := range providerNames() {
		declared = append(declared, constructors[name].settings...)
	}
	for _, s := range declared {
		if !s.Secret {
			continue
		}
		add := func(value string) { // it may be two keys
			all = append(append(all, strings.TrimSpace(value)), strings.Fields(value)...)
		}
		add(x.getenv(s.Name))
		if file := x.getenv(s.Name + providers.FileSuffix); file != "" {
			content, err := os.ReadFile(file)
			if err == nil {
				add(string(content))
			}
		}
	}
	if proxy, err := url.Parse(x.getenv("HTTPS_PROXY")); err == nil && proxy.User != nil {
		password, _ := proxy.User.Password()
		all = append(all, password)
	}
	return all
}
