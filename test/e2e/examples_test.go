package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/engine"
	"github.com/blockvol/blockvol/test/violation"
)

// Tests of the stack files in examples/, unchanged, with the real PostgreSQL and Redis and with fakemongo. Published ports are
// not tested, because the kernel may not have Swarm's load balancer.

// A stack file that passes can run on any node: it asks the scheduler for the driver and nothing else.
func TestExamplesPinNothingToANode(t *testing.T) {
	t.Parallel()
	e := engine.Start(t)
	swarm(e)
	files, err := filepath.Glob("../../examples/*.yml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		stack := strings.TrimSuffix(filepath.Base(file), ".yml")
		e.Docker("stack", "deploy", "--resolve-image", "never", "--compose-file", file, stack)
		volumes := 0
		for _, s := range services(t, e, stack) {
			task := s.Spec.TaskTemplate
			assert.Empty(t, task.Placement.Constraints, s.Spec.Name)
			assert.Equal(t, "stop-first", s.Spec.UpdateConfig.Order, s.Spec.Name)
			for _, mount := range task.ContainerSpec.Mounts {
				if mount.Type != "volume" {
					continue
				}
				volumes++
				assert.True(t, mount.VolumeOptions.NoCopy, "%s: each start would attach the disk twice", s.Spec.Name)
				assert.Equal(t, "blockvol", mount.VolumeOptions.DriverConfig.Name, s.Spec.Name)
				if s.Spec.Mode.Replicated.Replicas > 1 {
					assert.Contains(t, mount.Source, "{{.Task.Slot}}", s.Spec.Name)
				}
			}
		}
		assert.NotZero(t, volumes, "%s has no volume", file)
	}
}

// service is the part of `docker service inspect` that is checked.
type service struct {
	Spec struct {
		Name         string
		UpdateConfig struct{ Order string }
		Mode         struct{ Replicated struct{ Replicas int } }
		TaskTemplate struct {
			Placement     struct{ Constraints []string }
			ContainerSpec struct {
				Mounts []struct {
					Type, Source  string
					VolumeOptions struct {
						NoCopy       bool
						DriverConfig struct{ Name string }
					}
				}
			}
		}
	}
}

func services(t *testing.T, e *engine.Engine, stack string) (found []service) {
	t.Helper()
	names := strings.Fields(e.Docker("stack", "services", "--quiet", stack))
	require.NotEmpty(t, names)
	require.NoError(t, json.Unmarshal([]byte(e.Docker(append([]string{"service", "inspect"}, names...)...)), &found))
	return found
}

// swarm makes a Swarm of one node with the secrets of the examples.
func swarm(e *engine.Engine) {
	e.Docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1")
	for _, secret := range []string{"postgres-password", "mongo-password", "mongo-key"} {
		file := filepath.Join(e.Dir, secret)
		if err := os.WriteFile(file, []byte("c2VjcmV0"), 0o600); err != nil {
			panic(err)
		}
		e.Docker("secret", "create", secret, file)
	}
}

// stack is an example deployed as stack s on an engine of its own.
type stack struct {
	*engine.Engine

	t     *testing.T
	files []string
}

// startStack deploys an example. To save time, it shortens the health checks and restart delays of these services.
func startStack(t *testing.T, example, image string, services ...string) *stack {
	t.Helper()
	images, err := filepath.Abs("../../build/containers")
	require.NoError(t, err)
	out, err := exec.Command("../cluster/image/containers", images).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Parallel()
	e := engine.Start(t)
	e.InstallPlugin(pluginDir, "LOG_LEVEL=debug", "LOCAL_OVERCOMMIT=true")
	e.Docker("load", "--quiet", "--input", filepath.Join(images, image+".tar"))
	swarm(e)
	awaitPluginInSwarm(e)
	const sooner = ": {healthcheck: {interval: 500ms}, deploy: {restart_policy: {delay: 200ms}}}"
	hasty := "version: '3.8'\nservices: {" + strings.Join(services, sooner+", ") + sooner + "}\n"
	file := filepath.Join(e.Dir, "hasty.yml")
	require.NoError(t, os.WriteFile(file, []byte(hasty), 0o600))
	s := &stack{Engine: e, t: t, files: []string{filepath.Join("../../examples", example+".yml"), file}}
	s.deploy()
	return s
}

