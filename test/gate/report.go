package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
)

// record is the duration of a step, a package, or a test. A Repeated test has failed before.
type record struct {
	Step     string  `json:",omitempty"`
	Package  string  `json:",omitempty"`
	Test     string  `json:",omitempty"`
	Seconds  float64 `json:",omitempty"`
	Repeated bool    `json:",omitempty"`
}

// recordFile is a file of records. Several processes can append to it at the same time.
type recordFile string

const minSeconds = 0.5 // seconds; shorter durations are not recorded

func (path recordFile) add(r record) {
	if r.Seconds < minSeconds && !r.Repeated {
		return
	}
	line, err := json.Marshal(r)
	if err != nil {
		fatal(err)
	}
	f, err := os.OpenFile(string(path), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		fatal(err)
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		fatal(err)
	}
	if err := f.Close(); err != nil {
		fatal(err)
	}
}

func (path recordFile) read() (all []record, err error) {
	text, err := os.ReadFile(string(path))
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, r)
	}
	return all, nil
}

const (
	shownPackages = 25
	shownTests    = 25
)

// report prints the durations, and then the repeated tests.
func report(w io.Writer, records []record) {
	var steps, packages, tests []record
	var repeated []string
	for _, r := range records {
		r.Package = strings.TrimPrefix(r.Package, "github.com/blockvol/blockvol/")
		switch {
		case r.Repeated:
			repeated = append(repeated, r.Test)
		case r.Step != "":
			steps = append(steps, r)
		case r.Test == "":
			packages = append(packages, r)
		default:
			tests = append(tests, r)
		}
	}
	section(w, "where the time went; some steps run side by side", steps, len(steps), func(r record) string { return r.Step })
	section(w, "the slowest packages", packages, shownPackages, func(r record) string { return r.Package })
	section(w, "the slowest tests", tests, shownTests, func(r record) string { return r.Package + " " + r.Test })
	switch len(repeated) {
	case 0:
		fmt.Fprintln(w, "repeated: none")
	case 1:
		fmt.Fprintln(w, "repeated: 1 test:", repeated[0])
	default:
		fmt.Fprintf(w, "repeated: %d tests: %s\n", len(repeated), strings.Join(repeated, ", "))
	}
}

func section(w io.Writer, title string, records []record, most int, name func(record) string) {
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(b.Seconds, a.Seconds) })
	fmt.Fprintf(w, "== %s\n", title)
	for _, r := range records[:min(most, len(records))] {
		seconds := int(math.Round(r.Seconds))
		fmt.Fprintf(w, "%4d:%02d  %s\n", seconds/60, seconds%60, name(r))
	}
}
