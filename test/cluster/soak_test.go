package cluster_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cluster"
	"github.com/blockvol/blockvol/test/cluster/ledger"
	"github.com/blockvol/blockvol/test/violation"
)

var (
	soakFor  = flag.Duration("soak", 0, "how long TestSoak runs; 0 skips it")
	soakSeed = flag.Uint64("soak.seed", 0, "seed of TestSoak, to repeat the choices of the run that printed it")
)

// TestSoak causes random failures of nodes and the cloud while services move at random. After each round everything is
// repaired, and every service must write again. Violations are checked all the time.
//
// A seed repeats the choices, not their timing.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("-soak is not given")
	}
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("soak: -soak.seed %d\n", seed) // printed now, not when the test ends
	s := &soak{t: t, c: shared(t), rand: rand.New(rand.NewPCG(seed, 0)), begin: time.Now()}
	var specs []cluster.WriterSpec
	for i, policy := range []string{"stopped", "always", "fence", "stopped", "always", "fence"} {
		specs = append(specs, cluster.WriterSpec{Name: "soak" + strconv.Itoa(i) + "-" + policy, Driver: driverOf(policy)})
	}
	s.writers = s.c.StartWriters(specs...)
	stop := make(chan struct{})
	var watching sync.WaitGroup
	defer watching.Wait()
	defer close(stop)
	watching.Go(func() { s.watch(stop) })

	for end := time.Now().Add(*soakFor); time.Now().Before(end); s.rounds++ {
		s.round()
	}
	s.c.RemoveWriters(s.writers...)
	s.c.NothingLeft()
	s.check()
	s.logf("%d rounds, the slowest recovery took %.1f s; %d nodes were powered off by TAKEOVER=fence, %d of them needlessly", s.rounds, s.slowest.Seconds(), s.fences, s.needless)
	if s.needless > 0 {
		t.Errorf("%d nodes were powered off that answered others", s.needless)
	}
}

type soak struct {
	t       *testing.T
	c       *cluster.Cluster
	rand    *rand.Rand
	writers []*cluster.Writer
	begin   time.Time
	rounds  int
	slowest time.Duration // recovery

	fences, needless int // nodes that were powered off by TAKEOVER=fence

	nodes sync.Mutex // held while nodes are read or replaced

	mu     sync.Mutex
	broken []string // violations found
}

// recovery is how long services may take to write again after the repair.
const recovery = 5 * time.Minute

func (s *soak) logf(format string, args ...any) {
	s.t.Helper()
	s.t.Logf("%s %7.1f s  %s", time.Now().UTC().Format("15:04:05.000"), time.Since(s.begin).Seconds(), fmt.Sprintf(format, args...))
}

// mishap causes a failure of a node and returns its repair.
type mishap struct {
	name string
	// alive: programs on the node continue unseen by the Swarm, or continue later. With TAKEOVER=always the operator promises
	// that no node does so while it uses a volume. So it happens only to nodes without such a volume.
	alive bool
	// final: the node's data is lost. A Swarm does not survive this on its only manager.
	final bool
	// deaf: the node answers no other, so that TAKEOVER=fence may power it off.
	deaf bool
	do   func(s *soak, n *cluster.Node) (repair func())
}

var mishaps = []mishap{
	{name: "power off", do: func(_ *soak, n *cluster.Node) func() { n.PowerOff(); return n.PowerOn }},
	{name: "power off", do: func(_ *soak, n *cluster.Node) func() { n.PowerOff(); return n.PowerOn }}, // the most frequent one
	{name: "terminate", final: true, do: func(s *soak, n *cluster.Node) func() {
		n.Terminate()
		return func() {
			s.nodes.Lock()
			defer s.nodes.Unlock()
			s.logf("%s is replaced by %s", n.Name, n.Replace().Name)
		}
	}},
	{name: "reboot", do: func(_ *soak, n *cluster.Node) func() { n.Reboot(); return func() {} }},
	{name: "freeze", alive: true, deaf: true, do: func(_ *soak, n *cluster.Node) func() {
		n.Freeze()
		return func() { n.TryThaw() } // it may have been powered off
	}},
	{name: "cut from nodes", alive: true, deaf: true, do: func(_ *soak, n *cluster.Node) func() { n.CutFromNodes(); return n.Heal }},
	{name: "cut from cloud", do: func(_ *soak, n *cluster.Node) func() { n.CutFromCloud(); return n.Heal }},
	{name: "cut from all", alive: true, deaf: true, do: func(_ *soak, n *cluster.Node) func() {
		n.CutFromNodes()
		n.CutFromCloud()
		return n.Heal
	}},
	{name: "kill engine", alive: true, do: func(_ *soak, n *cluster.Node) func() { n.KillEngine(false); return func() {} }},
	{name: "kill engine, which stays down", alive: true, do: func(_ *soak, n *cluster.Node) func() { n.KillEngine(true); return n.StartEngine }},
	{name: "stop engine", do: func(_ *soak, n *cluster.Node) func() { n.StopEngine(); return n.StartEngine }},
	{name: "kill plugin", do: func(_ *soak, n *cluster.Node) func() { n.KillPlugin(); return func() {} }},
	{name: "cloud down", do: func(s *soak, _ *cluster.Node) func() { return s.c.CloudDown() }},
}

