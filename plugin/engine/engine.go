// Package engine asks a Docker engine on its socket what blockvol's own socket does not tell: where a volume of Docker's driver local
// is, and who uses it.
package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	return &Client{socket, http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}, nil
}

// ErrNotFound is the error for a volume that the engine does not have.
var ErrNotFound = errors.New("the engine has no such volume")

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

// Users lists the names of the containers that use the volume now, paused ones too.
func (c *Client) Users(ctx context.Context, volume string) (running []string, err error) {
	filters, err := json.Marshal(map[string][]string{"volume": {volume}})
	if err != nil {
		return nil, err
	}
	var all []struct {
		Names  []string
		State  string
		Mounts []struct{ Type, Name string }
	}
	if err := c.get(ctx, "/containers/json?all=1&filters="+url.QueryEscape(string(filters)), &all); err != nil {
		return nil, err
	}
	for _, container := range all {
		// The filter takes paths and prefixes, too.
		if !slices.ContainsFunc(container.Mounts, func(m struct{ Type, Name string }) bool { return m.Name == volume }) {
			continue
		}
		if !slices.Contains([]string{"created", "exited", "dead"}, container.State) {
			running = append(running, strings.TrimPrefix(strings.Join(container.Names, " "), "/"))
		}
	}
	return running, nil
}

func (c *Client) get(ctx context.Context, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if failed, is := errors.AsType[*url.Error](err); is { // without an address that nobody knows
			err = failed.Err
		}
		return fmt.Errorf("the engine does not answer on %s: %w", c.socket, err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	if resp.StatusCode == http.StatusNotFound {
		return ErrNotFound
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Message string }
		_ = json.NewDecoder(resp.Body).Decode(&said) // the status has to do
		return fmt.Errorf("the engine on %s answers %s: %s", c.socket, resp.Status, said.Message)
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("the engine on %s answers what cannot be read: %w", c.socket, err)
	}
	return nil
}