func (s *stack) deploy() {
	s.t.Helper()
	s.Docker("stack", "deploy", "--resolve-image", "never", "--compose-file", s.files[0], "--compose-file", s.files[1], "s")
}

// task waits until the task has a running and healthy container other than before, and returns it.
func (s *stack) task(name, before string) (container string) {
	s.t.Helper()
	s.Eventually("task "+name+" runs", func() error {
		out := s.Docker("ps", "--no-trunc", "--filter", "name=s_"+name+".", "--format", "{{.ID}} {{.Status}}")
		fields := strings.Fields(out)
		if len(fields) == 0 || fields[0] == before || strings.Contains(out, "starting)") || strings.Contains(out, "unhealthy)") {
			return fmt.Errorf("%q", out)
		}
		container = fields[0]
		return nil
	})
	return container
}

// killed kills a task's container and returns the next one.
func (s *stack) killed(name, container string) string {
	s.t.Helper()
	s.Run("kill", "-9", s.Docker("inspect", "--format", "{{.State.Pid}}", container))
	return s.task(name, container)
}

// again removes the stack, waits until its disks are detached, and deploys it again.
func (s *stack) again() {
	s.t.Helper()
	s.Docker("stack", "rm", "s")
	eventuallyReleased(s.t, s.Engine)
	s.Eventually("the stack's network is gone", func() error { // a task may still be leaving the network
		if left := s.Docker("network", "ls", "--quiet", "--filter", "label=com.docker.stack.namespace=s"); left != "" {
			return errors.New(left)
		}
		return nil
	})
	s.deploy()
}

// acknowledged runs a shell command in a container which prints a number for each acknowledged write, until the container ends.
// It returns after the first writes. Function last waits for the end and returns the last number.
func (s *stack) acknowledged(container, command string) (last func() int) {
	s.t.Helper()
	file, err := os.Create(filepath.Join(s.t.TempDir(), "acknowledged"))
	require.NoError(s.t, err)
	cmd := s.Client(s.t.Context(), "exec", container, "sh", "-c", command)
	cmd.Stdout = file
	require.NoError(s.t, cmd.Start())
	lines := func() []string {
		text, err := os.ReadFile(file.Name())
		require.NoError(s.t, err)
		return strings.Split(string(text), "\n")
	}
	s.Eventually("writes are acknowledged", func() error {
		if n := len(lines()); n < 300 {
			return fmt.Errorf("%d lines", n)
		}
		return nil
	})
	return func() int {
		s.t.Helper()
		require.Error(s.t, cmd.Wait(), "it runs until the container has ended")
		all := lines()
		n, err := strconv.Atoi(all[len(all)-2]) // the last line may be incomplete
		require.NoError(s.t, err)
		return n
	}
}

func TestExamplePostgresKeepsCommittedRows(t *testing.T) {
	s := startStack(t, "postgres", "postgres", "postgres")
	first := s.task("postgres", "")
	sql := func(container, query string) string {
		return s.Docker("exec", container, "psql", "--username=postgres", "--no-align", "--tuples-only", "--quiet", "--command="+query)
	}
	sql(first, "create extension amcheck; create table kept (n bigint primary key)")
	s.Docker("exec", first, "pgbench", "-i", "--quiet", "--username=postgres", "postgres")
	s.Docker("exec", "--detach", first, "pgbench", "--client=2", "--time=1000", "--username=postgres", "postgres")
	last := s.acknowledged(first, `n=0; while :; do n=$((n + 1)); echo "insert into kept values ($n) returning n;"; done |
		psql --username=postgres --no-align --tuples-only --quiet`)

	check := func(container string, acknowledged int) {
		assert.GreaterOrEqual(t, sql(container, fmt.Sprintf("select count(*) - %d from kept", acknowledged)), "0", violation.Textf("acknowledged rows are lost"))
		assert.Equal(t, "t", sql(container, "select count(*) = max(n) from kept"), violation.Textf("rows are missing"))
		assert.Equal(t, "t|t|t", sql(container, `select sum(delta) = (select sum(abalance) from pgbench_accounts),
			sum(delta) = (select sum(bbalance) from pgbench_branches),
			sum(delta) = (select sum(tbalance) from pgbench_tellers) from pgbench_history`), violation.Textf("a transaction is there by halves"))
		s.Docker("exec", container, "pg_amcheck", "--username=postgres", "--heapallindexed", "postgres")
	}
	second := s.killed("postgres", first)
	acknowledged := last()
	check(second, acknowledged)

	s.again()
	check(s.task("postgres", second), acknowledged)
}

