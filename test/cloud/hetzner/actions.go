package hetzner

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// action is an operation that takes time.
type action struct {
	id             int64
	command        string
	volume, server string // one may be ""
	started, ended time.Time
	failure        *problem // set by Fail
}

type shownAction struct {
	ID        int64      `json:"id"`
	Command   string     `json:"command"`
	Status    string     `json:"status"`
	Progress  int        `json:"progress"`
	Started   string     `json:"started"`
	Finished  *string    `json:"finished"`
	Resources []resource `json:"resources"`
	Error     *problem   `json:"error"`
}

type resource struct {
	ID   int64  `json:"id"`
	Type string `json:"type"`
}

// The statuses.
const (
	running = "running"
	success = "success"
	failed  = "error"
)

// begin records an action and returns it as running. The caller holds the lock.
func (f *Front) begin(v cloud.Volume, command, server string) shownAction {
	return f.record(action{command: command, volume: v.ID, server: server})
}

func (f *Front) record(begun action) shownAction {
	a := &begun
	a.id, a.started = 1_400_000_000+int64(len(f.actions)), time.Now()
	f.actions = append(f.actions, a)
	return a.show(running)
}

func (a *action) show(status string) shownAction {
	s := shownAction{ID: a.id, Command: a.command, Status: status, Started: stamp(a.started)}
	if a.server != "" {
		s.Resources = append(s.Resources, resource{number(a.server), "server"})
	}
	if a.volume != "" {
		s.Resources = append(s.Resources, resource{number(a.volume), "volume"})
	}
	if status == running {
		return s
	}
	if a.ended.IsZero() {
		a.ended = time.Now()
	}
	end := stamp(a.ended)
	s.Finished, s.Progress = &end, 100
	if status == failed {
		s.Error = a.failure
		if s.Error == nil {
			s.Error = &problem{Code: "action_failed", Message: "Action failed"}
		}
	}
	return s
}

// status returns an action's status, from the state of the volume unless a later action of the same kind exists. The caller
// holds the lock.
func (f *Front) status(a *action) string {
	if a.volume == "" {
		return f.powerStatus(a)
	}
	v, ok := f.cloud.Volume(a.volume)
	kind := func(a *action) string {
		if a.command == "attach_volume" || a.command == "detach_volume" {
			return "attachment"
		}
		return a.command
	}
	last := a
	for _, other := range f.actions {
		if other.volume == a.volume && kind(other) == kind(a) {
			last = other
		}
	}
	state := cloud.AttachmentState("")
	if len(v.Attachments) > 0 {
		state = v.Attachments[0].State
	}
	m := cmp.Or(v.Modification, &cloud.Modification{})
	switch {
	case a.failure != nil:
		return failed
	case last != a:
		return success
	case a.command == "create_volume" && ok && v.State == cloud.Creating:
		return running
	case a.command == "create_volume" && v.State == cloud.Broken:
		return failed
	case a.command == "attach_volume" && state == cloud.Attaching, a.command == "detach_volume" && state == cloud.Detaching:
		return running
	case a.command == "detach_volume" && state == cloud.Busy:
		return failed
	case a.command == "resize_volume" && m.State == cloud.Modifying:
		return running
	case a.command == "resize_volume" && m.State == cloud.Failed:
		return failed
	}
	return success
}

// underway reports whether an action of a volume is running. The caller holds the lock.
func (f *Front) underway(volume string) bool {
	return slices.ContainsFunc(f.actions, func(a *action) bool { return a.volume == volume && f.status(a) == running })
}

// busy reports whether a server refuses changes because an action of it or of one of its volumes is running. The caller holds
// the lock.
func (f *Front) busy(server string) bool {
	i, _ := f.cloud.Instance(server)
	if i.State != cloud.Running && i.State != cloud.Stopped {
		return true
	}
	held := f.cloud.VolumesThat(func(v cloud.Volume) bool { return len(v.Attachments) > 0 && v.Attachments[0].Instance == server })
	return slices.ContainsFunc(held, func(v cloud.Volume) bool { return f.underway(v.ID) })
}

// idle is truth for a volume of which no action is under way. It is called with the lock.
func (f *Front) idle(r *rest.Request) (cloud.Volume, error) {
	v, err := f.truth(r)
	if err == nil && f.underway(v.ID) {
		err = locked("volume")
	}
	return v, err
}

// engaged is busy with the lock.
func (f *Front) engaged(server string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.busy(server)
}

// Fail makes the pending attach of a volume end in an error. The volume is detached again.
func (f *Front) Fail(volume, code, message string) {
	_, err := f.cloud.Do(context.Background(), cloud.Call{Action: "Fail", Aside: true}, func(r *cloud.Request) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, a := range f.actions {
			if a.volume == volume && a.command == "attach_volume" && f.status(a) == running {
				a.failure = &problem{Code: code, Message: message}
				_, err := r.DetachVolume(volume, "", "", true)
				return err
			}
		}
		return errors.New("no attach is pending")
	})
	if err != nil {
		panic("hetzner: " + volume + ": " + err.Error())
	}
}

func accepted(a shownAction) (rest.Answer, error) {
	return rest.Answer{Status: http.StatusCreated, Body: map[string]any{"action": a}}, nil
}

