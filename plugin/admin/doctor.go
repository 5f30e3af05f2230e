package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/driver"
)

// Report is the result of an examination.
type Report struct {
	About
	State    string    `json:"state"`          // starting, serving or broken
	Node     string    `json:"node,omitempty"` // its id, as the cloud knows it
	At       time.Time `json:"at"`             // when it began
	Took     float64   `json:"took_seconds"`
	Findings []Finding `json:"findings"` // the worst first
}

// Finding is the result of one check.
type Finding struct {
	Severity string `json:"severity"`         // ok, warning or problem
	Check    string `json:"check"`            // what was checked
	Code     string `json:"code,omitempty"`   // what was found; missing if Severity is ok
	Volume   string `json:"volume,omitempty"` // the volume that it is about
	Message  string `json:"message"`          // a sentence, the cause first
	Remedy   string `json:"remedy,omitempty"` // what to do; missing if Severity is ok
}

// Count is how many findings have that severity.
func (r Report) Count(severity string) (n int) {
	for _, f := range r.Findings {
		if f.Severity == severity {
			n++
		}
	}
	return n
}

// Check is a part of an examination. It changes nothing, and returns what it has found when ctx ends.
type Check func(ctx context.Context) []driver.Finding

const (
	checkTime = 40 * time.Second          // what a check may take
	checkWait = checkTime + 5*time.Second // how long it is waited for: one that hangs in the kernel ignores its context
	longJob   = time.Hour                 // the least time after which a job is reported
)

// examination is what is checked.
type examination struct {
	mu      sync.Mutex
	checks  []namedCheck
	secrets func() []string // what no finding may contain
}

type namedCheck struct {
	name  string
	check Check
}

// AddCheck makes a check part of each examination. The name is for people.
func (s *Server) AddCheck(name string, check Check) {
	s.examination.mu.Lock()
	defer s.examination.mu.Unlock()
	s.examination.checks = append(s.examination.checks, namedCheck{name, check})
}

// HideInFindings says what no finding may contain, though checks take care of that themselves.
func (s *Server) HideInFindings(secrets func() []string) {
	s.examination.mu.Lock()
	defer s.examination.mu.Unlock()
	s.examination.secrets = secrets
}

