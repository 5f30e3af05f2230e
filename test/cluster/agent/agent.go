// Package agent runs commands in a virtual machine over a serial port, so that a test reaches a machine without network.
//
// Both sides send lines of JSON. The guest sends a new boot ID each time it starts. Commands that a reboot has lost then fail.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// request is a message to the guest.
type request struct {
	ID     uint64   `json:"id"`
	Hello  bool     `json:"hello,omitempty"` // send the boot ID
	Cancel bool     `json:"cancel,omitempty"`
	Args   []string `json:"args,omitempty"`
	Stdin  []byte   `json:"stdin,omitempty"`
}

// answer is a message from the guest.
type answer struct {
	ID     uint64 `json:"id,omitempty"`
	Boot   string `json:"boot,omitempty"` // the boot ID; all else is empty
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Status int    `json:"status,omitempty"` // exit status; -1 after a signal
	Error  string `json:"error,omitempty"`  // why the program did not run
}

// Serve runs the commands that it reads from the stream until the stream breaks.
func Serve(stream io.ReadWriter, boot string) error {
	var (
		mu      sync.Mutex
		running = map[uint64]context.CancelFunc{}
	)
	send := func(a answer) {
		line, err := json.Marshal(a)
		if err != nil {
			panic(err) // impossible
		}
		mu.Lock()
		defer mu.Unlock()
		stream.Write(append(line, '\n')) //nolint:errcheck // there is nowhere to report it
	}
	send(answer{Boot: boot})
	lines := bufio.NewReader(stream)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		var r request
		if json.Unmarshal(line, &r) != nil {
			continue // the rest of a request from before a reboot
		}
		if r.Hello {
			send(answer{Boot: boot})
			continue
		}
		if r.Cancel {
			mu.Lock()
			if cancel := running[r.ID]; cancel != nil {
				cancel()
			}
			mu.Unlock()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		mu.Lock()
		running[r.ID] = cancel
		mu.Unlock()
		go func() {
			a := execute(ctx, r)
			mu.Lock()
			delete(running, r.ID)
			mu.Unlock()
			cancel()
			send(a)
		}()
	}
}

func execute(ctx context.Context, r request) answer {
	if len(r.Args) == 0 {
		return answer{ID: r.ID, Error: "no program"}
	}
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, r.Args[0], r.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(string(r.Stdin)), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err := cmd.Run()
	a := answer{ID: r.ID, Stdout: []byte(stdout.String()), Stderr: []byte(stderr.String())}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		a.Status = exit.ExitCode()
	case err != nil:
		a.Error = err.Error()
	}
	return a
}

// Client is the test's side of a stream.
type Client struct {
	stream io.ReadWriteCloser

	mu      sync.Mutex
	boot    string
	booted  chan struct{} // closed when the next boot ID arrives
	last    uint64
	waiting map[uint64]chan answer
	err     error
}

// NewClient returns a client that owns the stream.
func NewClient(stream io.ReadWriteCloser) *Client {
	c := &Client{stream: stream, booted: make(chan struct{}), waiting: map[uint64]chan answer{}}
	go c.listen()
	return c
}

// Dial connects to the host's socket of a guest's serial port.
func Dial(socket string) (*Client, error) {
	stream, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return NewClient(stream), nil
}

// Close closes the stream. Running commands fail.
func (c *Client) Close() error { return c.stream.Close() }

func (c *Client) listen() {
	lines := bufio.NewReader(c.stream)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			c.fail(fmt.Errorf("the guest is gone: %w", err), true)
			return
		}
		var a answer
		if json.Unmarshal(line, &a) != nil {
			continue
		}
		if a.Boot != "" {
			c.mu.Lock()
			restarted := c.boot != "" && c.boot != a.Boot
			c.boot = a.Boot
			close(c.booted)
			c.booted = make(chan struct{})
			c.mu.Unlock()
			if restarted {
				c.fail(ErrRestarted, false)
			}
			continue
		}
		c.mu.Lock()
		if waiting := c.waiting[a.ID]; waiting != nil {
			waiting <- a
			delete(c.waiting, a.ID)
		}
		c.mu.Unlock()
	}
}

// ErrRestarted is the error of commands during which the guest restarted.
var ErrRestarted = errors.New("the guest has restarted")

// fail fails all running commands and, if permanent, all later ones.
func (c *Client) fail(err error, permanent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if permanent {
		c.err = err
	}
	for id, waiting := range c.waiting {
		waiting <- answer{Error: err.Error()}
		delete(c.waiting, id)
	}
}

func (c *Client) send(r request) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	_, err = c.stream.Write(append(line, '\n'))
	return err
}

// BootID asks the guest for its boot ID.
func (c *Client) BootID(ctx context.Context) (string, error) {
	c.mu.Lock()
	booted := c.booted
	c.mu.Unlock()
	if err := c.send(request{Hello: true}); err != nil {
		return "", err
	}
	select {
	case <-booted:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.boot, nil
	case <-ctx.Done():
		return "", fmt.Errorf("the guest does not answer: %w", context.Cause(ctx))
	}
}

// Await waits until the guest's agent answers, after a power-on.
func (c *Client) Await(ctx context.Context) error {
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err := c.BootID(try)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// Run runs a program in the guest. The error contains its standard error. When the context ends, Run returns and asks the guest to
// kill the program.
func (c *Client) Run(ctx context.Context, stdin []byte, args ...string) (stdout string, err error) {
	answered := make(chan answer, 1)
	c.mu.Lock()
	c.last++
	id := c.last
	if c.err == nil {
		c.waiting[id] = answered
	}
	c.mu.Unlock()
	err = c.send(request{ID: id, Args: args, Stdin: stdin})
	if err != nil {
		return "", err
	}
	var a answer
	select {
	case a = <-answered:
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		c.send(request{ID: id, Cancel: true}) //nolint:errcheck // the context's error is reported
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), context.Cause(ctx))
	}
	switch {
	case a.Error != "":
		return "", fmt.Errorf("%s: %s", strings.Join(args, " "), a.Error)
	case a.Status != 0:
		err = fmt.Errorf("%s: status %d: %s", strings.Join(args, " "), a.Status, strings.TrimSpace(string(a.Stderr)))
	}
	return strings.TrimSuffix(string(a.Stdout), "\n"), err
}
