// Command writer writes a ledger on a volume and acknowledges each record to a collector, see package ledger.
//
// It needs no cgo and can be the only process of a container.
//
//	writer --file /data/ledger --to 10.0.0.1:7000 --name SERVICE
//	writer --verify /data/ledger
//
// The environment variables NODE and TASK identify it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/blockvol/blockvol/test/cluster/ledger"
)

func main() {
	// The first process of a container has no default signal handlers, so it must catch signals.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	w := ledger.Writer{Node: os.Getenv("NODE"), Task: os.Getenv("TASK")}
	var verify string
	flags := flag.NewFlagSet("writer", flag.ContinueOnError)
	flags.StringVar(&w.Path, "file", "", "the ledger: a `file` on the volume")
	flags.StringVar(&w.To, "to", "", "the collector's `address` and port")
	flags.StringVar(&w.Name, "name", "", "the service's `name`, the same on every node")
	flags.Float64Var(&w.Rate, "rate", 20, "maximum number of records per second; 0 is unlimited")
	flags.StringVar(&verify, "verify", "", "verify a `file`, print its summary as JSON, and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case verify != "":
		return printSummary(verify, out)
	case w.Path == "" || w.To == "" || w.Name == "":
		return errors.New("--file, --to and --name are required")
	case w.Rate < 0:
		return errors.New("--rate must not be negative")
	}
	return w.Run(ctx)
}

func printSummary(path string, out io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	summary, err := ledger.Verify(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return json.NewEncoder(out).Encode(summary)
}
