package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockvol/blockvol/plugin/admin"
)

func (o *operator) eventsCommand() *cobra.Command {
	cmd := o.command("events [VOLUME]", "Show what has happened on this node lately, and how long it took", cobra.MaximumNArgs(1), func(args []string) error {
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		all, err := o.client.Events(o.ctx, name)
		if err != nil {
			return err
		}
		if printed, err := o.print(admin.Events{Events: all}); printed {
			return err
		}
		rows := make([][]string, len(all))
		for i, e := range all {
			took := ""
			if e.Kind == admin.CallEvent || e.Kind == admin.PhaseEvent {
				took = time.Duration(e.Took * float64(time.Second)).Round(time.Millisecond).String()
			}
			rows[i] = []string{e.At.Local().Format(time.DateTime), e.Volume, wordsOf(e), took, resultOf(e)}
		}
		return o.table([]string{"ENDED", "VOLUME", "WHAT", "TOOK", "RESULT"}, rows)
	})
	cmd.Aliases = []string{"logs"}
	cmd.Long = cmd.Short + ": the answers to Docker, and before each the phases of its work; takeovers; nodes that were powered off; and what blockvol has found by itself. " +
		"The last 1,000 since the plugin's start are remembered."
	return cmd
}

func wordsOf(e admin.Event) string {
	switch e.Kind {
	case admin.PhaseEvent:
		return "  " + e.What // of the call below
	case admin.TakeoverEvent:
		return "taken over from " + e.What
	case admin.FenceEvent:
		return "powered off: " + e.What
	case admin.FindingEvent:
		return "found: " + e.What
	case admin.CallEvent:
	}
	return e.What
}

func resultOf(e admin.Event) string {
	switch {
	case e.Error != nil:
		return fmt.Sprintf("%s: %s", e.Error.Code, e.Error.Message)
	case e.Kind == admin.CallEvent:
		return "ok"
	}
	return e.Reason
}
