package engine

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Plugin is a managed plugin of the engine.
type Plugin struct {
	ID        string `json:"Id"`
	Enabled   bool
	Reference string `json:"PluginReference"` // what it was installed from, in full: docker.io/example/blockvol:1.0
	Settings  struct {
		Env    []string // NAME=VALUE
		Args   []string
		Mounts []PluginMount
	}
	Config struct {
		Env    []PluginSetting
		Args   PluginSetting
		Mounts []PluginMount
	}
}

// PluginSetting is what can be set.
type PluginSetting struct{ Name string }

// PluginMount is a directory of the host that a plugin sees.
type PluginMount struct {
	Name, Source string
	Settable     []string
}

// Plugin tells about a plugin. Errors: ErrNotFound.
func (c *Client) Plugin(ctx context.Context, name string) (p Plugin, err error) {
	return p, c.get(ctx, "/plugins/"+name+"/json", &p)
}

// Privilege is what a plugin may do on the host.
type Privilege struct {
	Name, Description string
	Value             []string
}

// RegistryAuth are credentials for a registry.
type RegistryAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	ServerAddress string `json:"serveraddress"`
}

func (a *RegistryAuth) set(header http.Header) error {
	if a == nil {
		return nil
	}
	text, err := json.Marshal(a) //nolint:gosec // the engine wants the password
	if err == nil {
		header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString(text))
	}
	return err
}

// Privileges lists what the plugin of that reference in a registry asks for. If the registry does not answer, some engines
// return an empty list and no error.
func (c *Client) Privileges(ctx context.Context, reference string, auth *RegistryAuth) (all []Privilege, err error) {
	return all, c.call(ctx, http.MethodGet, "/plugins/privileges?remote="+url.QueryEscape(reference), request{auth: auth}, &all)
}

// PullPlugin installs a plugin from a registry under that name and grants it these privileges, which must be all that it asks for.
// It is disabled. It takes as long as the registry does; if ctx ends, nothing is installed.
func (c *Client) PullPlugin(ctx context.Context, name, reference string, granted []Privilege, auth *RegistryAuth) error {
	query := url.Values{"name": {name}, "remote": {reference}}
	return c.pull(ctx, "/plugins/pull?"+query.Encode(), granted, auth)
}

// UpgradePlugin replaces a disabled plugin by the one of that reference. The settings stay, except the sources of mounts. If it
// fails, or ctx ends, the plugin is as before.
func (c *Client) UpgradePlugin(ctx context.Context, name, reference string, granted []Privilege, auth *RegistryAuth) error {
	return c.pull(ctx, "/plugins/"+name+"/upgrade?remote="+url.QueryEscape(reference), granted, auth)
}

func (c *Client) pull(ctx context.Context, path string, granted []Privilege, auth *RegistryAuth) error {
	if granted == nil {
		granted = []Privilege{}
	}
	resp, err := c.do(ctx, http.MethodPost, path, request{json: granted, auth: auth})
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	for progress := json.NewDecoder(resp.Body); ; {
		var line struct{ Error string }
		switch err := progress.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the engine on %s does not say how the download ended: %w", c.socket, err)
		case line.Error != "":
			return errors.New(strings.TrimSpace(line.Error))
		}
	}
}

// SetPlugin changes settings, NAME=VALUE, of a disabled plugin.
func (c *Client) SetPlugin(ctx context.Context, name string, settings []string) error {
	return c.post(ctx, "/plugins/"+name+"/set", settings)
}

// EnablePlugin starts a plugin. Errors: it does not start, or does not listen within 10 s.
func (c *Client) EnablePlugin(ctx context.Context, name string) error {
	return c.post(ctx, "/plugins/"+name+"/enable?timeout=0", nil) // with a timeout, the engine's later calls would have it, too
}

// DisablePlugin stops a plugin, also one whose volumes are in use: their containers go on.
func (c *Client) DisablePlugin(ctx context.Context, name string) error {
	return c.post(ctx, "/plugins/"+name+"/disable?force=1", nil)
}

// RemovePlugin removes a disabled plugin.
func (c *Client) RemovePlugin(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.call(ctx, http.MethodDelete, "/plugins/"+name+"?force=1", request{}, nil)
}

func (c *Client) post(ctx context.Context, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.call(ctx, http.MethodPost, path, request{json: body}, nil)
}
