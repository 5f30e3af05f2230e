// Command blockvol is a volume plugin for Docker: one named volume is one disk, which follows its container from node to
// node.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker in builds that are shipped.
var version string

func main() {
	// It runs on every node and needs little processor time: it trades that for memory.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(33)
	}
	if cmd, err := command().ExecuteC(); err != nil {
		if !cmd.HasParent() { // there is no such command or flag
			err = wrongUse(cmd, err)
		}
		fmt.Fprintln(os.Stderr, "blockvol:", err)
		os.Exit(exitCode(err))
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "blockvol",
		Short:         "A volume plugin for Docker: one named volume is one disk, which follows its container",
		SilenceErrors: true, // main prints them
		SilenceUsage:  true,
	}
	root.SetHelpCommand(&cobra.Command{Hidden: true}) // -h serves
	root.AddCommand(serveCommand(), &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			cmd.Printf("blockvol %s (%s, %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	})
	root.AddCommand(copyTreeCommand())
	addOperatorCommands(root)
	root.SetOut(os.Stdout)
	return root
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
