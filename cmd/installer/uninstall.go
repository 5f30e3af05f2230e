package main

import (
	"context"
	"strings"
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
		users, err := i.engine.UsersOf(ctx, plugin)
		if err != nil {
			return err
		}
		if users != nil {
			return fail(codeInUse, "volumes are in use by %s: stop these containers first; nothing was removed", strings.Join(users, ", "))
		}
		dirs = sourcesOf(i.settings, settingsOf(*p))
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
		}
		if err := i.engine.RemovePlugin(ctx, name); err != nil {
			return err
		}
	}
	if _, err := i.onTheHost(ctx, dirs, work{Clean: true}, "/usr/local/bin:"+commandDir); err != nil {
		return err
	}
	i.log.Print("blockvol is removed; volumes and their data stay")
	return nil
}
