package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/plugin/engine"
)

const (
	plugin = "blockvol:latest"      // what volumes name as their driver
	next   = "blockvol-next:latest" // a new version while it is downloaded, beside the one that works
)

const (
	// again is how long a target that was given up is left alone: trying it interrupts the plugin.
	again = 10 * time.Minute
	// answerWithin bounds the question whether registries have what a change needs, and replaceWithin the time for which the plugin is
	// disabled while the engine replaces it: a registry may hang.
	answerWithin, replaceWithin = time.Minute, 2 * time.Minute
)

// noWayBack is the environment variable that permits an update for which the version in use cannot be had again.
const noWayBack = "NO_WAY_BACK"

// installer brings the plugin of one engine to its target.
type installer struct {
	engine    *engine.Client
	image     string // of this process
	root      string // where the engine keeps its data
	sockets   string // where it keeps those of plugins
	reference string // the plugin's, in the registry
	auth      *engine.RegistryAuth
	settings  map[string]string
	secrets   map[string]string
	log       *log.Logger
}

func newInstaller(ctx context.Context, args []string) (*installer, error) {
	i := &installer{sockets: "/run/docker/plugins", log: log.New(os.Stdout, "", 0)}
	var err error
	if i.engine, err = engine.New(os.Getenv("DOCKER_HOST")); err != nil {
		return nil, err
	}
	info, err := i.engine.Info(ctx)
	if err != nil {
		return nil, err
	}
	i.root = info.DockerRootDir
	id, image, err := i.engine.Self(ctx)
	if err != nil {
		return nil, err
	}
	i.image = id
	architecture := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[info.Architecture]
	if i.reference, err = pluginOf(image, architecture); err != nil {
		return nil, err
	}
	if i.settings, err = readSettings(settingsFile); err != nil {
		return nil, err
	}
	for _, arg := range args {
		if err := add(i.settings, arg); err != nil {
			return nil, fail(codeSettings, "%q %w", arg, err)
		}
	}
	if i.secrets, err = readSettings(secretsFile); err != nil {
		return nil, err
	}
	if i.auth, err = takeAuth(i.secrets, i.reference); err != nil {
		return nil, err
	}
	return i, twice(i.settings, i.secrets)
}

// sources are the directories of the host that the plugin has.
type sources struct{ state, volumes string }

const stateSource, volumesSource = "state.source", "volumes.source"

// sourcesOf returns the directories that the settings name, or the plugin has, or that are the default.
func sourcesOf(settings, present map[string]string) sources {
	of := func(name, usual string) string {
		for _, m := range []map[string]string{settings, present} {
			if m[name] != "" {
				return m[name]
			}
		}
		return usual
	}
	return sources{of(stateSource, "/var/lib/blockvol/state"), of(volumesSource, "/var/lib/blockvol/volumes")}
}

// settingsOf returns all settings of a plugin, by the names that change them.
func settingsOf(p engine.Plugin) map[string]string {
	all := map[string]string{}
	for _, setting := range p.Settings.Env {
		name, value, _ := strings.Cut(setting, "=")
		all[name] = value
	}
	if p.Config.Args.Name != "" {
		all[p.Config.Args.Name] = strings.Join(p.Settings.Args, " ")
	}
	for _, m := range p.Settings.Mounts {
		if slices.Contains(m.Settable, "source") {
			all[m.Name+".source"] = m.Source
		}
	}
	return all
}

// has reports whether a plugin has a setting of that name.
func has(p engine.Plugin, name string) bool {
	return name == p.Config.Args.Name ||
		slices.Contains(p.Config.Env, engine.PluginSetting{Name: name}) ||
		slices.ContainsFunc(p.Config.Mounts, func(m engine.PluginMount) bool {
			return name == m.Name+".source" && slices.Contains(m.Settable, "source")
		})
}

// unknown lists the settings with a value that a plugin does not have.
func unknown(p engine.Plugin, settings map[string]string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if settings[name] != "" && !has(p, name) {
			names = append(names, name)
		}
	}
	return names
}

// target is what the plugin shall be.
type target struct {
	reference string
	settings  map[string]string // other settings stay as they are
}

