package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

// Info is what an engine says of itself.
type Info struct {
	Name          string // of the node
	Architecture  string
	ServerVersion string
	DockerRootDir string
}

// Info tells about the engine.
func (c *Client) Info(ctx context.Context) (i Info, err error) { return i, c.get(ctx, "/info", &i) }

var ownID = regexp.MustCompile(`/containers/([0-9a-f]{64})/hostname `)

// Self returns the image of the container that this process is in: its id, and the name that the container was started with.
// Errors: it is in none of this engine.
func (c *Client) Self(ctx context.Context) (id, name string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	own := ownID.FindSubmatch(mounts)
	if own == nil {
		return "", "", fmt.Errorf("this process is in no container of the engine on %s", c.socket)
	}
	var container struct {
		Image  string
		Config struct{ Image string }
	}
	if err := c.get(ctx, "/containers/"+string(own[1])+"/json", &container); err != nil {
		return "", "", fmt.Errorf("asking for the container of this process: %w", err)
	}
	return container.Image, container.Config.Image, nil
}

// Job is a container that runs once and is removed.
type Job struct {
	Image   string
	Command []string
	Binds   []string          // HOST:CONTAINER; the engine makes a directory of the host that is missing
	Files   map[string]string // by name in the container's root directory; only root may read them
}

const jobLabel = "io.blockvol.job"

// Run runs a job to its end and returns what it has printed. Errors: it could not start, or has ended with another code than 0.
func (c *Client) Run(ctx context.Context, job Job) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	container := map[string]any{
		"Image": job.Image, "Cmd": job.Command, "Tty": true, "Labels": map[string]string{jobLabel: ""}, // without Tty the log has frames
		"HostConfig": map[string]any{
			"Binds": job.Binds, "NetworkMode": "none", "SecurityOpt": []string{"label=disable"}, "UsernsMode": "host",
			"LogConfig": map[string]any{"Type": "json-file"}, // another driver may not be readable
		},
	}
	var created struct {
		ID string `json:"Id"`
	}
	if err := c.call(ctx, http.MethodPost, "/containers/create", request{json: container}, &created); err != nil {
		return "", err
	}
	path := "/containers/" + created.ID
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		if failed := c.call(ctx, http.MethodDelete, path+"?force=1", request{}, nil); err == nil && failed != nil {
			err = fmt.Errorf("removing a container that has done its work: %w", failed)
		}
	}()
	archive, err := pack(job.Files)
	if err != nil {
		return "", err
	}
	if err := c.call(ctx, http.MethodPut, path+"/archive?path=/", request{body: archive}, nil); err != nil {
		return "", err
	}
	if err := c.post(ctx, path+"/start", nil); err != nil {
		return "", err
	}
	var ended struct{ StatusCode int }
	if err := c.call(ctx, http.MethodPost, path+"/wait", request{}, &ended); err != nil {
		return "", err
	}
	resp, err := c.do(ctx, http.MethodGet, path+"/logs?stdout=1&stderr=1", request{})
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	text, err := io.ReadAll(resp.Body)
	if err == nil && ended.StatusCode != 0 {
		err = fmt.Errorf("%s", strings.TrimSpace(string(text)))
	}
	return string(text), err
}

func pack(files map[string]string) (io.Reader, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o400, Size: int64(len(content)), ModTime: time.Now()}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, content); err != nil {
			return nil, err
		}
	}
	return &archive, w.Close()
}

// RemoveJobs removes the containers of jobs whose process was killed.
func (c *Client) RemoveJobs(ctx context.Context) error {
	left, err := c.containers(ctx, "label", jobLabel)
	if err != nil {
		return err
	}
	for _, container := range left {
		if err := c.call(ctx, http.MethodDelete, "/containers/"+container.ID+"?force=1", request{}, nil); err != nil {
			return err
		}
	}
	return nil
}
