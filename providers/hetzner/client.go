package hetzner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"
)

// The SDK's own client is not used, only the types of its package schema: it imports the Prometheus library, and with that the
// linker keeps every method of every package, which makes the plugin's binary more than three times as large.

// apiError is an error of the API's own.
type apiError struct{ code, message string }

func (e *apiError) Error() string { return fmt.Sprintf("%s (%s)", e.message, e.code) }

// ask makes a request, whose answer is JSON. The request is described as a noun: "the request to attach volume 12". An answer that
// is not what was asked for, as is tells, counts as none.
// Errors: those of explain.
func ask[T any](ctx context.Context, p *Provider, request, method, path string, in any, is func(*T) bool) (*T, error) {
	_, isJSON, body, err := p.send(ctx, method, path, in)
	answer := new(T)
	if err == nil {
		err = json.Unmarshal(body, answer)
	}
	switch {
	case err != nil:
		return nil, p.explain(ctx, request, err)
	case !isJSON || !is(answer):
		return nil, p.client.Foreign(ctx, request)
	}
	return answer, nil
}

// change asks for an action of a volume.
func (p *Provider) change(ctx context.Context, request, id, action string, in any) (*schema.Action, error) {
	return p.act(ctx, request, volumePath(id)+"/actions/"+action, in)
}

func (p *Provider) act(ctx context.Context, request, path string, in any) (*schema.Action, error) {
	answer, err := ask(ctx, p, request, http.MethodPost, path, in, func(a *schema.ActionGetResponse) bool { return a.Action.ID != 0 })
	if err != nil {
		return nil, err
	}
	return &answer.Action, nil
}

// repeatable reports whether a POST can be carried out twice without harm. A second create of a volume is refused, since the name is
// taken, and so is a second attach. A detach is not repeatable: carried out late, it would take the volume from its next server. Nor is
// what changes a server's power.
func repeatable(r *http.Request) bool {
	return !strings.HasSuffix(r.URL.Path, "/actions/detach") && !strings.Contains(r.URL.Path, "/servers/")
}

// send makes a request, and returns the answer if its status is a success. It returns an apiError only for an answer that is JSON
// and has a code or a message.
func (p *Provider) send(ctx context.Context, method, path string, in any) (status int, isJSON bool, body []byte, err error) {
	var out io.Reader
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return 0, false, nil, err
		}
		out = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, p.cfg.Endpoint+path, out)
	if err != nil {
		return 0, false, nil, err
	}
	r.Header.Set("User-Agent", "blockvol")
	r.Header.Set("Accept", "application/json")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := p.client.HTTP.Do(r)
	if err != nil {
		return 0, false, nil, err
	}
	defer answer.Body.Close() //nolint:errcheck // it has been read
	if body, err = io.ReadAll(answer.Body); err != nil {
		return 0, false, nil, err
	}
	status = answer.StatusCode
	isJSON = strings.HasPrefix(answer.Header.Get("Content-Type"), "application/json")
	if status >= 200 && status < 300 {
		return status, isJSON, body, nil
	}
	var said schema.ErrorResponse
	if status >= 400 && status < 600 && isJSON && json.Unmarshal(body, &said) == nil && (said.Error.Code != "" || said.Error.Message != "") {
		return status, isJSON, nil, &apiError{said.Error.Code, said.Error.Message}
	}
	return status, isJSON, nil, fmt.Errorf("server responded with status code %d", status)
}

// volume is what is kept of a volume: with the SDK's type, which has all that the API tells, a list of thousands takes twice the
// memory.
type volume struct {
	ID       int64  `json:"id"`
	Name     string `json:"name"`
	Status   string `json:"status"`
	Server   *int64 `json:"server"`
	Location struct {
		Name string `json:"name"`
	} `json:"location"`
	Size       int               `json:"size"`
	Created    time.Time         `json:"created"`
	Labels     map[string]string `json:"labels"`
	Protection struct {
		Delete bool `json:"delete"`
	} `json:"protection"`
}

type volumeAnswer struct {
	Volume volume         `json:"volume"`
	Action *schema.Action `json:"action"`
}

type volumePage struct {
	Volumes []volume `json:"volumes"`
	Meta    struct {
		Pagination *struct {
			NextPage     *int `json:"next_page"`
			TotalEntries *int `json:"total_entries"` // nil if Hetzner does not tell
		} `json:"pagination"`
	} `json:"meta"`
}

type actionPage struct {
	schema.ActionListResponse
	schema.MetaResponse
}

func volumePath(id string) string { return "/volumes/" + id }

// What volumes and actions may be (API reference).
const (
	volumeCreating  = "creating"
	volumeAvailable = "available"
	actionRunning   = "running"
	actionSuccess   = "success"
	actionError     = "error"
)
