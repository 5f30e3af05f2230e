package mount

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// findMounts reads the mount tables of all processes.
func (h *Host) findMounts(queries map[query]bool) (*mounts, error) {
	tables := tableReader{known: map[uint64]*readers{}, seed: maphash.MakeSeed()}
	table, own, err := tables.read("/proc/thread-self")
	if err != nil {
		return nil, fmt.Errorf("the kernel's mount table cannot be read: %w", err)
	}
	found, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), nil)
	if err != nil {
		return nil, fmt.Errorf("the kernel's mount table cannot be parsed: %w", err)
	}
	own.own = true
	c := h.newCollector(queries, found)
	c.addTable(own, found)
	dir, err := os.Open(h.proc)
	if err != nil {
		return nil, fmt.Errorf("the processes of this node cannot be listed: %w", err)
	}
	defer dir.Close()
	pids, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("the processes of this node cannot be listed: %w", err)
	}
	// With the mount option hidepid, other users' processes are not listed: process 1 is the first to be missing.
	c.complete = slices.Contains(pids, "1")
	for _, pid := range pids {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		table, in, err := tables.read(filepath.Join(h.proc, pid))
		if err != nil {
			c.complete = false
			continue
		}
		if in != nil {
			in.pids = append(in.pids, pid)
		}
		if !c.mayContain(table) {
			continue
		}
		found, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), nil)
		if err != nil {
			return nil, fmt.Errorf("the mount table of process %s cannot be parsed: %w", pid, err)
		}
		c.addTable(in, found)
	}
	return &c.mounts, nil
}

// mayContain tells quickly whether a mount table may have a mount of one of the volumes. It never misses one.
func (c *collector) mayContain(table []byte) bool {
	for line := range bytes.Lines(table) {
		fields := line
		for range 2 {
			_, fields, _ = bytes.Cut(fields, []byte(" "))
		}
		n, _, _ := bytes.Cut(fields, []byte(" "))
		if c.texts[string(n)] {
			return true
		}
		if _, rest, ok := bytes.Cut(line, []byte(" - btrfs ")); ok {
			source, _, _ := bytes.Cut(rest, []byte(" "))
			if _, ok := c.names[string(source[bytes.LastIndexByte(source, '/')+1:])]; ok {
				return true
			}
		}
	}
	return false
}

// tableReader reads the mount tables of processes, each table once. A table has the mounts of a namespace that can be reached from
// the process's root. Its first lines identify both: no two mounts of the machine have one ID, and paths start at the root.
type tableReader struct {
	known map[uint64]*readers // by the hash of the first lines
	seed  maphash.Seed
	table bytes.Buffer
}

// firstLines is how many bytes of a table identify it.
const firstLines = 1 << 10

// read returns the mount table of a process, valid until the next read, and who has the same. The table is empty if it was read before.
// Both are nil if the process has ended or is about to.
func (r *tableReader) read(process string) (table []byte, in *readers, err error) {
	f, err := os.Open(filepath.Join(process, "mountinfo"))
	if errors.Is(err, unix.EINVAL) { // its main thread has ended; others may live on
		err = fs.ErrNotExist
		threads, _ := filepath.Glob(filepath.Join(process, "task/*/mountinfo"))
		for i := 0; i < len(threads) && err != nil; i++ {
			f, err = os.Open(threads[i])
		}
	}
	if err == nil {
		defer f.Close()
		r.table.Reset()
		_, err = io.CopyN(&r.table, f, firstLines)
		if err == nil || errors.Is(err, io.EOF) {
			sum := maphash.Bytes(r.seed, r.table.Bytes())
			if in := r.known[sum]; in != nil {
				return nil, in, nil
			}
			if _, err = r.table.ReadFrom(f); err == nil {
				in := &readers{}
				r.known[sum] = in
				return r.table.Bytes(), in, nil
			}
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil, nil
	}
	return nil, nil, err
}