// operation is an operator's action on a service.
type operation struct {
	name string
	do   func(s *soak, w *cluster.Writer, n *cluster.Node)
}

var operations = []operation{
	{"update --force", func(_ *soak, w *cluster.Writer, _ *cluster.Node) { w.Update("--force") }},
	{"update", func(s *soak, w *cluster.Writer, _ *cluster.Node) {
		w.Update("--env-add", "ROUND="+strconv.Itoa(s.rounds))
	}},
	{"scale to 0", func(_ *soak, w *cluster.Writer, _ *cluster.Node) { w.Update("--replicas", "0") }},
	{"scale to 1", func(_ *soak, w *cluster.Writer, _ *cluster.Node) { w.Update("--replicas", "1") }},
	{"drain", func(s *soak, _ *cluster.Writer, n *cluster.Node) { s.c.Availability(n, "drain") }},
	{"drain and back", func(s *soak, _ *cluster.Writer, n *cluster.Node) {
		s.c.Availability(n, "drain")
		s.c.Availability(n, "active")
	}},
}

// faults of the cloud's API. An attach may never finish; a detach that never finishes needs an operator and is left out.
var faults = []cloud.Rule{
	{Fault: cloud.Fail, Code: "InternalError"},
	{Fault: cloud.Fail, Code: "Unavailable"},
	{Fault: cloud.Throttle},
	{Fault: cloud.LoseAnswer},
	{Fault: cloud.Truncate},
	{Fault: cloud.Garbage},
	{Fault: cloud.Hang},
	{Fault: cloud.NeverFinish, Action: "AttachVolume"},
}

var actions = []string{"AttachVolume", "DetachVolume", "DescribeVolumes", "DescribeInstances", "CreateTags"}

func pick[T any](s *soak, of []T) T { return of[s.rand.IntN(len(of))] }

// round causes failures, repairs everything, and waits until every service writes.
func (s *soak) round() {
	s.t.Helper()
	// All choices are made first, so that a seed gives the same choices whatever happens.
	type candidate struct {
		mishap
		n *cluster.Node
	}
	var candidates []candidate // the first that is allowed is used
	for range 5 {
		candidates = append(candidates, candidate{pick(s, mishaps), pick(s, s.c.Nodes)})
	}
	early, lasting, fault := s.rand.IntN(2) == 0, time.Duration(5+s.rand.IntN(40))*time.Second, cloud.Rule{}
	if s.rand.IntN(2) == 0 {
		fault = pick(s, faults)
		if action := pick(s, actions); fault.Action == "" {
			fault.Action = action
		}
		fault.Times = 1 + s.rand.IntN(3)
	}
	type chosen struct {
		operation
		w     *cluster.Writer
		n     *cluster.Node
		pause time.Duration
	}
	var todo []chosen
	for range s.rand.IntN(4) {
		todo = append(todo, chosen{pick(s, operations), pick(s, s.writers), pick(s, s.c.Nodes), time.Duration(s.rand.IntN(8)) * time.Second})
	}

	s.logf("round %d", s.rounds)
	var repairs []func()
	before, deaf := len(s.c.PowerOffs()), ""
	if fault.Fault != "" {
		s.logf("fault: %s %s, %d times", fault.Action, fault.Fault, fault.Times)
		repairs = append(repairs, s.c.Cloud.Inject(fault))
	}
	mishap := func() {
		for _, m := range candidates {
			if reason := s.forbids(m.mishap, m.n); reason != "" {
				s.logf("no mishap: %s of %s: %s", m.name, m.n.Name, reason)
				continue
			}
			s.logf("mishap: %s of %s (%s) for %v", m.name, m.n.Name, m.n.Instance, lasting)
			if m.deaf {
				deaf = m.n.Instance
			}
			repairs = append(repairs, m.do(s, m.n))
			return
		}
	}
	if early {
		mishap()
	}
	for _, o := range todo {
		if !s.canOperate() {
			s.logf("no operation: the manager cannot be asked")
			break
		}
		s.logf("operation: %s: %s, %s", o.name, o.w.Name, o.n.Name)
		o.do(s, o.w, o.n)
		s.pause(o.pause)
	}
	if !early {
		mishap()
	}
	s.pause(lasting)
	s.logf("mending")
	for _, repair := range repairs {
		repair()
	}
	s.recovered()
	for _, instance := range s.c.PowerOffs()[before:] {
		s.logf("%s was powered off by TAKEOVER=fence", instance)
		s.fences++
		if instance != deaf {
			s.logf("which was needless")
			s.needless++
		}
	}
}

