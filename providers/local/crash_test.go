package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
)

// TestMain also runs the child processes of the tests: CHILD selects what they do.
func TestMain(m *testing.M) {
	switch os.Getenv("CHILD") {
	case "":
		os.Exit(m.Run())
	case "operation":
		childOperation()
	case "worker":
		childWorker()
	}
}

func child(kind, dir, node string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, "CHILD="+kind, "DIR="+dir, "NODE="+node, "GORACE=atexit_sleep_ms=0")...)
	cmd.Stderr = os.Stderr
	return cmd
}

func childProvider() *Provider {
	p, err := New(Config{Dir: os.Getenv("DIR"), Node: os.Getenv("NODE"), Cluster: "main"})
	if err != nil {
		panic(err)
	}
	return p
}

// operation is one call on volumes made by prepare. It finds them by name, because it runs in another process.
type operation struct {
	name    string
	prepare func(*testing.T, *Provider)
	call    func(context.Context, *Provider) error
	done    func(*testing.T, *Provider)
}

func db(ctx context.Context, p *Provider) string {
	v, err := p.Find(ctx, "db")
	if err != nil {
		return "vol-0000000000000000"
	}
	return v.ID
}

func made(names ...string) func(*testing.T, *Provider) {
	return func(t *testing.T, p *Provider) {
		t.Helper()
		for _, name := range names {
			_, err := p.Create(t.Context(), providers.Spec{Name: name, Size: smallest, Record: providers.Record{"layout": "data"}})
			require.NoError(t, err)
		}
	}
}

func found(t *testing.T, p *Provider, name string) *providers.Volume {
	t.Helper()
	v, err := p.Find(t.Context(), name)
	require.NoError(t, err)
	return v
}

func notFound(t *testing.T, p *Provider, name string) {
	t.Helper()
	_, err := p.Find(t.Context(), name)
	require.ErrorIs(t, err, providers.ErrNotFound)
}

func madeAndAttached(t *testing.T, p *Provider) {
	t.Helper()
	made("db")(t, p)
	require.NoError(t, providertest.Attach(t.Context(), p, found(t, p, "db").ID))
}

func madeWithSnapshot(t *testing.T, p *Provider) {
	t.Helper()
	made("db")(t, p)
	v := found(t, p, "db")
	require.NoError(t, os.WriteFile(p.disks.path(v.ID, ready), []byte("precious"), 0o600))
	require.NoError(t, os.Truncate(p.disks.path(v.ID, ready), v.Size))
	_, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "one"})
	require.NoError(t, err)
}

func firstSnapshot(p *Provider) string {
	ids, err := p.snaps.ids(ready)
	if err != nil || len(ids) == 0 {
		return "snap-0000000000000000"
	}
	return ids[0]
}

