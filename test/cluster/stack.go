package cluster

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/violation"
)

// Stack is a deployed stack.
type Stack struct {
	Name string
	c    *Cluster
}

// Deploy deploys a stack from files. Later files override earlier ones.
func (c *Cluster) Deploy(name string, files ...string) *Stack {
	c.t.Helper()
	args := []string{"stack", "deploy", "--resolve-image", "never", "--detach=true"}
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			c.t.Fatalf("cluster: %v", err)
		}
		args = append(args, "--compose-file", path)
	}
	c.Manager().Docker(append(args, name)...)
	return &Stack{name, c}
}

// Secret creates a secret in the Swarm.
func (c *Cluster) Secret(name, value string) {
	c.t.Helper()
	if _, err := c.Manager().docker([]byte(value), "secret", "create", name, "-"); err != nil {
		c.t.Fatalf("cluster: %v", err)
	}
}

// Task is a task of a service with its node.
type Task struct {
	Node      *Node
	Container string // container ID; "" while there is none

	ID           string
	CreatedAt    time.Time // when the Swarm created the task
	DesiredState string
	NodeID       string
	Status       struct {
		State           string
		Timestamp       time.Time // since when it is in this state
		Err             string
		ContainerStatus struct{ ContainerID string }
	}
}

// Tasks returns the tasks of a service or of one slot ("sessions.2"), the newest first.
func (s *Stack) Tasks(service string) ([]*Task, error) {
	name, slot, _ := strings.Cut(service, ".")
	args := []string{"service", "ps", "--no-trunc", "--format", "{{.ID}} {{.Node}}", s.Name + "_" + name}
	if slot != "" {
		args = append(args, "--filter", "name="+s.Name+"_"+service)
	}
	manager := s.c.Manager()
	out, err := manager.TryDocker(args...)
	if err != nil || out == "" {
		return nil, err
	}
	ids := []string{"inspect", "--type", "task"}
	nodes := map[string]string{}
	for line := range strings.Lines(out) {
		id, node, _ := strings.Cut(strings.TrimSpace(line), " ")
		ids = append(ids, id)
		nodes[id] = node
	}
	text, err := manager.TryDocker(ids...)
	if err != nil {
		return nil, err
	}
	var tasks []*Task
	if err := json.Unmarshal([]byte(text), &tasks); err != nil {
		return nil, fmt.Errorf("docker inspect: %w", err)
	}
	for _, task := range tasks {
		task.Container = task.Status.ContainerStatus.ContainerID
		for _, n := range s.c.Nodes {
			if n.Name == nodes[task.ID] {
				task.Node = n
			}
		}
	}
	slices.SortFunc(tasks, func(a, b *Task) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return tasks, nil
}

// Task waits until a task of a service is running, and healthy if it has a health check, on any node except not, which may be
// nil.
func (s *Stack) Task(service string, not *Node) (running *Task) {
	s.c.t.Helper()
	s.c.Eventually(s.Name+"_"+service+" runs", func() error {
		tasks, err := s.Tasks(service)
		if err != nil {
			return err
		}
		var states []string
		for _, task := range tasks {
			where := "no node"
			if task.Node != nil {
				where = task.Node.Name
			}
			if task.Status.State == "running" && task.DesiredState == "running" && task.Node != nil && task.Node != not {
				running = task
				return nil
			}
			states = append(states, fmt.Sprintf("%s on %s: %s %s", task.ID, where, task.Status.State, task.Status.Err))
		}
		return errors.New(strings.Join(states, "; "))
	})
	return running
}

// Exec runs a program in the task's container and returns its output without the final newline.
func (t *Task) Exec(args ...string) string {
	t.Node.c.t.Helper()
	return t.Node.Docker(append([]string{"exec", t.Container}, args...)...)
}

// TryExec is Exec, but returns an error, which contains the program's standard error.
func (t *Task) TryExec(args ...string) (string, error) {
	return t.Node.TryDocker(append([]string{"exec", t.Container}, args...)...)
}

// Remove removes stacks and waits until nothing is left of them except their volumes, which are detached.
func (c *Cluster) Remove(stacks ...*Stack) {
	c.t.Helper()
	args := []string{"stack", "rm"}
	for _, s := range stacks {
		args = append(args, s.Name)
	}
	c.Manager().Docker(args...)
	for _, n := range c.Nodes {
		for _, what := range [][]string{{"ps", "--all", "--quiet"}, {"network", "ls", "--quiet"}} {
			for _, s := range stacks {
				what := append(what, "--filter", "label=com.docker.stack.namespace="+s.Name)
				c.Eventually(s.Name+" is gone from "+n.Name, func() error {
					left, err := n.TryDocker(what...)
					if err == nil && left != "" {
						err = fmt.Errorf("docker %s: %s", strings.Join(what, " "), left)
					}
					return err
				})
			}
		}
	}
	c.NothingLeft()
}

// CheckFileSystem checks the file system in the image of a detached volume.
func (c *Cluster) CheckFileSystem(v cloud.Volume) {
	c.t.Helper()
	program := []string{"e2fsck", "-f", "-n"}
	if v.Tags["blockvol:record:fstype"] == "xfs" {
		program = []string{"xfs_repair", "-n", "-f"}
	}
	program = append(program, c.storage.Image(v.ID))
	if out, err := exec.Command(program[0], program[1:]...).CombinedOutput(); err != nil {
		c.t.Fatalf("%v", violation.Of(fmt.Errorf("%s: the file system of %s is damaged: %w: %s", v.ID, v.Tags["blockvol:name"], err, out)))
	}
}

// Output is the output of a program in the background.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
	end  context.CancelFunc
	done chan struct{}
}

func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// Lines returns the complete lines of the output so far.
func (o *Output) Lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := strings.Split(o.text.String(), "\n")
	return lines[:len(lines)-1] // the last line may be incomplete
}

// End stops the client. A program that it has started in a container may continue.
func (o *Output) End() {
	o.end()
	<-o.done
}

// Stream runs the docker client against the node's engine in the background.
func (n *Node) Stream(args ...string) *Output {
	n.c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := &Output{end: cancel, done: make(chan struct{})}
	cmd := n.client(ctx, args...)
	cmd.Stdout, cmd.Stderr = o, o
	cmd.WaitDelay = time.Second
	if err := n.c.namespaces.Enter(cmd); err != nil {
		cancel()
		n.c.t.Fatalf("%s: docker %s: %v", n.Name, strings.Join(args, " "), err)
	}
	go func() {
		defer close(o.done)
		cmd.Wait() //nolint:errcheck // the output says why it ended
	}()
	return o
}

// PostgresAnswers returns nil if PostgreSQL at this address accepts clients from outside the cluster. It refuses them during
// recovery.
func (c *Cluster) PostgresAnswers(address string) error {
	conn, err := c.namespaces.Dial(address, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // all data has been sent
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	return greetPostgres(conn)
}

// greetPostgres starts a session and ends it when the server asks for a password.
func greetPostgres(conn net.Conn) error {
	parameters := "user\x00postgres\x00\x00"
	startup := binary.BigEndian.AppendUint32(nil, uint32(8+len(parameters)))
	startup = binary.BigEndian.AppendUint32(startup, 3<<16) // protocol version
	if _, err := conn.Write(append(startup, parameters...)); err != nil {
		return err
	}
	reply, err := io.ReadAll(io.LimitReader(conn, 1))
	switch {
	case err != nil:
		return err
	case string(reply) == "R":
		return nil
	default:
		return fmt.Errorf("unexpected answer %q", reply)
	}
}