// doctor examines this node and its cloud, whether volumes can be served or not.
func (s *Server) doctor(r *http.Request) (any, error) {
	begun := time.Now()
	notReady := s.ready(r.Context())
	report := Report{About: s.about, State: Serving, At: begun.UTC()}
	s.examination.mu.Lock()
	checks, hidden := slices.Clone(s.examination.checks), []string(nil)
	if s.examination.secrets != nil {
		hidden = s.examination.secrets()
	}
	s.examination.mu.Unlock()
	checks = append([]namedCheck{{"plugin", func(context.Context) []driver.Finding { return s.checkPlugin(notReady) }}, {"jobs", s.checkJobs}}, checks...)
	ctx, cancel := context.WithTimeout(r.Context(), checkTime)
	defer cancel()
	results := make([][]driver.Finding, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() { results[i] = s.check(ctx, c) })
	}
	all.Wait()
	switch {
	case s.isOpen() && s.broken != nil:
		report.State = Broken
	case notReady != nil:
		report.State = Starting
	default:
		here, cancel := context.WithTimeout(r.Context(), identityTimeout)
		defer cancel()
		node, _ := s.driver.Node(here) // a finding says why it is not known
		report.Node = node.ID
	}
	for _, f := range slices.Concat(results...) {
		report.Findings = append(report.Findings, Finding{
			Severity: string(f.Severity), Check: f.Check, Code: f.Code, Volume: f.Volume, Message: hide(s.paths.In(f.Message), hidden), Remedy: hide(s.paths.In(f.Remedy), hidden),
		})
	}
	rank := map[string]int{string(driver.Problem): 1, string(driver.Warning): 2, string(driver.OK): 3}
	slices.SortStableFunc(report.Findings, func(a, b Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	report.Took = time.Since(begun).Seconds()
	return report, nil
}

func (s *Server) isOpen() bool {
	select {
	case <-s.opened:
		return true
	default:
		return false
	}
}

// check makes one check. It returns though the check does not.
func (s *Server) check(ctx context.Context, c namedCheck) []driver.Finding {
	done := make(chan []driver.Finding, 1)
	go func() {
		defer func() {
			if cause := recover(); cause != nil {
				s.log.WithField("stack", string(debug.Stack())).Errorf("Panic: %v", cause)
				done <- []driver.Finding{{
					Severity: driver.Problem, Check: "doctor", Code: "check-failed", Message: "the check of " + c.name + " has failed: " + errPanic.Error(), Remedy: "report it with blockvol's log",
				}}
			}
		}()
		done <- c.check(ctx)
	}()
	late := time.NewTimer(checkWait)
	defer late.Stop()
	select {
	case found := <-done:
		return found
	case <-late.C:
		return []driver.Finding{{
			Severity: driver.Problem, Check: "doctor", Code: "check-unfinished", Message: fmt.Sprintf("the check of %s has not ended within %s", c.name, checkWait),
			Remedy: "look for a disk that hangs in the kernel's log (dmesg), and whether the cloud answers",
		}}
	}
}

// checkPlugin finds out whether volumes are served.
func (s *Server) checkPlugin(notReady error) []driver.Finding {
	switch {
	case notReady == nil:
		return []driver.Finding{{Severity: driver.OK, Check: "plugin", Message: fmt.Sprintf("blockvol %s serves volumes", s.about.Version)}}
	case s.isOpen() && s.broken != nil:
		cause, remedy, _ := strings.Cut(s.broken.Error(), ": correct ") // as sentences about settings end
		if remedy != "" {
			remedy = "correct " + remedy
		}
		return []driver.Finding{{
			Severity: driver.Problem, Check: "plugin", Code: "not-serving", Message: "blockvol serves no volumes: " + cause,
			Remedy: cmp.Or(remedy, "correct that, and restart blockvol: docker plugin disable --force, docker plugin set, docker plugin enable"),
		}}
	}
	return []driver.Finding{{Severity: driver.Warning, Check: "plugin", Code: "starting", Message: "blockvol has started, and is not ready yet", Remedy: "try again"}}
}

// checkJobs finds jobs that do not end, and those that cannot be read.
func (s *Server) checkJobs(context.Context) (found []driver.Finding) {
	if !s.isOpen() || s.jobs == nil {
		return nil
	}
	all := s.jobs.list()
	known := make(map[string]bool, len(all))
	running := 0
	for _, job := range all {
		known[job.ID] = true
		if job.State != Running {
			continue
		}
		running++
		if time.Since(job.Began) > longJob {
			found = append(found, driver.Finding{
				Severity: driver.Warning, Check: "jobs", Code: "job-unfinished", Volume: job.Volume,
				Message: fmt.Sprintf("the job %s (%s) has not ended since %s: %s", job.ID, job.Kind, job.Began.Format(time.RFC3339), cmp.Or(job.Message, "it has not begun")),
				Remedy:  "see with blockvol wait " + job.ID + " how it goes on, and what the cloud says of the disk",
			})
		}
	}
	files, err := os.ReadDir(s.jobs.dir)
	if err != nil {
		return append(found, driver.Finding{
			Severity: driver.Problem, Check: "jobs", Code: "jobs-unreadable", Message: fmt.Sprintf("the directory of jobs cannot be read: %v", err), Remedy: "look for errors of its disk in the kernel's log (dmesg)",
		})
	}
	for _, f := range files {
		if id, is := strings.CutSuffix(f.Name(), ".json"); is && !known[id] && s.isLost(id) {
			found = append(found, driver.Finding{
				Severity: driver.Warning, Check: "jobs", Code: "job-unreadable", Message: fmt.Sprintf("the record of job %s cannot be read, so it is not continued: %s", id, filepath.Join(s.jobs.dir, f.Name())),
				Remedy: "see with blockvol status whether its volume is as it should be, and remove the file",
			})
		}
	}
	if len(found) == 0 {
		found = append(found, driver.Finding{Severity: driver.OK, Check: "jobs", Message: fmt.Sprintf("no job is overdue; %d run", running)})
	}
	return found
}

// isLost tells whether a job that was not in the list a moment ago is not one that has begun since.
func (s *Server) isLost(id string) bool {
	s.jobs.mu.Lock()
	defer s.jobs.mu.Unlock()
	return s.jobs.all[id] == nil
}

// hide takes the secrets out of a text.
func hide(text string, secrets []string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 { // less is no secret, and could be a part of any word
			text = strings.ReplaceAll(text, secret, "…")
		}
	}
	return text
}