// id identifies the target.
func (t target) id() string {
	sum := sha256.New()
	fmt.Fprintln(sum, t.reference)
	for _, name := range slices.Sorted(maps.Keys(t.settings)) {
		fmt.Fprintf(sum, "%s=%q\n", name, t.settings[name])
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// missing lists the settings that a plugin does not have as the target has them.
func (t target) missing(p engine.Plugin) (changes []string) {
	present := settingsOf(p)
	for _, name := range slices.Sorted(maps.Keys(t.settings)) {
		if present[name] != t.settings[name] {
			changes = append(changes, name+"="+t.settings[name])
		}
	}
	return changes
}

// targetOf adds to the settings the files of secrets, and empties those that an earlier target has set.
func (i *installer) targetOf(r record, files map[string]string) target {
	t := target{i.reference, map[string]string{}}
	maps.Copy(t.settings, i.settings)
	for name, file := range files {
		t.settings[name+"_FILE"] = path.Join("/data/state", secretsDir, file) // as the plugin sees it
		t.settings[name] = ""
	}
	for _, name := range r.Set {
		if _, has := t.settings[name]; !has && !strings.HasSuffix(name, ".source") {
			t.settings[name] = ""
		}
	}
	return t
}

// look asks for a plugin; nil is none.
func (i *installer) look(ctx context.Context, name string) (*engine.Plugin, error) {
	p, err := i.engine.Plugin(ctx, name)
	if errors.Is(err, engine.ErrNotFound) {
		return nil, nil //nolint:nilnil // there is none
	}
	return &p, err
}

// apply brings the plugin to the target. It may be killed at any point and called again: it looks at what is, and at the record.
func (i *installer) apply(ctx context.Context) error {
	if err := i.engine.RemoveJobs(ctx); err != nil {
		return err
	}
	p, err := i.look(ctx, plugin)
	if err != nil {
		return err
	}
	present := map[string]string{}
	if p != nil {
		present = settingsOf(*p)
	}
	if p == nil || !p.Enabled { // an upgrade that was cut off may have reset them
		d, err := i.onTheHost(ctx, sources{}, work{})
		if err != nil {
			return fmt.Errorf("reading what was done before: %w", err)
		}
		if d.Record.Before != nil {
			present = d.Record.Before.Settings
		}
	}
	c := &change{installer: i, dirs: sourcesOf(i.settings, present)}
	d, err := i.onTheHost(ctx, c.dirs, work{Secrets: i.secrets})
	if err != nil {
		return fmt.Errorf("preparing the directories of blockvol: %w", err)
	}
	c.record = d.Record
	c.target, c.secrets = i.targetOf(d.Record, d.Secrets), slices.Collect(maps.Values(d.Secrets))
	return c.apply(ctx, p)
}

// change is one attempt to bring the plugin to the target.
type change struct {
	*installer
	dirs    sources
	record  record
	target  target
	secrets []string // the files of the target
}

func (c *change) apply(ctx context.Context, p *engine.Plugin) error {
	if r := c.record.Refused; r != nil && c.record.Before == nil && r.Target == c.target.id() && r.isFresh() {
		if p != nil && !p.Enabled {
			if err := c.engine.EnablePlugin(ctx, plugin); err != nil {
				return err
			}
		}
		return fail(r.Code, "%s (seen at %s; tried again after %s, or at once when something is changed)", r.Why, r.At.UTC().Format("15:04 MST"), again)
	}
	p, err := c.download(ctx, p)
	if err != nil && (p == nil || p.Enabled) {
		return err
	}
	// From here on SIGTERM waits, so that it does not leave the plugin disabled.
	ctx = context.WithoutCancel(ctx)
	if err == nil {
		err = c.settle(ctx, p)
	}
	if err != nil {
		return c.goBack(ctx, err)
	}
	return c.conclude(ctx)
}

// download gets the plugin of the target from the registry, unless the engine has it: as the plugin, if there is none, or else beside
// the one that works. It returns the plugin as it is then, also with an error.
func (c *change) download(ctx context.Context, p *engine.Plugin) (*engine.Plugin, error) {
	name := plugin
	config := p // of the target's version
	if p != nil {
		name = next
		beside, err := c.look(ctx, next)
		if err != nil {
			return p, err
		}
		if beside != nil && (beside.Reference != c.target.reference || p.Reference == c.target.reference) {
			if err := c.engine.RemovePlugin(ctx, next); err != nil {
				return p, err
			}
			beside = nil
		}
		if beside != nil {
			config = beside
		}
	}
	if config == nil || config.Reference != c.target.reference {
		c.log.Printf("getting %s", c.target.reference)
		granted, err := c.privileges(ctx, c.target.reference)
		if err != nil {
			return p, err
		}
		if err := c.engine.PullPlugin(ctx, name, c.target.reference, granted, c.authFor(c.target.reference)); err != nil {
			return p, fail(codeRegistry, "%s cannot be had: %w", c.target.reference, err)
		}
		if config, err = c.look(ctx, name); err != nil {
			return p, err
		}
		if config == nil {
			return p, fmt.Errorf("the plugin %s was installed and is gone", name)
		}
		if p == nil {
			p = config
		}
	}
	if names := unknown(*config, c.target.settings); names != nil {
		return p, fail(codeSettings, "%s has no setting %s: correct the settings; secrets are for settings that can be a file (NAME_FILE)", c.target.reference, strings.Join(names, ", "))
	}
	return p, nil
}

// settle makes the plugin what the target says, and checks that it works.
func (c *change) settle(ctx context.Context, p *engine.Plugin) error {
	upgrade, enabled := p.Reference != c.target.reference, p.Enabled
	fresh := !enabled && !upgrade && c.record.Done == "" // it was pulled just now, or before this process was killed
	if !fresh && (upgrade || c.target.missing(*p) != nil) {
		if c.record.Before == nil {
			if upgrade {
				if err := c.canBeHad(ctx, p.Reference); err != nil {
					return err
				}
			}
			c.record.Before = &former{p.Reference, settingsOf(*p)}
		}
		if err := c.save(ctx); err != nil {
			c.record.Before = nil
			return err
		}
		if enabled {
			if err := c.engine.DisablePlugin(ctx, plugin); err != nil {
				return err
			}
			enabled = false
		}
	}
	if upgrade {
		c.log.Printf("replacing %s by %s", p.Reference, c.target.reference)
		if err := c.replace(ctx, c.target.reference); err != nil {
			return err
		}
	}
	if !enabled {
		if err := c.set(ctx, c.target.settings); err != nil {
			return err
		}
		if err := c.engine.EnablePlugin(ctx, plugin); err != nil {
			return fmt.Errorf("%s does not start: %w", c.target.reference, err)
		}
	}
	return c.check(ctx, p.ID)
}

// canBeHad asks, while the plugin still works, whether the registries answer for the target's version and for the one in use: the
// engine asks again when it replaces the one by the other, or goes back, though it has the files. Errors: one does not.
func (c *change) canBeHad(ctx context.Context, used string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if err := c.answers(ctx, c.target.reference); err != nil {
		return err
	}
	err := c.answers(ctx, used)
	if err == nil {
		return nil
	}
	if c.record.Done == "" || os.Getenv(noWayBack) != "" {
		c.log.Printf("if %s does not work, there is no way back to what is in use: %v", c.target.reference, err)
		return nil
	}
	return fail(codeRegistry, "nothing was changed, since there would be no way back to what is in use: %w; push it to its registry again, or set the environment variable %s=yes in the stack file", err, noWayBack)
}

// answers asks the registry of a plugin for it. dockerd hides it if there is no answer: then the plugin seems to want no privileges.
func (c *change) answers(ctx context.Context, reference string) error {
	asked, err := c.privileges(ctx, reference)
	if err == nil && len(asked) == 0 {
		err = fail(codeRegistry, "%s cannot be had: its registry does not answer, or does not have it", reference)
	}
	return err
}

// replace replaces the disabled plugin.
func (c *change) replace(ctx context.Context, reference string) error {
	ctx, cancel := context.WithTimeout(ctx, replaceWithin)
	defer cancel()
	granted, err := c.privileges(ctx, reference)
	if err != nil {
		return err
	}
	if err := c.engine.UpgradePlugin(ctx, plugin, reference, granted, c.authFor(reference)); err != nil {
		return fail(codeRegistry, "%s cannot be had: %w", reference, err)
	}
	return nil
}

// set changes settings of the disabled plugin, and the directories of the host, which an upgrade resets.
func (c *change) set(ctx context.Context, settings map[string]string) error {
	p, err := c.engine.Plugin(ctx, plugin)
	if err != nil {
		return err
	}
	all := maps.Clone(settings)
	all[stateSource], all[volumesSource] = c.dirs.state, c.dirs.volumes
	maps.DeleteFunc(all, func(name, value string) bool { return value == "" && !has(p, name) }) // a former version had it
	changes := target{settings: all}.missing(p)
	if len(changes) == 0 {
		return nil
	}
	if err := c.engine.SetPlugin(ctx, plugin, changes); err != nil {
		return fail(codeSettings, "the settings cannot be made: %w", err)
	}
	return nil
}

// conclude remembers that the target works.
func (c *change) conclude(ctx context.Context) error {
	if c.record.Done != c.target.id() || c.record.Before != nil || c.record.Refused != nil {
		set := slices.Sorted(maps.Keys(c.target.settings))
		set = slices.DeleteFunc(set, func(name string) bool { return c.target.settings[name] == "" })
		c.record = record{Set: set, Done: c.target.id()}
		p, err := c.engine.Plugin(ctx, plugin)
		if err != nil {
			return err
		}
		keep := append([]string{}, c.secrets...)
		for _, value := range settingsOf(p) { // of another installer, perhaps
			if path.Dir(value) == path.Join("/data/state", secretsDir) {
				keep = append(keep, path.Base(value))
			}
		}
		if err := c.saveAnd(ctx, work{Keep: keep}); err != nil {
			return err
		}
		c.log.Printf("blockvol works: %s", c.target.reference)
	}
	if beside, err := c.look(ctx, next); err == nil && beside != nil {
		if err := c.engine.RemovePlugin(ctx, next); err != nil {
			return err
		}
	}
	p, err := c.engine.Plugin(ctx, plugin)
	if err == nil {
		program := path.Join(c.root, "plugins", p.ID, "rootfs/usr/bin")
		_, err = c.onTheHost(ctx, c.dirs, work{Command: true}, program+":"+programDir+":ro", "/usr/local/bin:"+commandDir)
	}
	if err != nil {
		c.log.Printf("the command line is not in /usr/local/bin: %v", err)
	}
	return nil
}

// goBack returns to what worked before the change, and says why. Without that, a plugin that has worked is enabled as it is.
func (c *change) goBack(ctx context.Context, why error) error {
	before := c.record.Before
	if before == nil {
		if p, err := c.look(ctx, plugin); err == nil && p != nil && !p.Enabled && c.record.Done != "" {
			_ = c.engine.EnablePlugin(ctx, plugin) // why is the reason if it does not start
		}
		return why
	}
	c.log.Printf("going back to %s, since %v", before.Reference, why)
	if err := c.restore(ctx, before); err != nil {
		return fmt.Errorf("%w; and the former state cannot be had again, so the plugin is disabled or does not work: %w", why, err)
	}
	c.record.Before = nil
	why = fmt.Errorf("%w; %s with its former settings is in use again", why, before.Reference)
	code := codeKept
	if f, is := errors.AsType[*failure](why); is && f.code == codeRegistry { // which may answer the next time
		code = codeRegistry
	} else {
		c.record.Refused = &refusal{Target: c.target.id(), At: time.Now(), Why: why.Error(), Code: code}
	}
	if err := c.save(ctx); err != nil {
		return err
	}
	return fail(code, "%w", why)
}

func (c *change) restore(ctx context.Context, before *former) error {
	p, err := c.engine.Plugin(ctx, plugin)
	if err != nil {
		return err
	}
	if p.Enabled {
		if err := c.engine.DisablePlugin(ctx, plugin); err != nil {
			return err
		}
	}
	if p.Reference != before.Reference {
		if err := c.replace(ctx, before.Reference); err != nil {
			return err
		}
	}
	settings := maps.Clone(before.Settings)
	for name := range c.target.settings {
		if _, had := settings[name]; !had {
			settings[name] = ""
		}
	}
	if p, err = c.engine.Plugin(ctx, plugin); err != nil {
		return err
	}
	for _, name := range unknown(p, settings) { // the former version does not have it
		delete(settings, name)
	}
	c.dirs = sourcesOf(before.Settings, nil)
	if err := c.set(ctx, settings); err != nil {
		return err
	}
	return c.engine.EnablePlugin(ctx, plugin)
}

func (c *change) save(ctx context.Context) error { return c.saveAnd(ctx, work{}) }

func (c *change) saveAnd(ctx context.Context, w work) error {
	w.Record = &c.record
	_, err := c.onTheHost(ctx, c.dirs, w)
	return err
}
