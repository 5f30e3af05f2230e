// Command gate runs the steps of scripts/test, and records durations and repeated tests in a file.
//
//	gate step FILE NAME COMMAND...                   run a command
//	gate test FILE [-repeat] FLAG... -- PACKAGE...   run go test
//	gate report FILE                                 print the summary of the file
package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"
)

func main() {
	args := os.Args[1:]
	if len(args) < 2 {
		usage()
	}
	command, file, args := args[0], recordFile(args[1]), args[2:]
	switch {
	case command == "step" && len(args) > 1:
		os.Exit(step(file, args[0], args[1:]))
	case command == "test" && slices.Contains(args, "--"):
		repeat := args[0] == "-repeat"
		if repeat {
			args = args[1:]
		}
		split := slices.Index(args, "--")
		g := gate{flags: args[:split], repeat: repeat, run: goTest, out: os.Stdout, note: file.add}
		if !g.test(args[split+1:]) {
			os.Exit(1)
		}
	case command == "report" && len(args) == 0:
		records, err := file.read()
		if err != nil {
			fatal(err)
		}
		report(os.Stdout, records)
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: gate step FILE NAME COMMAND... | gate test FILE [-repeat] FLAG... -- PACKAGE... | gate report FILE")
	os.Exit(2)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "gate:", err)
	os.Exit(1)
}

// step runs a command, records its duration, and returns its exit status.
func step(file recordFile, name string, command []string) (status int) {
	begin := time.Now()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	file.add(record{Step: name, Seconds: time.Since(begin).Seconds()})
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "gate: %s: %v\n", name, err)
	return max(1, cmd.ProcessState.ExitCode())
}