var operations = []operation{
	{
		"create", func(*testing.T, *Provider) {},
		func(ctx context.Context, p *Provider) error {
			_, err := p.Create(ctx, providers.Spec{Name: "db", Size: smallest})
			return err
		},
		func(t *testing.T, p *Provider) { found(t, p, "db") },
	},
	{
		"delete", made("db"),
		func(ctx context.Context, p *Provider) error { return p.Delete(ctx, db(ctx, p)) },
		func(t *testing.T, p *Provider) { notFound(t, p, "db") },
	},
	{
		"attach", made("db"),
		func(ctx context.Context, p *Provider) error { return providertest.Attach(ctx, p, db(ctx, p)) },
		func(t *testing.T, p *Provider) {
			v := found(t, p, "db")
			require.Equal(t, providers.Attachment{Node: "a", State: providers.Attached}, v.Attachment)
			require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
		},
	},
	{
		"detach", madeAndAttached,
		func(ctx context.Context, p *Provider) error { return p.Detach(ctx, db(ctx, p), "a", false) },
		func(t *testing.T, p *Provider) { require.False(t, found(t, p, "db").Held()) },
	},
	{
		"mark", made("db"),
		func(ctx context.Context, p *Provider) error {
			return p.Mark(ctx, db(ctx, p), "formatted", "ext4")
		},
		func(t *testing.T, p *Provider) {
			require.Equal(t, providers.Record{"layout": "data", "formatted": "ext4"}, found(t, p, "db").Record)
		},
	},
	{
		"modify in use", madeAndAttached,
		func(ctx context.Context, p *Provider) error {
			_, err := p.Modify(ctx, db(ctx, p), providers.Change{Size: 2 * smallest})
			return err
		},
		func(t *testing.T, p *Provider) {
			v := found(t, p, "db")
			require.EqualValues(t, 2*smallest, v.Size)
			devices, err := p.loopsOf(v.ID)
			require.NoError(t, err)
			require.Len(t, devices, 1)
			sectors, err := os.ReadFile("/sys/block/" + devices[0] + "/size")
			require.NoError(t, err)
			require.Equal(t, strconv.Itoa(2*smallest/512), strings.TrimSpace(string(sectors)))
			require.NoError(t, p.Detach(t.Context(), v.ID, "a", false))
		},
	},
	{
		"forget and adopt", made("db"),
		func(ctx context.Context, p *Provider) error {
			ids, err := p.disks.ids(ready)
			if err != nil {
				return err
			}
			if _, err := p.Find(ctx, "back"); err == nil {
				return nil
			}
			for _, id := range ids {
				m, err := p.disks.read(id)
				if err != nil {
					return err
				}
				if m.Name == "bystander" {
					continue
				}
				if err := p.Forget(ctx, id); err != nil {
					return err
				}
				_, err = p.Adopt(ctx, id, providers.Spec{Name: "back"})
				return err
			}
			return errors.New("the image is lost")
		},
		func(t *testing.T, p *Provider) {
			notFound(t, p, "db")
			require.Equal(t, providers.Record{"layout": "data"}, found(t, p, "back").Record)
		},
	},
	{
		"snapshot", made("db"),
		func(ctx context.Context, p *Provider) error {
			_, err := p.Snapshot(ctx, db(ctx, p), providers.SnapshotSpec{Description: "one"})
			return err
		},
		func(t *testing.T, p *Provider) {
			ids, err := p.snaps.ids(ready)
			require.NoError(t, err)
			require.Len(t, ids, 1)
		},
	},
	{
		"create from a snapshot", madeWithSnapshot,
		func(ctx context.Context, p *Provider) error {
			_, err := p.Create(ctx, providers.Spec{Name: "copy", Snapshot: firstSnapshot(p)})
			return err
		},
		func(t *testing.T, p *Provider) {
			image, err := os.ReadFile(p.disks.path(found(t, p, "copy").ID, ready))
			require.NoError(t, err)
			require.Equal(t, "precious", string(image[:8]))
			require.Len(t, image, smallest)
		},
	},
	{
		"delete a snapshot", madeWithSnapshot,
		func(ctx context.Context, p *Provider) error { return p.DeleteSnapshot(ctx, firstSnapshot(p)) },
		func(t *testing.T, p *Provider) {
			ids, err := p.snaps.ids(ready)
			require.NoError(t, err)
			require.Empty(t, ids)
		},
	},
}

// childOperation runs one operation and kills itself before its AT-th change on disk.
func childOperation() {
	p := childProvider()
	left, _ := strconv.Atoi(os.Getenv("AT"))
	p.disks.before = func(string, string) error {
		if left--; left == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
		return nil
	}
	p.snaps.before = p.disks.before
	for _, op := range operations {
		if op.name == os.Getenv("OP") {
			if err := op.call(context.Background(), p); err != nil {
				panic(err)
			}
			os.Exit(0)
		}
	}
	panic("no such operation")
}

