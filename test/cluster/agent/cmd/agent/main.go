// Command agent is the guest's side of package agent: it runs in a virtual machine and serves the port of that name. It
// also lets the test reach the engine's socket by TCP.
//
//	agent               serves
//	agent disk SERIAL   tells of a disk whether it is absent, free, or held by a file system or a program
//	agent disks         tells the serials of all disks that have one, and which of them are mounted in any namespace
//	agent seed          takes random bytes from standard input into the kernel's pool
package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/test/cluster/agent"
)

// The port's name, which the host gives it.
const port = "blockvol.agent"

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "disk":
		err = disk(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "disks":
		err = disks()
	case len(os.Args) == 2 && os.Args[1] == "seed":
		err = seed()
	case len(os.Args) == 1:
		serveForEver()
	default:
		err = errors.New("usage: agent [disk SERIAL | disks | seed]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func serveForEver() {
	go forward(":2375", "/run/docker.sock")
	for {
		err := serve(rand.Text())
		fmt.Fprintln(os.Stderr, "agent:", err)
		time.Sleep(time.Second)
	}
}

func serve(boot string) error {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return err
	}
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(name)) != port {
			continue
		}
		stream, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer stream.Close()
		return agent.Serve(patient{stream}, boot)
	}
	return errors.New("there is no port " + port)
}

// patient is a port: it reads as ended while nobody is connected at the other side.
type patient struct{ *os.File }

func (p patient) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(20 * time.Millisecond) // the kernel has no event for a connection
	}
}

// forward passes connections on to a socket.
func forward(address, socket string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		return
	}
	for {
		from, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			return
		}
		go func() {
			defer from.Close() //nolint:errcheck // nothing is kept
			to, err := net.Dial("unix", socket)
			if err != nil {
				return
			}
			defer to.Close() //nolint:errcheck // nothing is kept
			var both sync.WaitGroup
			both.Go(func() { pass(to, from) })
			both.Go(func() { pass(from, to) })
			both.Wait()
		}()
	}
}

// pass copies until the end, which it passes on too.
func pass(to, from net.Conn) {
	io.Copy(to, from)                                 //nolint:errcheck // either end may go away
	to.(interface{ CloseWrite() error }).CloseWrite() //nolint:errcheck // or have gone
}

// disk looks for a disk as blockvol does, by its serial in sysfs. A disk that cannot be opened for oneself alone is held.
func disk(serial string) error {
	disks, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return err
	}
	for _, disk := range disks {
		if !bears(disk, serial) {
			continue
		}
		device, err := os.OpenFile("/dev/"+filepath.Base(disk), os.O_RDONLY|syscall.O_EXCL, 0)
		if err == nil {
			fmt.Println("free")
			return device.Close()
		}
		if errors.Is(err, syscall.EBUSY) {
			fmt.Println("held")
			return nil
		}
		break // it is going
	}
	fmt.Println("absent")
	return nil
}

// bears tells whether a disk has the serial, or shows as much of it as its bus has room for.
func bears(disk, serial string) bool {
	shown, room := shownBy(disk)
	return shown == serial || len(shown) == room && strings.HasPrefix(serial, shown)
}

// shownBy is the serial of a disk of any bus, "" if it has none, as one that is going, and how many bytes there is room for.
func shownBy(disk string) (serial string, room int) {
	if shown, err := os.ReadFile(filepath.Join(disk, "device/serial")); err == nil { // NVMe
		return strings.TrimSpace(string(shown)), 20
	}
	if page, err := os.ReadFile(filepath.Join(disk, "device/vpd_pg80")); err == nil && len(page) > 4 { // SCSI, after four bytes
		return strings.TrimSpace(string(page[4:])), 36
	}
	shown, _ := os.ReadFile(filepath.Join(disk, "serial")) // virtio
	return strings.TrimSpace(string(shown)), 20
}

func disks() error {
	all, err := filepath.Glob("/sys/block/*")
	for _, disk := range all {
		serial, _ := shownBy(disk)
		mounts, _ := filepath.Glob("/sys/fs/*/" + filepath.Base(disk))
		switch {
		case serial == "":
		case len(mounts) > 0:
			fmt.Println(serial, "mounted")
		default:
			fmt.Println(serial)
		}
	}
	return err
}

// seed makes this guest's random numbers others than those of all machines restored from the same snapshot.
// See random(4), RNDADDENTROPY and RNDRESEEDCRNG.
func seed() error {
	bytes, err := io.ReadAll(io.LimitReader(os.Stdin, 512))
	if err != nil {
		return err
	}
	random, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer random.Close()
	pool := binary.NativeEndian.AppendUint32(nil, uint32(len(bytes)*8))
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(bytes)))
	pool = append(pool, bytes...)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return errno
	}
	return unix.IoctlSetInt(int(random.Fd()), unix.RNDRESEEDCRNG, 0)
}
