package hetzner

import (
	"errors"
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// The commands of actions that change a server's power.
const (
	stopServer  = "stop_server"
	startServer = "start_server"
)

// powerStatus is status for such an action.
func (f *Front) powerStatus(a *action) string {
	last := a
	for _, other := range f.actions {
		if other.volume == "" && other.server == a.server {
			last = other
		}
	}
	i, _ := f.cloud.Instance(a.server)
	if last == a && (a.command == stopServer && i.State == cloud.Stopping || a.command == startServer && i.State == cloud.Pending) {
		return running
	}
	return success
}

// powerOff cuts a server's power, and powerOn starts it. For one that is so already the action succeeds at once: the reference does not
// say what happens, and Hetzner's own clients do not look first.
func (f *Front) powerOff(r *rest.Request) (rest.Answer, error) {
	return f.power(r, stopServer, func(id string) (cloud.InstanceState, error) { return r.Stop(id, true) })
}

func (f *Front) powerOn(r *rest.Request) (rest.Answer, error) {
	return f.power(r, startServer, r.Start)
}

func (f *Front) power(r *rest.Request, command string, change func(server string) (cloud.InstanceState, error)) (rest.Answer, error) {
	if len(r.Body) > 0 {
		if err := decode(r, &struct{}{}); err != nil {
			return rest.Answer{}, err
		}
	}
	server := r.HTTP.PathValue("id")
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.cloud.Instance(server)
	switch {
	case !ok || i.State == cloud.Terminated:
		return rest.Answer{}, notFound("server", server)
	case f.busy(server):
		return rest.Answer{}, locked("server")
	}
	was, err := change(server)
	if errors.Is(err, cloud.ErrState) {
		return rest.Answer{}, locked("server")
	} else if err != nil {
		return rest.Answer{}, err
	}
	a := f.record(action{command: command, server: server})
	if now, _ := f.cloud.Instance(server); now.State == was {
		a = f.actions[len(f.actions)-1].show(success)
	}
	return rest.Answer{Status: http.StatusCreated, Body: map[string]any{"action": a}}, nil
}
