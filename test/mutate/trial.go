package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A trial is the mutants of one package, and which of its tests reach which.
type trial struct {
	*rewriter
	binary  string
	dir     string           // of the tests' package
	reached map[int][]string // the tests that reach a place, the quickest first
	took    map[string]time.Duration
}

// prepare builds the tests with all mutants of the package in them, and runs each test once to see what it reaches.
func prepare(ctx context.Context, root, pkg, tested, dir string, skip *regexp.Regexp) (*trial, error) {
	r, overlay, err := rewrite(ctx, root, pkg, dir)
	if err != nil {
		return nil, err
	}
	t := &trial{
		rewriter: r, binary: filepath.Join(dir, "tests"), dir: filepath.Join(root, tested),
		reached: make(map[int][]string), took: make(map[string]time.Duration),
	}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", t.binary, tested)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s does not build with its mutants: %w\n%s", pkg, err, out)
	}
	list := exec.CommandContext(ctx, t.binary, "-test.list", "^(Test|Fuzz|Example)")
	list.Dir = t.dir
	names, err := list.Output()
	if err != nil {
		return nil, err
	}
	tests := strings.Fields(string(names))
	reach := filepath.Join(dir, "reached")
	for _, test := range tests {
		if skip.MatchString(test) {
			continue
		}
		if err := os.WriteFile(reach, nil, 0o600); err != nil {
			return nil, err
		}
		begun := time.Now()
		if killer := t.run(ctx, 10*time.Minute, []string{test}, "MUTANTS_REACHED="+reach); killer != "" {
			return nil, fmt.Errorf("the tests must pass before anything is mutated: %s", killer)
		}
		t.took[test] = time.Since(begun)
		places, err := os.ReadFile(reach)
		if err != nil {
			return nil, err
		}
		for _, n := range strings.Fields(string(places)) {
			place, err := strconv.Atoi(n)
			if err != nil {
				return nil, err
			}
			t.reached[place] = append(t.reached[place], test)
		}
	}
	for _, tests := range t.reached {
		slices.SortStableFunc(tests, func(a, b string) int { return cmp.Compare(t.took[a], t.took[b]) })
	}
	return t, nil
}

// run runs tests of the package and returns the first that failed, or "".
func (t *trial) run(ctx context.Context, limit time.Duration, tests []string, env string) (killer string) {
	args := []string{
		"prlimit", "--as=" + strconv.Itoa(8<<30), // a mutant may loop for ever, and take memory each time
		t.binary, "-test.short", "-test.failfast", "-test.timeout", limit.String(), "-test.run", "^(" + strings.Join(tests, "|") + ")$",
	}
	if os.Getuid() == 0 { // what a test has mounted that does not come to its end goes with it
		args = append([]string{"unshare", "--mount"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), env)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return ""
	}
	return firstFailure(string(out))
}

// try runs the tests that reach a mutant, the quick ones first, and returns the first that fails.
func (t *trial) try(ctx context.Context, n int) (killer string) {
	tests := t.reached[t.places[n]]
	for len(tests) > 0 {
		// Quick ones in one go.
		count, sum := 1, t.took[tests[0]]
		for count < len(tests) && sum+t.took[tests[count]] < 2*time.Second {
			sum += t.took[tests[count]]
			count++
		}
		if killer := t.run(ctx, 10*time.Second+5*sum, tests[:count], "MUTANT="+strconv.Itoa(n)); killer != "" {
			return killer
		}
		tests = tests[count:]
	}
	return ""
}

// mutate tries all mutants of a package that only matches, and prints what no test noticed.
func mutate(ctx context.Context, root, pkg, tested, dir string, only, skip *regexp.Regexp, workers int) (survived int, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	t, err := prepare(ctx, root, pkg, tested, dir, skip)
	if err != nil {
		return 0, err
	}
	var mu sync.Mutex // guards the counts and the output
	var total, killed, unreached, explained int
	var all sync.WaitGroup
	next := make(chan int)
	for range workers {
		all.Go(func() {
			for n := range next {
				killer := t.try(ctx, n)
				mu.Lock()
				m, why := t.mutants[n], ""
				if killer == "" {
					why = m.equivalent()
				}
				total++
				switch {
				case ctx.Err() != nil:
				case killer != "":
					killed++
					fmt.Printf("noticed   %s/%s\n          by %s\n", pkg, m, killer)
				case why != "":
					explained++
					fmt.Printf("explained %s/%s\n          %s\n", pkg, m, why)
				case len(t.reached[t.places[n]]) == 0:
					unreached++
					fmt.Printf("UNREACHED %s/%s\n", pkg, m)
				default:
					survived++
					fmt.Printf("SURVIVED  %s/%s\n", pkg, m)
				}
				mu.Unlock()
			}
		})
	}
	for n := 1; n < len(t.mutants) && ctx.Err() == nil; n++ {
		if only.MatchString(t.mutants[n].String()) {
			next <- n
		}
	}
	close(next)
	all.Wait()
	fmt.Printf("\n%s: mutants: %d, noticed by a test: %d, explained: %d, survived: %d, reached by no test: %d\n",
		pkg, total, killed, explained, survived, unreached)
	return survived + unreached, ctx.Err()
}

// equivalent tells why no test can or need notice a mutant; "" where one must.
func (m mutant) equivalent() string {
	for _, e := range equivalents {
		if (e.kind == "" || e.kind == m.kind) && e.code.MatchString(m.file+": "+m.code) {
			return e.why
		}
	}
	return ""
}

var equivalents = []struct {
	kind kind
	code *regexp.Regexp
	why  string
}{
	{boundary, regexp.MustCompile(`time\.Since|\.Sub\(|time\.Now|\.last`), "a limit in time is not promised to the nanosecond"},
}
