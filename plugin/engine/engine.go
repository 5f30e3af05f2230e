// Package engine calls a Docker engine on its socket: for what blockvol's own socket does not tell, and to install blockvol.
package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// DefaultHost is where an engine listens if nothing else is set.
const DefaultHost = "unix:///var/run/docker.sock"

// Client calls one engine.
type Client struct {
	socket string
	http   http.Client
}

// New makes a Client of the engine at host, as DOCKER_HOST has it; empty is the default. Errors: it is not a socket of this machine.
func New(host string) (*Client, error) {
	socket, is := strings.CutPrefix(cmp.Or(host, DefaultHost), "unix://")
	if !is {
		return nil, fmt.Errorf("the engine at %s is not on this machine: set DOCKER_HOST to its unix socket", host)
	}
	return &Client{socket, http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

// ErrNotFound is the error for a volume, a plugin or a container that the engine does not have.
var ErrNotFound = errors.New("the engine has no such object")

// timeout limits calls, except those that take as long as a registry does.
const timeout = time.Minute

// Volume is one of the engine's.
type Volume struct {
	Driver     string
	Mountpoint string
	Options    map[string]string
}

// Volume tells about a volume. Errors: ErrNotFound.
func (c *Client) Volume(ctx context.Context, name string) (v Volume, err error) {
	return v, c.get(ctx, "/volumes/"+url.PathEscape(name), &v)
}

// container is one of the engine's.
type container struct {
	ID     string `json:"Id"`
	Names  []string
	State  string
	Mounts []mounted
}

type mounted struct{ Name, Driver string }

// runs reports whether it uses its volumes now, paused or not.
func (c container) runs() bool {
	return !slices.Contains([]string{"created", "exited", "dead"}, c.State)
}

func (c container) name() string { return strings.TrimPrefix(strings.Join(c.Names, " "), "/") }

// Users lists the names of the containers that use the volume now, paused ones too.
func (c *Client) Users(ctx context.Context, volume string) (running []string, err error) {
	all, err := c.containers(ctx, "volume", volume)
	for _, one := range all {
		// The filter takes paths and prefixes, too.
		if one.runs() && slices.ContainsFunc(one.Mounts, func(m mounted) bool { return m.Name == volume }) {
			running = append(running, one.name())
		}
	}
	return running, err
}

// UsersOf lists the names of the containers that use volumes of a driver now.
func (c *Client) UsersOf(ctx context.Context, driver string) (running []string, err error) {
	all, err := c.containers(ctx, "", "")
	for _, one := range all {
		if one.runs() && slices.ContainsFunc(one.Mounts, func(m mounted) bool { return m.Driver == driver }) {
			running = append(running, one.name())
		}
	}
	return running, err
}

// containers lists those that a filter lets through.
func (c *Client) containers(ctx context.Context, filter, value string) (all []container, err error) {
	query := ""
	if filter != "" {
		filters, err := json.Marshal(map[string][]string{filter: {value}})
		if err != nil {
			return nil, err
		}
		query = "&filters=" + url.QueryEscape(string(filters))
	}
	return all, c.get(ctx, "/containers/json?all=1"+query, &all)
}

func (c *Client) get(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.call(ctx, http.MethodGet, path, request{}, answer)
}

// request is what a call sends.
type request struct {
	json any           // encoded as the body
	body io.Reader     // the body, if json is nil
	auth *RegistryAuth // nil: none
}

// call makes one call and decodes its answer, unless answer is nil. Errors: ErrNotFound.
func (c *Client) call(ctx context.Context, method, path string, r request, answer any) error {
	resp, err := c.do(ctx, method, path, r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("the engine on %s answers what cannot be read: %w", c.socket, err)
	}
	return nil
}

// do makes one call and returns its answer, whose body the caller closes. Errors: ErrNotFound.
func (c *Client) do(ctx context.Context, method, path string, r request) (*http.Response, error) {
	if r.json != nil {
		body, err := json.Marshal(r.json)
		if err != nil {
			return nil, err
		}
		r.body = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, r.body)
	if err != nil {
		return nil, err
	}
	if r.json != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if err := r.auth.set(req.Header); err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if failed, is := errors.AsType[*url.Error](err); is { // without an address that nobody knows
			err = failed.Err
		}
		return nil, fmt.Errorf("the engine does not answer on %s: %w", c.socket, err)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	if resp.StatusCode == http.StatusNotFound && method == http.MethodGet {
		return nil, ErrNotFound
	}
	var said struct{ Message string }
	_ = json.NewDecoder(resp.Body).Decode(&said) // the status has to do
	return nil, fmt.Errorf("the engine on %s answers %s: %s", c.socket, resp.Status, said.Message)
}
