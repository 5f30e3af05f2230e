package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/blockvol/blockvol/test/violation"
)

// gate runs go test and prints its output. With repeat, failed tests run once more, alone, unless the package's output contains
// one of forbidding.
type gate struct {
	flags  []string
	repeat bool
	run    func(args []string, out func(line []byte)) error // go test -json
	out    io.Writer
	note   func(record)
}

// forbidding are the texts that make a failure final.
var forbidding = []string{violation.Prefix, "DATA RACE", "panic: ", "fatal error: "}

// test reports whether all tests of the packages pass, possibly when repeated.
func (g *gate) test(packages []string) bool {
	runs, err := g.once(append(slices.Clone(g.flags), packages...))
	if err == nil {
		return true
	}
	if !g.repeat || len(runs) == 0 {
		return false
	}
	var failed []*run
	for _, r := range runs {
		switch {
		case !r.failed:
		case r.final != "":
			fmt.Fprintf(g.out, "== %s is not repeated: %q is in its output\n", r.name, strings.TrimSpace(r.final))
			return false
		case len(r.tests) == 0 || len(r.texts) > 0:
			fmt.Fprintf(g.out, "== %s is not repeated: it ended before all tests had a result\n", r.name)
			return false
		default:
			failed = append(failed, r)
		}
	}
	if len(failed) == 0 { // no package has failed, but go test has
		return false
	}
	ok := true
	for _, r := range failed {
		fmt.Fprintf(g.out, "== repeating %s of %s\n", strings.Join(r.tests, ", "), r.name)
		for _, test := range r.tests {
			g.note(record{Package: r.name, Test: test, Repeated: true})
		}
		again, err := g.once(append(slices.Clone(g.flags), "-count=1", "-run=^("+strings.Join(quoted(r.tests), "|")+")$", r.name))
		ok = ok && err == nil && len(again) == 1 && again[r.name] != nil && !again[r.name].failed && again[r.name].passed == len(r.tests)
	}
	return ok
}

func quoted(tests []string) (all []string) {
	for _, test := range tests {
		all = append(all, regexp.QuoteMeta(test))
	}
	return all
}

// run is the result of a package.
type run struct {
	name   string
	failed bool
	passed int                      // number of top-level tests
	tests  []string                 // failed tests
	final  string                   // the text that forbids a repetition
	texts  map[string]*bytes.Buffer // output of top-level tests without a result
}

// event is an event of `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

// once runs go test, prints the output of failures, and records the durations of tests and packages.
func (g *gate) once(args []string) (map[string]*run, error) {
	runs := map[string]*run{}
	err := g.run(args, func(line []byte) {
		var e event
		if json.Unmarshal(line, &e) != nil || e.Package == "" {
			if e.Output != "" { // compiler output
				line = []byte(e.Output)
			}
			if e.Action == "" || e.Output != "" {
				g.out.Write(line) //nolint:errcheck // a log
			}
			return
		}
		r := runs[e.Package]
		if r == nil {
			r = &run{name: e.Package, texts: map[string]*bytes.Buffer{}}
			runs[e.Package] = r
		}
		g.take(r, e)
	})
	return runs, err
}

func (g *gate) take(r *run, e event) {
	top, _, sub := strings.Cut(e.Test, "/")
	switch e.Action {
	case "run":
		if !sub {
			r.texts[top] = &bytes.Buffer{}
		}
	case "output":
		if i := slices.IndexFunc(forbidding, func(text string) bool { return strings.Contains(e.Output, text) }); i >= 0 && r.final == "" {
			r.final = forbidding[i]
		}
		if text := r.texts[top]; text != nil {
			if !strings.HasPrefix(e.Output, "=== ") {
				text.WriteString(e.Output)
			}
		} else if e.Output != "PASS\n" {
			io.WriteString(g.out, e.Output) //nolint:errcheck // a log
		}
	case "pass", "fail", "skip":
		failed := e.Action == "fail"
		switch {
		case e.Test == "":
			r.failed = failed
			for _, text := range r.texts { // of tests without a result
				g.out.Write(text.Bytes()) //nolint:errcheck // a log
			}
		case !sub:
			if failed {
				r.tests = append(r.tests, top)
				g.out.Write(r.texts[top].Bytes()) //nolint:errcheck // a log
			} else if e.Action == "pass" {
				r.passed++
			}
			delete(r.texts, top)
		}
		g.note(record{Package: e.Package, Test: e.Test, Seconds: e.Elapsed})
	}
}

// goTest runs `go test -json`.
func goTest(args []string, out func(line []byte)) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			out(line)
		}
		if err != nil {
			break
		}
	}
	return cmd.Wait()
}
