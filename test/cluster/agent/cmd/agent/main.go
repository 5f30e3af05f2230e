// Command agent is the guest's side of package agent. It runs in a virtual machine, serves the serial port blockvol.agent, and
// forwards TCP port 2375 to the engine's socket.
//
//	agent               serve
//	agent disk SERIAL   print whether the disk is absent, free, or held by a file system or a program
//	agent disks         print the serials of all disks, with "mounted" if mounted in any namespace
//	agent seed          add random bytes from standard input to the kernel's pool
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

// port is the name of the serial port, qemu.AgentPort.
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
		serveForever()
	default:
		err = errors.New("usage: agent [disk SERIAL | disks | seed]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func serveForever() {
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
		return agent.Serve(serialPort{stream}, boot)
	}
	return errors.New("there is no port " + port)
}

// serialPort is a port whose Read waits while it returns io.EOF because the host is not connected.
type serialPort struct{ *os.File }

func (p serialPort) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) {
			return n, err
		}
		time.Sleep(20 * time.Millisecond) // the kernel has no event for a connection
	}
}

// forward forwards TCP connections to a Unix socket.
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
			defer from.Close() //nolint:errcheck // no data is lost
			to, err := net.Dial("unix", socket)
			if err != nil {
				return
			}
			defer to.Close() //nolint:errcheck // no data is lost
			var both sync.WaitGroup
			both.Go(func() { pass(to, from) })
			both.Go(func() { pass(from, to) })
			both.Wait()
		}()
	}
}

// pass copies from one connection to the other and then closes the other for writing.
func pass(to, from net.Conn) {
	io.Copy(to, from)                                 //nolint:errcheck // either end may have closed
	to.(interface{ CloseWrite() error }).CloseWrite() //nolint:errcheck // as above
}

// disk prints the state of the disk with this serial in sysfs. The disk is held if it cannot be opened exclusively.
func disk(serial string) error {
	disks, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return err
	}
	for _, disk := range disks {
		if !hasSerial(disk, serial) {
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
		break // it is being removed
	}
	fmt.Println("absent")
	return nil
}

// hasSerial reports whether a disk has this serial, or its first bytes if the bus has room for no more.
func hasSerial(disk, serial string) bool {
	shown, limit := serialOf(disk)
	return shown == serial || len(shown) == limit && strings.HasPrefix(serial, shown)
}

// serialOf returns the serial of a disk, "" for none, and the length that its bus is limited to.
func serialOf(disk string) (serial string, limit int) {
	if shown, err := os.ReadFile(filepath.Join(disk, "device/serial")); err == nil { // NVMe
		return strings.TrimSpace(string(shown)), 20
	}
	if page, err := os.ReadFile(filepath.Join(disk, "device/vpd_pg80")); err == nil && len(page) > 4 { // SCSI, with a header of four bytes
		return strings.TrimSpace(string(page[4:])), 36
	}
	shown, _ := os.ReadFile(filepath.Join(disk, "serial")) // virtio
	return strings.TrimSpace(string(shown)), 20
}

func disks() error {
	all, err := filepath.Glob("/sys/block/*")
	for _, disk := range all {
		serial, _ := serialOf(disk)
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

// seed makes the random numbers of this guest differ from those of other machines restored from the same snapshot. See random(4),
// RNDADDENTROPY and RNDRESEEDCRNG.
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
