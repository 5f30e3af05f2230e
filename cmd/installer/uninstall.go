package main

import (
	"context"
	"errors"
	"strings"

	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/engine"
)

// uninstall removes the plugin and what was installed with it. Volumes, their disks and the state directory stay. Errors:
// containers use volumes.
func (i *installer) uninstall(ctx context.Context) error {
	if err := i.engine.RemoveJobs(ctx); err != nil {
		return err
	}
	p, err := i.look(ctx, plugin)
	if err != nil {
		return err
	}
	dirs := sourcesOf(i.settings, nil)
	if p != nil {
		dirs = sourcesOf(i.settings, settingsOf(*p))
		if err := i.releaseAll(ctx, *p); err != nil {
			return err
		}
	}
	for _, name := range []string{next, plugin} {
		p, err := i.look(ctx, name)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		if p.Enabled {
			if err := i.engine.DisablePlugin(ctx, name); err != nil {
				return err
			}
			if err := i.unused(ctx); err != nil { // one may have come meanwhile
				return errors.Join(err, i.engine.EnablePlugin(ctx, name))
			}
		}
		if err := i.engine.RemovePlugin(ctx, name); err != nil {
			return err
		}
	}
	if _, err := i.onTheHost(ctx, dirs, work{Clean: true, State: dirs.state}, "/usr/local/bin:"+commandDir); err != nil {
		return err
	}
	i.log.Print("blockvol is removed; volumes and their data stay")
	return nil
}

// releaseAll has the plugin detach the disks that it holds. Errors: a container uses one, or one cannot be detached.
func (i *installer) releaseAll(ctx context.Context, p engine.Plugin) error {
	if err := i.unused(ctx); err != nil {
		return err
	}
	if !p.Enabled {
		return nil
	}
	client := i.client(p.ID)
	status, err := started(ctx, client)
	if err != nil || status.State == admin.Broken {
		return nil //nolint:nilerr // it has done nothing since it was started
	}
	for _, v := range status.Volumes {
		if err := client.Release(ctx, v.Name); err != nil {
			return fail(codeInUse, "%w; nothing was removed", err)
		}
	}
	return nil
}

// unused returns an error if a container uses a volume.
func (i *installer) unused(ctx context.Context) error {
	users, err := i.engine.UsersOf(ctx, plugin)
	if err == nil && users != nil {
		err = fail(codeInUse, "volumes are in use by %s: stop these containers first; nothing was removed", strings.Join(users, ", "))
	}
	return err
}
