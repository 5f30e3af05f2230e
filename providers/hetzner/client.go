package hetzner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hetznercloud/hcloud-go/v2/hcloud/schema"
)

// client asks Hetzner Cloud's API, in the words of the SDK's package schema. The SDK's own client is not used: it imports the
// Prometheus library, and with that the linker keeps every method of every package, which makes the plugin's binary more than
// three times as large. A volume, an action or a server that the API does not know is nil.
type client struct {
	endpoint string
	http     *http.Client
}

// apiError is an error of the API's own.
type apiError struct{ code, message string }

func (e *apiError) Error() string { return fmt.Sprintf("%s (%s)", e.message, e.code) }

func isNotFound(err error) bool {
	var said *apiError
	return errors.As(err, &said) && said.code == "not_found"
}

// send makes a request, and returns the answer if it is a success by its status. An apiError is only what is JSON, and has a code
// or a message.
func (c client) send(ctx context.Context, method, path string, in any) (status int, isJSON bool, body []byte, err error) {
	var out io.Reader
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return 0, false, nil, err
		}
		out = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.endpoint+path, out)
	if err != nil {
		return 0, false, nil, err
	}
	r.Header.Set("User-Agent", "blockvol")
	r.Header.Set("Accept", "application/json")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(r)
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

// ask makes a request whose answer is JSON.
func ask[T any](ctx context.Context, c client, method, path string, in any) (*T, error) {
	_, isJSON, body, err := c.send(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	answer := new(T)
	if err := json.Unmarshal(body, answer); err != nil {
		return nil, err
	}
	if !isJSON {
		return nil, foreign{}
	}
	return answer, nil
}

// find is ask for what may not be there, and is nil then.
func find[T any](ctx context.Context, c client, path string) (*T, error) {
	answer, err := ask[T](ctx, c, http.MethodGet, path, nil)
	if isNotFound(err) {
		return nil, nil
	}
	return answer, err
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

func volumePath(id int64) string { return "/volumes/" + text(id) }

func (c client) volumes(ctx context.Context, query url.Values) (*volumePage, error) {
	return ask[volumePage](ctx, c, http.MethodGet, "/volumes?"+query.Encode(), nil)
}

func (c client) volume(ctx context.Context, id int64) (*volume, error) {
	answer, err := find[volumeAnswer](ctx, c, volumePath(id))
	if answer == nil {
		return nil, err
	}
	return &answer.Volume, nil
}

func (c client) create(ctx context.Context, in schema.VolumeCreateRequest) (*volumeAnswer, error) {
	return ask[volumeAnswer](ctx, c, http.MethodPost, "/volumes", in)
}

// update writes the labels, and the name if it is not empty.
func (c client) update(ctx context.Context, id int64, name string, labels map[string]string) (*volume, error) {
	answer, err := ask[volumeAnswer](ctx, c, http.MethodPut, volumePath(id), schema.VolumeUpdateRequest{Name: name, Labels: &labels})
	if err != nil {
		return nil, err
	}
	return &answer.Volume, nil
}

// remove deletes a volume. No other success than "no content" is Hetzner's.
func (c client) remove(ctx context.Context, id int64) error {
	status, _, _, err := c.send(ctx, http.MethodDelete, volumePath(id), nil)
	if err == nil && status != http.StatusNoContent {
		err = foreign{}
	}
	return err
}

// change asks for an action of a volume.
func (c client) change(ctx context.Context, id int64, what string, in any) (*schema.Action, error) {
	answer, err := ask[schema.ActionGetResponse](ctx, c, http.MethodPost, volumePath(id)+"/actions/"+what, in)
	if err != nil {
		return nil, err
	}
	return &answer.Action, nil
}

func (c client) attach(ctx context.Context, id, server int64) (*schema.Action, error) {
	return c.change(ctx, id, "attach", schema.VolumeActionAttachVolumeRequest{Server: server})
}

func (c client) detach(ctx context.Context, id int64) (*schema.Action, error) {
	return c.change(ctx, id, "detach", schema.VolumeActionDetachVolumeRequest{})
}

func (c client) resize(ctx context.Context, id int64, size int) (*schema.Action, error) {
	return c.change(ctx, id, "resize", schema.VolumeActionResizeVolumeRequest{Size: size})
}

func (c client) changeProtection(ctx context.Context, id int64, on bool) (*schema.Action, error) {
	return c.change(ctx, id, "change_protection", schema.VolumeActionChangeProtectionRequest{Delete: &on})
}

// running are the actions of a volume that are under way: there is no more than one, so the first page has all.
func (c client) running(ctx context.Context, id int64) (*actionPage, error) {
	query := url.Values{"per_page": {strconv.Itoa(perPage)}, "status": {actionRunning}}
	return ask[actionPage](ctx, c, http.MethodGet, volumePath(id)+"/actions?"+query.Encode(), nil)
}

func (c client) action(ctx context.Context, id int64) (*schema.Action, error) {
	answer, err := find[schema.ActionGetResponse](ctx, c, "/actions/"+text(id))
	if answer == nil {
		return nil, err
	}
	return &answer.Action, nil
}

func (c client) server(ctx context.Context, id int64) (*schema.Server, error) {
	answer, err := find[schema.ServerGetResponse](ctx, c, "/servers/"+text(id))
	if answer == nil {
		return nil, err
	}
	return &answer.Server, nil
}

// What volumes and actions may be (API reference).
const (
	volumeCreating  = "creating"
	volumeAvailable = "available"
	actionRunning   = "running"
	actionSuccess   = "success"
	actionError     = "error"
)
