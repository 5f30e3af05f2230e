package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blockvol/blockvol/driver/volume"
)

// Client calls the plugin on one socket.
type Client struct {
	socket   string
	patience time.Duration // for how long a call without an answer is repeated
	http     http.Client
}

// NewClient makes a Client of the plugin that listens on socket.
func NewClient(socket string) *Client {
	return &Client{socket, restarting, http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket) },
	}}}
}

// dial connects to a socket. Its path is given to the kernel by its directory, since it may be longer than an address can be: 107
// bytes, of which the directory of a managed plugin takes 84.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	dir, err := os.OpenFile(filepath.Dir(socket), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(socket)))
}

// Find returns a Client of the one plugin of this machine: a managed one, or a daemon. runtime is the engine's runtime directory,
// "/run/docker". It waits a little for one that restarts, since its socket is missing meanwhile. Errors: none listens, or
// several do, or this user may not see.
func Find(ctx context.Context, runtime string) (*Client, error) {
	var before error
	for begun := time.Now(); ; {
		c, err := find(ctx, runtime)
		if before != nil && ctx.Err() != nil && err != nil {
			return nil, before // this look was cut short
		}
		if !errors.Is(err, ErrNone) || time.Since(begun) > restarting {
			return c, err
		}
		before = err
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// ErrNone is the error of Find if no plugin answers.
var ErrNone = errors.New("no blockvol runs on this machine")

func find(ctx context.Context, runtime string) (*Client, error) {
	plugins := filepath.Join(runtime, "plugins")
	daemon := filepath.Join(plugins, "blockvol.sock")
	managed, err := filepath.Glob(filepath.Join(plugins, "*", "blockvol.sock"))
	if err != nil {
		return nil, err
	}
	var found []*Client
	var names []string
	var problems []error
	for _, socket := range append(managed, daemon) {
		c := NewClient(socket)
		c.patience = 0 // a socket may be what a dead process left
		status, err := c.Status(ctx)
		c.patience = restarting
		switch {
		case err == nil:
			found = append(found, c)
			names = append(names, fmt.Sprintf("%s (provider %s, cluster %s)", socket, status.Provider, status.Cluster))
		case !errors.Is(err, fs.ErrNotExist):
			problems = append(problems, err)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, volume.Fail(volume.Invalid, "several blockvol plugins run on this machine: "+strings.Join(names, ", "), "choose one with --socket")
	case errors.Is(errors.Join(problems...), fs.ErrPermission):
		return nil, volume.Fail(volume.Unavailable, "only root may talk to blockvol", "run this command with sudo")
	case len(problems) > 0:
		return nil, &volume.Error{Code: volume.Unavailable, Cause: fmt.Errorf("%w: %w", ErrNone, errors.Join(problems...))}
	}
	return nil, &volume.Error{
		Code: volume.Unavailable, Cause: fmt.Errorf("%w: there is no socket in %s", ErrNone, plugins),
		Advice: "install or enable the plugin, run this command as root, or name its socket with --socket",
	}
}

// Status tells about the node.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "status", nil, &s)
}

// Volumes lists the volumes of the cluster.
func (c *Client) Volumes(ctx context.Context) ([]Volume, error) {
	var answer Volumes
	err := c.call(ctx, http.MethodGet, "volumes", nil, &answer)
	return answer.Volumes, err
}

// Volume tells about one volume.
func (c *Client) Volume(ctx context.Context, name string) (v Volume, err error) {
	return v, c.call(ctx, http.MethodGet, "volumes/"+url.PathEscape(name), nil, &v)
}

// Release has this node unmount and detach a volume that nothing uses.
func (c *Client) Release(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "volumes/"+url.PathEscape(name)+"/release", nil, nil)
}

// Retain has the disk of a volume kept when the volume is removed.
func (c *Client) Retain(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, "volumes/"+url.PathEscape(name)+"/retain", nil, nil)
}

// Snapshots lists the snapshots of the volume of that name, or, with "", of all.
func (c *Client) Snapshots(ctx context.Context, volume string) ([]Snapshot, error) {
	var answer Snapshots
	err := c.call(ctx, http.MethodGet, "snapshots?volume="+url.QueryEscape(volume), nil, &answer)
	return answer.Snapshots, err
}

// Garbage lists the snapshots that nobody needs; with removed, also the scheduled ones of removed volumes.
func (c *Client) Garbage(ctx context.Context, removed bool) ([]Snapshot, error) {
	var answer Snapshots
	err := c.call(ctx, http.MethodGet, fmt.Sprintf("garbage?removed=%t", removed), nil, &answer)
	return answer.Snapshots, err
}

// Doctor has the plugin examine this node and its cloud, which takes up to a minute.
func (c *Client) Doctor(ctx context.Context) (r Report, err error) {
	return r, c.call(ctx, http.MethodGet, "doctor", nil, &r)
}