func TestExampleRedisKeepsAcknowledgedWrites(t *testing.T) {
	s := startStack(t, "redis", "redis", "redis")
	first := s.task("redis", "")
	s.Docker("exec", "--detach", first, "redis-benchmark", "-q", "-l", "-r", "100000", "-t", "set,lpush")
	last := s.acknowledged(first, "while :; do echo incr kept; done | redis-cli")

	second := s.killed("redis", first)
	kept := func(container string) int {
		n, err := strconv.Atoi(s.Docker("exec", container, "redis-cli", "get", "kept"))
		require.NoError(t, err)
		return n
	}
	n := kept(second)
	assert.GreaterOrEqual(t, n, last(), violation.Textf("acknowledged increments are lost"))
	assert.Contains(t, s.Docker("exec", second, "redis-check-aof", "appendonlydir/appendonly.aof.manifest"), "All AOF files and manifest are valid")

	s.again()
	assert.Equal(t, n, kept(s.task("redis", second)), violation.Textf("increments are lost"))
}

func TestExampleMongodbMembersFindEachOtherAndTheirData(t *testing.T) {
	members := []string{"mongo1", "mongo2", "mongo3", "arbiter"}
	s := startStack(t, "mongodb", "mongo", append(members, "init")...)
	initiated := func(how string) {
		s.Eventually("the set is initiated", func() error {
			out, err := s.Try("service", "logs", "--raw", "s_init")
			if err == nil && !strings.Contains(out, "4 members; the set is "+how) {
				err = errors.New(out)
			}
			return err
		})
	}
	initiated("new")
	first := s.task("mongo2", "")
	second := s.killed("mongo2", first)
	assert.Contains(t, s.Docker("logs", second), "mongo2 found its own data of 1 earlier starts")
	s.Docker("service", "update", "--detach", "--force", "s_init")
	initiated("known")

	s.again()
	initiated("known")
	for _, name := range members {
		assert.Contains(t, s.Docker("logs", s.task(name, "")), name+" found its own data")
	}
	assert.Equal(t, "s_arbiter\ns_mongo1\ns_mongo2\ns_mongo3", s.Docker("volume", "ls", "--quiet", "--filter", "driver=blockvol:latest"))
}

func TestExampleReplicasHaveOneDiskEach(t *testing.T) {
	s := startStack(t, "replicas", "redis", "sessions")
	tasks := []string{"sessions.1", "sessions.2", "sessions.3"}
	for _, name := range tasks {
		container := s.task(name, "")
		s.Eventually("Redis answers", func() error {
			_, err := s.Try("exec", container, "redis-cli", "setnx", "name", name)
			return err
		})
	}
	s.again()
	for _, name := range tasks {
		container := s.task(name, "")
		s.Eventually("Redis answers", func() error {
			out, err := s.Try("exec", container, "redis-cli", "get", "name")
			if err == nil && out != name {
				err = errors.New(out)
			}
			return err
		})
	}
	assert.Equal(t, "data-s_sessions-1\ndata-s_sessions-2\ndata-s_sessions-3", s.Docker("volume", "ls", "--quiet"))
}
