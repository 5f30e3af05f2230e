// Command mutate changes blockvol's code in one place at a time and runs the tests of the package, to check that they fail. A
// change that fails no test is a survivor: nobody would notice it. The source tree is not changed: the compiler reads the changed
// files through its -overlay option.
//
// Without arguments it removes the guards listed in guards.go, each in its own build. They are chosen by hand: those that protect
// data.
//
// With packages as arguments it applies the rules of mutants.go to all of their code: a condition becomes false or true, a
// boundary moves, a statement is left out, an error is returned as nil, an operator is replaced by its opposite. One build
// contains all mutants of a package; an environment variable selects the active one. Only the tests that reach a mutant are run,
// the fastest first, so that a thousand mutants take minutes. A package that is tested by another's tests is given with them:
// ./driver/node=./driver.
//
// # Score
//
// Measured on 2026-11-30 with -skip ^TestRandom, so without the randomised runs, which notice more but take longer:
//
//	code                                            mutants  noticed
//	driver                                              818      733  90 %
//	driver/controller                                   606      536  88 %
//	driver/node, journal.go also by its own tests       515      434  84 %
//	providers, batch, keymutex, labels, pace, sanitize, 810      748  92 %
//	recent, rest
//	mount: probe.go, format.go, options.go              338      296  88 %
//	the rest of mount                             not measured
//
// Before driver had packages of its own, its score was 75 % in the morning and 91 % after the tests of that day.
//
// # Survivors
//
// The survivors in driver, before it was split, and in what clouds share were read. They are of these kinds; one of another kind
// is a missing test.
//
//   - Only the log differs, or how often something is asked or written that is known already: the conditions in front of a
//     journal entry that need not be rewritten, of the second question before a format, of the pace of polling.
//   - Another check refuses the same right behind it: a value that is zero after an error is compared next, the cloud or the
//     journal refuses again.
//   - The kernel would have to fail where a test cannot make it: fstat, fsync and close of open files, /proc, memory files,
//     read errors of a disk.
//   - It only frees memory, or ends sooner what its context ends anyway.
//   - A limit in time or a length is off by the smallest step. Limits in time are counted as explained.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// guard is a piece of code that protects something.
type guard struct {
	protects string // the property that it protects, as a statement
	file     string // relative to the module's root
	code     string // the guard's text, which occurs once in the file
	without  string // the text that replaces it
	tests    string // packages whose tests must fail; default: the file's, and all of the driver for its halves
	survives string // why no test can fail; "" if one must
}

func main() {
	only := flag.String("only", "", "remove only guards whose file or description matches this regular expression")
	workers := flag.Int("workers", 2, "how many builds to test at once")
	skip := flag.String("skip", "^$", "leave out tests that match this regular expression")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Args(), *only, *skip, *workers); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, packages []string, only, skip string, workers int) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	chosen, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	skipped, err := regexp.Compile(skip)
	if err != nil {
		return fmt.Errorf("-skip: %w", err)
	}
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if len(packages) == 0 {
		return removeGuards(ctx, root, dir, chosen, skip, workers)
	}
	left := 0
	for i, pkg := range packages {
		pkg, tested, other := strings.Cut(pkg, "=")
		if !other {
			tested = pkg
		}
		n, err := mutate(ctx, root, pkg, tested, filepath.Join(dir, strconv.Itoa(i)), chosen, skipped, workers)
		if err != nil {
			return err
		}
		left += n
	}
	if left > 0 {
		return errors.New("no test notices these changes: write one, remove the code, or explain why none can")
	}
	return nil
}

