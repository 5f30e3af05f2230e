package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// server is a qemu-nbd that serves the image of one disk to one machine. When it has ended, no more data of the machine reaches
// the image. Data that it has acknowledged is in the file.
type server struct {
	socket string
	image  *os.File // open until it is locked
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the program has ended and all its writes are done
}

// serve starts a server. The caller must lock it.
func serve(run Runner, image, socket string) (*server, error) {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s := &server{socket: socket, image: file, ended: make(chan struct{})}
	s.cmd = exec.Command("qemu-nbd",
		"--format=raw", "--cache=writeback", "--discard=unmap", "--shared=1", "--socket="+socket, image)
	s.cmd.ExtraFiles = []*os.File{file}
	if err := start(run, s.cmd, s.log()); err != nil {
		file.Close()
		return nil, err
	}
	go func() {
		defer close(s.ended)
		s.cmd.Wait() //nolint:errcheck // only its end matters
	}()
	return s, nil
}

// lock prevents any other process from serving the same image, or fails if one does: qemu-nbd itself would allow it. The
// program holds the lock while it lives.
func (s *server) lock() error {
	defer s.image.Close()
	if err := unix.Flock(int(s.image.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s is already being served: %w", s.image.Name(), err)
	}
	return nil
}

func (s *server) log() string { return s.socket + ".log" }

func (s *server) failure() error { return fmt.Errorf("qemu-nbd has ended: %s", readLog(s.log())) }

// hide removes the socket, so that there are no new clients.
func (s *server) hide() error {
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// kill kills the server and waits until it has ended. It can be called again.
func (s *server) kill() {
	s.cmd.Process.Kill() //nolint:errcheck // it may have ended
	<-s.ended
	s.image.Close()
	os.Remove(s.socket) //nolint:errcheck // it may be hidden
	os.Remove(s.log())  //nolint:errcheck // not needed any more
}