// TestAnyOperationCanBeKilledAtAnyChange kills each operation before each of its changes on disk. The next process
// finds all other volumes intact, and the operation either done or not begun. Repeated, it succeeds.
func TestAnyOperationCanBeKilledAtAnyChange(t *testing.T) {
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			for at, died := 1, true; died; at++ {
				m := newMachine(t, t.TempDir())
				p := m.provider(t, "a", "main")
				made("bystander")(t, p)
				op.prepare(t, p)
				process := child("operation", m.dir, "a", "OP="+op.name, fmt.Sprintf("AT=%d", at))
				err := process.Run()
				died = process.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
				require.True(t, died || err == nil, "it failed by itself: %v", err)
				require.True(t, died || at > 2, "it changed nothing")

				p = m.provider(t, "a", "main")
				m.consistent(t)
				for _, v := range list(t, p) {
					// With Attaching, the driver would wait for the device without another Attach.
					require.NotEqual(t, providers.Attaching, v.Attachment.State)
				}
				require.NoError(t, op.call(t.Context(), p), "after death at change %d", at)
				op.done(t, p)
				found(t, p, "bystander")
				m.consistent(t)
				m.clean(t)
				m.detachAll(t)
			}
		})
	}
}

// consistent checks what always holds: each image has its description and at most one device, each name leads to its
// description, each device has a holder, and the ledger is not too high.
func (m *machine) consistent(t *testing.T) {
	t.Helper()
	p := m.provider(t, "looks", "main")
	checkLedger(t, p)
	for _, s := range []*imageDir{&p.disks, &p.snaps} {
		if s == &p.snaps && !p.hasSnapshots() {
			continue
		}
		ids, err := s.ids(ready)
		require.NoError(t, err)
		for _, id := range ids {
			d, err := s.read(id)
			require.NoError(t, err)
			if d.Name != "" {
				behind, err := s.linked(d.Cluster, digest(d.Name))
				require.NoError(t, err, "%s has a link that does not lead to it", id)
				require.Equal(t, id, behind.ID)
			}
			info, err := os.Stat(s.path(id, ready))
			require.NoError(t, err)
			require.GreaterOrEqual(t, info.Size(), d.Size)
			devices, err := p.loopsOf(id)
			require.NoError(t, err)
			require.LessOrEqual(t, len(devices), 1)
			require.False(t, len(devices) == 1 && d.Holder == nil, "%s is attached and nobody holds it", id)
		}
	}
}

// clean checks that no unfinished image is left.
func (m *machine) clean(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"disks/*", "snapshots/disks/*"} {
		files, err := filepath.Glob(filepath.Join(m.dir, pattern))
		require.NoError(t, err)
		var images, descriptions []string
		for _, file := range files {
			switch ext := filepath.Ext(file); ext {
			case ready:
				images = append(images, strings.TrimSuffix(file, ext))
			case ".json":
				descriptions = append(descriptions, strings.TrimSuffix(file, ext))
			case ".tmp": // takes no space, and is overwritten or removed with its volume
			default:
				require.Fail(t, "something is left", file)
			}
		}
		require.Equal(t, images, descriptions)
	}
	links, err := filepath.Glob(filepath.Join(m.dir, "names/*/*"))
	require.NoError(t, err)
	for _, link := range links {
		if !strings.HasSuffix(link, ".tmp") {
			_, err := os.Stat(link)
			require.NoError(t, err, "a link leads nowhere")
		}
	}
}

func (m *machine) detachAll(t *testing.T) {
	t.Helper()
	p := m.provider(t, "looks", "main")
	volumes, err := p.List(t.Context())
	require.NoError(t, err)
	for _, v := range volumes {
		require.NoError(t, p.Detach(t.Context(), v.ID, v.Attachment.Node, true))
	}
}