func (f *Front) attach(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Server    *int64 `json:"server"`
		Automount bool   `json:"automount"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	switch {
	case in.Server == nil:
		return rest.Answer{}, invalid("server", "is missing")
	case in.Automount:
		return rest.Answer{}, invalid("automount", "is not for blockvol")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.truth(r)
	if err != nil {
		return rest.Answer{}, err
	}
	server := strconv.FormatInt(*in.Server, 10)
	i, ok := f.cloud.Instance(server)
	switch {
	case !ok || i.State == cloud.Terminated:
		return rest.Answer{}, notFound("server", server)
	case f.underway(v.ID):
		return rest.Answer{}, locked("volume")
	case f.busy(server):
		return rest.Answer{}, locked("server")
	}
	_, err = r.AttachVolume(v.ID, server, "", func(_ cloud.Instance, held []cloud.Volume) error {
		if len(held) >= f.cfg.Most {
			return refuse("limit_exceeded_error", "server already has the maximum of %d volumes attached", f.cfg.Most)
		}
		return nil
	})
	switch {
	case errors.Is(err, cloud.ErrInUse):
		return rest.Answer{}, refuse("volume_already_attached", "volume already attached to a server")
	case errors.Is(err, cloud.ErrZoneMismatch):
		return rest.Answer{}, invalid("server", "volume and server must be in the same location")
	case err != nil:
		return rest.Answer{}, err
	}
	return accepted(f.begin(v, "attach_volume", server))
}

func (f *Front) detach(r *rest.Request) (rest.Answer, error) {
	if len(r.Body) > 0 {
		var in struct{}
		if err := decode(r, &in); err != nil {
			return rest.Answer{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.idle(r)
	switch {
	case err != nil:
		return rest.Answer{}, err
	case len(v.Attachments) == 0:
		return rest.Answer{}, refuse("invalid_input", "volume is not attached to a server")
	}
	server := v.Attachments[0].Instance
	if f.busy(server) {
		return rest.Answer{}, locked("server")
	}
	if _, err := r.DetachVolume(v.ID, server, "", false); err != nil {
		return rest.Answer{}, err
	}
	return accepted(f.begin(v, "detach_volume", server))
}

func (f *Front) resize(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Size *int64 `json:"size"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	if in.Size == nil || *in.Size < leastGB || *in.Size > mostGB {
		return rest.Answer{}, invalid("size", "must be between %d and %d", leastGB, mostGB)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.truth(r)
	server := ""
	if len(v.Attachments) > 0 {
		server = v.Attachments[0].Instance
	}
	switch {
	case err != nil:
		return rest.Answer{}, err
	case f.underway(v.ID):
		return rest.Answer{}, locked("volume")
	case server != "" && f.busy(server):
		return rest.Answer{}, locked("server")
	}
	_, err = r.ModifyVolume(v.ID, func(v cloud.Volume) (cloud.Shape, error) {
		if *in.Size <= v.Size/gib {
			return cloud.Shape{}, invalid("size", "must be greater than the current size")
		}
		return cloud.Shape{Size: *in.Size * gib, Type: v.Type}, nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	return accepted(f.begin(v, "resize_volume", ""))
}

func (f *Front) changeProtection(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Delete *bool `json:"delete"`
	}
	if err := decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.idle(r)
	if err != nil {
		return rest.Answer{}, err
	}
	_, err = r.EditTags([]string{v.ID}, func(_ string, tags map[string]string) error {
		switch {
		case in.Delete == nil:
		case *in.Delete:
			tags[ownProtected] = ""
		default:
			delete(tags, ownProtected)
		}
		return nil
	})
	if err != nil {
		return rest.Answer{}, err
	}
	f.begin(v, "change_protection", "")
	return accepted(f.actions[len(f.actions)-1].show(success))
}

func (f *Front) listActions(r *rest.Request) (rest.Answer, error) {
	if err := query(r, "sort*", "status*", "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	v, err := find(r)
	if err != nil {
		return rest.Answer{}, err
	}
	return f.actionsWith(r, func(a *action) bool { return a.volume == v.ID })
}

// listActionsByID returns the actions with the requested IDs. The API does not list all actions of a project any more.
func (f *Front) listActionsByID(r *rest.Request) (rest.Answer, error) {
	if err := query(r, "id*", "sort*", "status*", "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	ids := r.HTTP.URL.Query()["id"]
	if len(ids) == 0 {
		return rest.Answer{}, refuse("deprecated_api_endpoint", "listing all actions is not possible: name their ids")
	}
	return f.actionsWith(r, func(a *action) bool { return slices.Contains(ids, strconv.FormatInt(a.id, 10)) })
}

func (f *Front) actionsWith(r *rest.Request, match func(*action) bool) (rest.Answer, error) {
	wanted := r.HTTP.URL.Query()["status"]
	all := []shownAction{}
	f.mu.Lock()
	for _, a := range f.actions {
		if !match(a) {
			continue
		}
		if status := f.status(a); len(wanted) == 0 || slices.Contains(wanted, status) {
			all = append(all, a.show(status))
		}
	}
	f.mu.Unlock()
	if err := sorted(r, all, map[string]func(a, b shownAction) int{
		"id":       func(a, b shownAction) int { return cmp.Compare(a.ID, b.ID) },
		"command":  func(a, b shownAction) int { return cmp.Compare(a.Command, b.Command) },
		"status":   func(a, b shownAction) int { return cmp.Compare(a.Status, b.Status) },
		"started":  func(a, b shownAction) int { return cmp.Compare(a.Started, b.Started) },
		"finished": func(a, b shownAction) int { return cmp.Compare(orEmpty(a.Finished), orEmpty(b.Finished)) },
	}, "id"); err != nil {
		return rest.Answer{}, err
	}
	return page(r, "actions", all)
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func (f *Front) getAction(r *rest.Request) (rest.Answer, error) {
	id, of := r.HTTP.PathValue("action"), r.HTTP.PathValue("id")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.actions {
		if strconv.FormatInt(a.id, 10) == id && (of == "" || of == a.volume) {
			return rest.Answer{Status: http.StatusOK, Body: map[string]any{"action": a.show(f.status(a))}}, nil
		}
	}
	return rest.Answer{}, notFound("action", id)
}
