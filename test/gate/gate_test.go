package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/violation"
)

const pkg = "github.com/blockvol/blockvol/test/cluster"

// says returns the events of a test that prints lines and ends with the verdict, or has no result if that is "".
func says(test, verdict string, lines ...string) []event {
	log := []event{{Action: "run", Package: pkg, Test: test}, {Action: "output", Package: pkg, Test: test, Output: "=== RUN   " + test + "\n"}}
	for _, line := range lines {
		log = append(log, event{Action: "output", Package: pkg, Test: test, Output: line + "\n"})
	}
	if verdict == "" {
		return log
	}
	return append(log, event{Action: "output", Package: pkg, Test: test, Output: "--- " + strings.ToUpper(verdict) + ": " + test + "\n"},
		event{Action: verdict, Package: pkg, Test: test, Elapsed: 7})
}

// ends returns the events of the end of a package.
func ends(verdict string, lines ...string) (log []event) {
	for _, line := range lines {
		log = append(log, event{Action: "output", Package: pkg, Output: line + "\n"})
	}
	return append(log, event{Action: verdict, Package: pkg, Elapsed: 30})
}

// suite replays events instead of running go test: one list for each run.
type suite struct {
	logs [][]event
	args []string // of each run
}

func (s *suite) run(args []string, out func([]byte)) error {
	s.args = append(s.args, strings.Join(args, " "))
	if len(s.args) > len(s.logs) {
		return errors.New("one run too many")
	}
	log := s.logs[len(s.args)-1]
	var err error
	for _, e := range log {
		line, marshalling := json.Marshal(e)
		if marshalling != nil {
			return marshalling
		}
		out(line)
		if e.Action == "fail" {
			err = errors.New("exit status 1")
		}
	}
	return err
}

// judged returns the result for these events, the output, and the summary.
func judged(t *testing.T, repeat bool, logs ...[]event) (ok bool, s *suite, printed, summary string) {
	t.Helper()
	s = &suite{logs: logs}
	var out, end bytes.Buffer
	file := recordFile(filepath.Join(t.TempDir(), "records"))
	file.add(record{Step: "fuzzing", Seconds: 61})
	g := gate{flags: []string{"-short"}, repeat: repeat, run: s.run, out: &out, note: file.add}
	ok = g.test([]string{"./test/cluster"})
	records, err := file.read()
	require.NoError(t, err)
	report(&end, records)
	return ok, s, out.String(), end.String()
}

func join(logs ...[]event) (all []event) {
	for _, log := range logs {
		all = append(all, log...)
	}
	return all
}

func TestPassingTestsRunOnceAndTheirOutputIsNotPrinted(t *testing.T) {
	ok, s, printed, summary := judged(t, true, join(says("TestMoves", "pass", "a detail"), says("TestLong", "skip"), ends("pass", "PASS", "ok  \t"+pkg+"\t30s")))
	assert.True(t, ok)
	assert.Equal(t, []string{"-short ./test/cluster"}, s.args)
	assert.Equal(t, "ok  \t"+pkg+"\t30s\n", printed)
	assert.Contains(t, summary, "   1:01  fuzzing\n")
	assert.Contains(t, summary, "   0:30  test/cluster\n")
	assert.Contains(t, summary, "   0:07  test/cluster TestMoves\n")
	assert.True(t, strings.HasSuffix(summary, "\nrepeated: none\n"), summary)
}

func TestOnlyFailedTestsAreRepeated(t *testing.T) {
	first := join(says("TestGood", "pass"), says("TestSlow/row", "fail", "too slow"), says("TestSlow", "fail"), says("TestLate", "fail", "too late"), ends("fail", "FAIL"))
	ok, s, printed, summary := judged(t, true, first, join(says("TestSlow", "pass"), says("TestLate", "pass"), ends("pass")))
	assert.True(t, ok)
	assert.Equal(t, []string{"-short ./test/cluster", "-short -count=1 -run=^(TestSlow|TestLate)$ " + pkg}, s.args)
	assert.Contains(t, printed, "too slow")
	assert.True(t, strings.HasSuffix(summary, "\nrepeated: 2 tests: TestSlow, TestLate\n"), summary)

	one := join(says("TestSlow", "fail"), ends("fail"))
	ok, _, _, summary = judged(t, true, one, one)
	assert.False(t, ok, "it fails again")
	assert.True(t, strings.HasSuffix(summary, "\nrepeated: 1 test: TestSlow\n"), summary)

	ok, _, _, _ = judged(t, true, one, ends("pass", "testing: warning: no tests to run"))
	assert.False(t, ok, "a repetition without tests is no success")

	ok, s, _, _ = judged(t, false, one)
	assert.False(t, ok)
	assert.Len(t, s.args, 1, "no repetition without -repeat")
}

func TestViolationIsNeverRepeated(t *testing.T) {
	v := violation.Of(errors.New("db: two writers at once: …")).Error()
	for name, log := range map[string][]event{
		"in the test that fails":        join(says("TestMoves", "fail", "    moves_test.go:10: "+v), ends("fail")),
		"in a subtest":                  join(says("TestMoves", ""), says("TestMoves/drain", "fail", v), says("TestMoves", "fail"), ends("fail")),
		"in an assertion's message":     join(says("TestMoves", "fail", "\tMessages:   \t"+violation.Textf("%d lines are lost", 3)), ends("fail")),
		"in another test, which passes": join(says("TestOther", "pass", v), says("TestMoves", "fail"), ends("fail")),
		"after all tests":               join(says("TestMoves", "fail"), ends("fail", v)),
		"beside a data race":            join(says("TestMoves", "fail", "WARNING: DATA RACE"), ends("fail")),
	} {
		ok, s, printed, summary := judged(t, true, log)
		assert.False(t, ok, name)
		assert.Len(t, s.args, 1, name)
		assert.Contains(t, printed, "is not repeated", name)
		assert.True(t, strings.HasSuffix(summary, "\nrepeated: none\n"), summary)
	}
}

func TestIncompleteRunIsNotRepeated(t *testing.T) {
	for name, log := range map[string][]event{
		"a timeout": join(says("TestMoves", "fail"), says("TestSlow", "", "panic: test timed out after 40m0s"), ends("fail")),
		"a kill":    join(says("TestMoves", "fail"), says("TestSlow", "", "what it was at"), ends("fail", "signal: killed")),
		"a cleanup": ends("fail", "the simulated cloud: …"),
	} {
		ok, s, printed, _ := judged(t, true, log)
		assert.False(t, ok, name)
		assert.Len(t, s.args, 1, name)
		for _, e := range log {
			if e.Action == "output" && !strings.HasPrefix(e.Output, "=== ") {
				assert.Contains(t, printed, e.Output, name)
			}
		}
	}
}

func TestGoTestOutputIsParsed(t *testing.T) {
	var actions []string
	err := goTest([]string{"-run=^$", "."}, func(line []byte) {
		var e event
		require.NoError(t, json.Unmarshal(line, &e), "%s", line)
		actions = append(actions, fmt.Sprint(e.Action, e.Package))
	})
	require.NoError(t, err)
	assert.Contains(t, actions, "passgithub.com/blockvol/blockvol/test/gate")
}