// removeGuards removes the chosen guards, one at a time, and prints those whose removal fails no test.
func removeGuards(ctx context.Context, root, dir string, chosen *regexp.Regexp, skip string, workers int) error {
	var asked []guard
	var packages []string
	for _, g := range guards {
		if chosen.MatchString(g.file) || chosen.MatchString(g.protects) {
			asked = append(asked, g)
			packages = append(packages, strings.Fields(g.packages())...)
		}
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	if len(packages) == 0 {
		return errors.New("-only matches no guard")
	}
	// A test that always fails would count for every guard.
	begun := time.Now()
	if killer, err := test(ctx, root, "", skip, time.Hour, packages); killer != "" || err != nil {
		return errors.Join(fmt.Errorf("the tests must pass before a guard is removed: %s", killer), err)
	}
	limit := time.Minute + 5*time.Since(begun) // on this machine, as busy as it is

	var mu sync.Mutex // protects the counts and the output
	var killed, survived, explained, broken int
	var all sync.WaitGroup
	next := make(chan int)
	for range workers {
		all.Go(func() {
			for i := range next {
				begun := time.Now()
				killer, err := asked[i].remove(ctx, root, filepath.Join(dir, strconv.Itoa(i)), skip, limit)
				mu.Lock()
				took := time.Since(begun).Round(time.Second)
				switch g := asked[i]; {
				case ctx.Err() != nil:
				case err != nil:
					broken++
					fmt.Printf("BROKEN    %s: %s\n          %v\n", g.file, g.protects, err)
				case killer != "":
					killed++
					fmt.Printf("noticed   %s: %s\n          by %s (%s)\n", g.file, g.protects, killer, took)
				case g.survives != "":
					explained++
					fmt.Printf("explained %s: %s\n          %s\n", g.file, g.protects, g.survives)
				default:
					survived++
					fmt.Printf("SURVIVED  %s: %s (%s)\n", g.file, g.protects, took)
				}
				mu.Unlock()
			}
		})
	}
	for i := range asked {
		next <- i
	}
	close(next)
	all.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	fmt.Printf("\nguards removed: %d, noticed by a test: %d, explained: %d, survived: %d, broken: %d\n",
		killed+survived+explained+broken, killed, explained, survived, broken)
	if survived+broken > 0 {
		return errors.New("no test fails without a guard: add one, or correct guards.go")
	}
	return nil
}

// packages returns the packages whose tests must notice that the guard is gone.
func (g guard) packages() string {
	switch {
	case g.tests != "":
		return g.tests
	case strings.HasPrefix(g.file, "driver/"):
		return "./driver/..."
	}
	return "./" + filepath.Dir(g.file)
}

// remove runs the tests without the guard and returns the first failed test, or "".
func (g guard) remove(ctx context.Context, root, dir, skip string, limit time.Duration) (killer string, err error) {
	path := filepath.Join(root, g.file)
	mutant, err := g.mutant(root)
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: filepath.Join(dir, "mutant.go")}})
	if err != nil {
		return "", err
	}
	if err := errors.Join(
		os.Mkdir(dir, 0o700),
		os.WriteFile(filepath.Join(dir, "mutant.go"), mutant, 0o600),
		os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600),
	); err != nil {
		return "", err
	}
	return test(ctx, root, filepath.Join(dir, "overlay.json"), skip, limit, strings.Fields(g.packages()))
}

// test runs the tests of packages on the files of an overlay and returns the first failed test, or "". The limit is each package's.
func test(ctx context.Context, root, overlay, skip string, limit time.Duration, packages []string) (killer string, err error) {
	args := []string{"test", "-count=1", "-failfast", "-skip=" + skip, "-timeout=" + limit.String()}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return "", nil
	case strings.Contains(string(out), "[build failed]"), strings.Contains(string(out), "[setup failed]"):
		return "", fmt.Errorf("it does not build without the guard:\n%s", out)
	}
	return firstFailure(string(out)), nil
}

// mutant returns the file without the guard.
func (g guard) mutant(root string) ([]byte, error) {
	source, err := os.ReadFile(filepath.Join(root, g.file))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(source), g.code); n != 1 {
		return nil, fmt.Errorf("the guard occurs %d times in %s instead of once: %s", n, g.file, g.code)
	}
	return []byte(strings.Replace(string(source), g.code, g.without, 1)), nil
}

var failure = regexp.MustCompile(`(?m)^--- FAIL: (\S+)|^(panic: .*)|^(fatal error: .*)`)

func firstFailure(out string) string {
	m := failure.FindStringSubmatch(out)
	if m == nil {
		return "a test binary that failed without naming a test"
	}
	return m[1] + m[2] + m[3]
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("finding the module's root: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