// forbids returns why a mishap must not happen to a node, or "".
func (s *soak) forbids(f mishap, n *cluster.Node) (reason string) {
	if f.final && n == s.c.Nodes[0] {
		return "it is the manager"
	}
	if !f.alive {
		return ""
	}
	// No task may start there or be starting.
	s.c.Availability(n, "pause")
	defer func() {
		if reason != "" {
			s.c.Availability(n, "active")
		}
	}()
	tasks, err := s.c.Manager().TryDocker("node", "ps", "--format", "{{.Name}} {{.DesiredState}}", n.Name)
	if err != nil {
		return err.Error()
	}
	for _, w := range s.writers {
		if w.Driver != driverOf("always") {
			continue
		}
		if s.holds(n, w) || regexp.MustCompile(`(?m)^`+w.Service+`\..* (Running|Ready|Accepted)$`).MatchString(tasks) {
			return w.Name + " is on it"
		}
	}
	return ""
}

func (s *soak) holds(n *cluster.Node, w *cluster.Writer) bool {
	v, err := s.c.Volume(w.Name)
	return err != nil || len(v.Attachments) > 0 && v.Attachments[0].Instance == n.Instance
}

// canOperate reports whether a manager answers.
func (s *soak) canOperate() bool {
	manager := s.c.Nodes[0]
	if !manager.On() {
		return false
	}
	done := make(chan error, 1)
	go func() {
		_, err := manager.TryDocker("node", "ls")
		done <- err
	}()
	select {
	case err := <-done:
		return err == nil
	case <-time.After(10 * time.Second):
		return false
	}
}

// recovered undoes the operators' actions and waits for all services.
func (s *soak) recovered() {
	s.t.Helper()
	for _, n := range s.c.Nodes {
		n.AwaitOn() // those that were powered off are started again
	}
	s.c.Settle()
	begin := time.Now()
	for _, n := range s.c.Nodes {
		s.c.Availability(n, "active")
	}
	for _, w := range s.writers {
		w.Update("--replicas", "1")
	}
	for _, w := range s.writers {
		last, _ := s.c.Ledger.Last(w.Name)
		ack, err := w.TryAwait(time.Until(begin.Add(recovery)), ledger.After(last))
		if err != nil {
			s.t.Fatalf("%s does not write again: %v\n%s", w.Name, err, w.Story())
		}
		s.logf("%s writes on %s, record %d, %.1f s after the repair", w.Name, ack.Node, ack.Seq, time.Since(begin).Seconds())
	}
	s.slowest = max(s.slowest, time.Since(begin))
	s.check()
}

// pause waits, but fails at once after a violation.
func (s *soak) pause(d time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		s.check()
	}
}

// check fails the test after a violation.
func (s *soak) check() {
	s.t.Helper()
	s.c.NoViolations()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.broken) == 0 {
		return
	}
	for _, w := range s.writers {
		s.t.Logf("%s", w.Story())
	}
	s.t.Fatalf("%v", violation.Of(errors.New(strings.Join(s.broken, "\n"))))
}

// watch looks for violations.
func (s *soak) watch(stop chan struct{}) {
	seen := map[string]int{} // consecutive sightings
	for {
		s.nodes.Lock()
		misplaced := s.c.Misplaced()
		s.nodes.Unlock()
		s.mu.Lock()
		now := map[string]int{}
		for _, what := range misplaced {
			// A kernel that has just resumed has not yet noticed which disks were removed.
			if now[what] = seen[what] + 1; now[what] == 5 {
				s.broken = append(s.broken, what)
			}
		}
		seen = now
		for _, v := range s.c.Cloud.Volumes() {
			if len(v.Attachments) > 1 {
				s.broken = append(s.broken, fmt.Sprintf("%s is attached more than once: %+v", v.ID, v.Attachments))
			}
		}
		s.mu.Unlock()
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
	}
}