// PluginDisks lists the disks of another plugin for Docker that could be adopted.
func (c *Client) PluginDisks(ctx context.Context, plugin string) ([]PluginDisk, error) {
	var answer PluginDisks
	err := c.call(ctx, http.MethodGet, "plugins/"+url.PathEscape(plugin)+"/disks", nil, &answer)
	return answer.Disks, err
}

// Orphans lists the disks of the cluster that are no volumes.
func (c *Client) Orphans(ctx context.Context) ([]Orphan, error) {
	var answer Orphans
	err := c.call(ctx, http.MethodGet, "orphans", nil, &answer)
	return answer.Disks, err
}

// Hold brings a volume up on this node for the command of that id, which has it for itself until Drop, and returns where it is mounted.
func (c *Client) Hold(ctx context.Context, name, command string) (string, error) {
	var answer Hold
	err := c.call(ctx, http.MethodPost, "volumes/"+url.PathEscape(name)+"/hold?command="+url.QueryEscape(command), nil, &answer)
	return answer.Mountpoint, err
}

// Drop ends what Hold began.
func (c *Client) Drop(ctx context.Context, name, command string) error {
	return c.call(ctx, http.MethodPost, "volumes/"+url.PathEscape(name)+"/drop?command="+url.QueryEscape(command), nil, nil)
}

// Events lists what has happened on this node lately, to one volume or, with "", to all.
func (c *Client) Events(ctx context.Context, volume string) ([]Event, error) {
	var answer Events
	err := c.call(ctx, http.MethodGet, "events?volume="+url.QueryEscape(volume), nil, &answer)
	return answer.Events, err
}

// Jobs lists the jobs of this node.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	var answer Jobs
	err := c.call(ctx, http.MethodGet, "jobs", nil, &answer)
	return answer.Jobs, err
}

// NewID makes an id for a Request.
func NewID() string { return strings.ToLower(rand.Text()[:12]) }

// Start begins a job. After a failure it may be called again with the same request.
func (c *Client) Start(ctx context.Context, r Request) (j Job, err error) {
	return j, c.call(ctx, http.MethodPost, "jobs", r, &j)
}

// Job returns a job once it differs from the revision, after 20 s at the latest; 0 is no revision.
func (c *Client) Job(ctx context.Context, id string, revision int) (j Job, err error) {
	return j, c.call(ctx, http.MethodGet, fmt.Sprintf("jobs/%s?wait=20&revision=%d", url.PathEscape(id), revision), nil, &j)
}

// away is how long Await waits for a plugin that does not answer: it may be restarting.
const away = 30 * time.Second

// Await follows a job until it has ended, also through a restart of the plugin, and tells of each change. Errors: ctx has ended, the
// plugin is away; not that the job failed.
func (c *Client) Await(ctx context.Context, j Job, changed func(Job)) (Job, error) {
	for answered := time.Now(); j.State == Running; {
		next, err := c.Job(ctx, j.ID, j.Revision)
		switch {
		case err == nil:
			answered = time.Now()
			if next.Revision != j.Revision {
				changed(next)
			}
			j = next
			continue
		case ctx.Err() != nil:
			return j, ctx.Err()
		case !errors.Is(err, volume.Unavailable) || time.Since(answered) > away:
			return j, err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return j, ctx.Err()
		}
	}
	return j, nil
}

// restarting is for how long a call without an answer is repeated: every call can come twice, and an engine needs a moment to
// start a plugin that has died.
const restarting = 5 * time.Second

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	var content []byte
	if body != nil {
		var err error
		if content, err = json.Marshal(body); err != nil {
			return err
		}
	}
	for begun := time.Now(); ; {
		err := c.callOnce(ctx, method, path, content, answer)
		if !errors.Is(err, errNoAnswer) || errors.Is(err, fs.ErrPermission) || time.Since(begun) > c.patience {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

var errNoAnswer = errors.New("blockvol does not answer")

func (c *Client) callOnce(ctx context.Context, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://blockvol"+Root+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		// Without addresses that nobody knows.
		if failed, is := errors.AsType[*url.Error](err); is {
			err = failed.Err
		}
		if failed, is := errors.AsType[*net.OpError](err); is {
			err = failed.Err
		}
		return &volume.Error{Code: volume.Unavailable, Cause: fmt.Errorf("%w on %s: %w", errNoAnswer, c.socket, err)}
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	if resp.StatusCode != http.StatusOK {
		var failed struct {
			Error *Error `json:"error"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&failed); err != nil || failed.Error == nil {
			return volume.Fail(volume.Unavailable, fmt.Sprintf("what listens on %s answers %s: it is not a blockvol that this command understands", c.socket, resp.Status), "use the command of the same version as the plugin")
		}
		return failed.Error
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return &volume.Error{Code: volume.Unavailable, Cause: fmt.Errorf("%w whole on %s: %w", errNoAnswer, c.socket, err)}
	}
	return nil
}