// childWorker makes random calls on a few volumes until it is killed. It writes its node's name to the device of each volume
// that it attaches, and panics if another process writes to the device before the detach.
func childWorker() {
	ctx := context.Background()
	p := childProvider()
	seed, _ := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	rnd := rand.New(rand.NewPCG(seed, 0))
	must := func(err error) {
		for _, known := range []error{
			nil, providers.ErrHeld, providers.ErrNotFound, providers.ErrBusy, providers.ErrInvalid,
		} {
			if errors.Is(err, known) {
				return
			}
		}
		panic(err)
	}
	for {
		fmt.Println("next")
		name := fmt.Sprintf("v%d", rnd.IntN(4))
		v, err := p.Create(ctx, providers.Spec{Name: name, Size: smallest})
		must(err)
		if err != nil {
			continue
		}
		switch rnd.IntN(5) {
		case 0:
			must(p.Delete(ctx, v.ID))
		case 1:
			must(p.Mark(ctx, v.ID, "key", os.Getenv("NODE")))
		case 2:
			_, err := p.Snapshot(ctx, v.ID, providers.SnapshotSpec{Description: strconv.Itoa(rnd.IntN(3))})
			must(err)
		default:
			err := providertest.Attach(ctx, p, v.ID)
			must(err)
			if err == nil {
				mustBeTheOnlyWriter(p, v)
				must(p.Detach(ctx, v.ID, p.node, false))
			}
		}
	}
}

func mustBeTheOnlyWriter(p *Provider, v *providers.Volume) {
	devices, err := p.loopsOf(v.ID)
	if err != nil || len(devices) != 1 {
		panic(fmt.Sprint(v.ID, " attached as ", devices, err))
	}
	f, err := os.OpenFile("/dev/"+devices[0], os.O_RDWR|syscall.O_EXCL, 0)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	word := fmt.Sprintf("%-4096s", p.node)
	for range 10 {
		if _, err := f.WriteAt([]byte(word), 0); err != nil {
			panic(err)
		}
		read := make([]byte, len(word))
		if _, err := f.ReadAt(read, 0); err != nil || string(read) != word {
			panic(fmt.Sprintf("%s wrote to %s, and there is %.20q %v", p.node, v.ID, read, err))
		}
	}
}

// TestEnginesKilledAtRandom runs several processes that share a directory, and kills and restarts them at random moments.
func TestEnginesKilledAtRandom(t *testing.T) {
	const nodes, kills = 3, 30
	for _, seed := range []uint64{1, 2} {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := newMachine(t, t.TempDir())
			made("bystander")(t, m.provider(t, "x", "main"))
			rnd := rand.New(rand.NewPCG(seed, 7))
			var workers [nodes]*exec.Cmd
			var calls [nodes]*bufio.Scanner
			var errs [nodes]*strings.Builder
			start := func(n int) {
				workers[n] = child("worker", m.dir, fmt.Sprintf("n%d", n), fmt.Sprintf("SEED=%d", rnd.Uint64()))
				errs[n] = &strings.Builder{}
				workers[n].Stderr = errs[n]
				out, err := workers[n].StdoutPipe()
				require.NoError(t, err)
				calls[n] = bufio.NewScanner(out)
				require.NoError(t, workers[n].Start())
			}
			stop := func(n int) {
				require.NoError(t, workers[n].Process.Kill())
				_ = workers[n].Wait()
				assert.Empty(t, errs[n].String())
			}
			for n := range workers {
				start(n)
			}
			for range kills {
				n := rnd.IntN(nodes)
				for range 1 + rnd.IntN(12) {
					require.True(t, calls[n].Scan(), "the worker has ended: %s", errs[n])
				}
				time.Sleep(time.Duration(rnd.IntN(5000)) * time.Microsecond) // the random moment in a call
				stop(n)
				start(n)
			}
			for n := range workers {
				stop(n)
			}

			m.consistent(t)
			p := m.provider(t, "x", "main")
			found(t, p, "bystander")
			m.detachAll(t)
			made("another")(t, p)
			m.clean(t)
		})
	}
}
