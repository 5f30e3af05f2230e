package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/blockvol/blockvol/plugin/admin"
)

// interval is how often keep looks whether the plugin is as it should be.
const interval = 30 * time.Second

// keep applies the target, and again whenever the plugin is not as it should be, until ctx ends. Errors: it cannot be made so.
func (i *installer) keep(ctx context.Context) error {
	if err := os.RemoveAll(marker); err != nil {
		return err
	}
	if err := i.apply(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		why, err := i.amiss(ctx)
		if why != "" {
			i.log.Print(why)
			err = i.apply(ctx)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// amiss says what an operator has changed.
func (i *installer) amiss(ctx context.Context) (why string, err error) {
	p, err := i.look(ctx, plugin)
	switch {
	case err != nil:
		return "", err
	case p == nil:
		return "the plugin was removed", nil
	case p.Reference != i.reference:
		return fmt.Sprintf("the plugin is %s", p.Reference), nil
	case !p.Enabled:
		return "the plugin is disabled", nil
	}
	if (target{settings: i.settings}).missing(*p) != nil {
		return "settings of the plugin were changed", nil
	}
	status, err := i.client(p.ID).Status(ctx)
	if err == nil && status.State == admin.Broken {
		err = fail(codeSettings, "blockvol serves no volumes: %s", status.Problem)
	}
	return "", err
}
