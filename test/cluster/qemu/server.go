package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// A server is what stands between one machine and the image of one disk: a qemu-nbd with one client. When it has ended, no
// byte of this machine reaches the image any more, whatever the machine does. What it has acknowledged is in the file.
type server struct {
	socket string
	image  *os.File // until it is locked
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the program has, and every write of it
}

// serve starts a server, which is to be locked.
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
		s.cmd.Wait() //nolint:errcheck // its end, of any kind, is what is waited for
	}()
	return s, nil
}

// lock keeps all others from serving the same image, in whichever process, or fails because one does: two qemu-nbd would
// share it without a word. The lock is the program's, as long as it lives.
func (s *server) lock() error {
	defer s.image.Close()
	if err := unix.Flock(int(s.image.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s is being served already: %w", s.image.Name(), err)
	}
	return nil
}

func (s *server) log() string { return s.socket + ".log" }

func (s *server) failure() error { return fmt.Errorf("qemu-nbd has ended: %s", readLog(s.log())) }

// hide removes the way to the server for all who have not taken it.
func (s *server) hide() error {
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// kill ends the server. It returns when it has ended, and may be called again.
func (s *server) kill() {
	s.cmd.Process.Kill() //nolint:errcheck // it may have ended already
	<-s.ended
	s.image.Close()
	os.Remove(s.socket) //nolint:errcheck // it is there only if it was not hidden
	os.Remove(s.log())  //nolint:errcheck // nobody asks any more
}
