// Package agent runs commands in a virtual machine for a test outside it, over a stream that no network carries: a serial
// port. So a machine that is cut off from everything can still be looked into.
//
// Both sides send lines of JSON. The guest greets with a new id each time it starts, so that commands which a reboot has
// swallowed fail instead of being waited for.
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

// request asks the guest for something.
type request struct {
	ID     uint64   `json:"id"`
	Hello  bool     `json:"hello,omitempty"` // greet again
	Cancel bool     `json:"cancel,omitempty"`
	Args   []string `json:"args,omitempty"`
	Stdin  []byte   `json:"stdin,omitempty"`
}

// answer is what the guest says.
type answer struct {
	ID     uint64 `json:"id,omitempty"`
	Boot   string `json:"boot,omitempty"` // a greeting
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Status int    `json:"status,omitempty"` // of the program; -1 if a signal ended it
	Error  string `json:"error,omitempty"`  // it could not be run
}

// Serve runs what is asked for until the stream breaks.
func Serve(stream io.ReadWriter, boot string) error {
	var (
		mu      sync.Mutex
		running = map[uint64]context.CancelFunc{}
	)
	send := func(a answer) {
		line, err := json.Marshal(a)
		if err != nil {
			panic(err) // an answer can be marshalled
		}
		mu.Lock()
		defer mu.Unlock()
		stream.Write(append(line, '\n')) //nolint:errcheck // nobody could be told
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
			continue // the rest of what an earlier life was sent
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

// Client is the test's side of one stream.
type Client struct {
	stream io.ReadWriteCloser

	mu      sync.Mutex
	boot    string
	greeted chan struct{} // closed at the next greeting
	last    uint64
	waiting map[uint64]chan answer
	err     error
}

// NewClient takes a stream over.
func NewClient(stream io.ReadWriteCloser) *Client {
	c := &Client{stream: stream, greeted: make(chan struct{}), waiting: map[uint64]chan answer{}}
	go c.listen()
	return c
}

// Dial connects to the socket at the other end of a guest's port.
func Dial(socket string) (*Client, error) {
	stream, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return NewClient(stream), nil
}

// Close breaks the stream; commands under way fail.
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
			close(c.greeted)
			c.greeted = make(chan struct{})
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

// ErrRestarted is how commands fail when the guest has started anew meanwhile.
var ErrRestarted = errors.New("the guest has restarted")

// fail ends all that waits.
func (c *Client) fail(err error, forGood bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if forGood {
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

// Greet returns the id of the guest's present life, asking for it.
func (c *Client) Greet(ctx context.Context) (boot string, err error) {
	c.mu.Lock()
	greeted := c.greeted
	c.mu.Unlock()
	if err := c.send(request{Hello: true}); err != nil {
		return "", err
	}
	select {
	case <-greeted:
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
		_, err := c.Greet(try)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// Run runs a program in the guest. Its error contains what the program wrote to standard error. When the context ends,
// the program is killed, if the guest still hears that.
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
		c.send(request{ID: id, Cancel: true}) //nolint:errcheck // the context's end is what is told
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
