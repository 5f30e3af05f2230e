package digitalocean

import (
	"net/http"
	"slices"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// The kinds of actions that change a droplet's power.
const (
	powerOff = "power_off"
	powerOn  = "power_on"
)

// powerStatus is status for such an action.
func (f *Front) powerStatus(a *action) string {
	last := a
	for _, other := range f.actions {
		if other.droplet == a.droplet {
			last = other
		}
	}
	i, _ := f.cloud.Instance(a.droplet)
	if last == a && (a.kind == powerOff && i.State == cloud.Stopping || a.kind == powerOn && i.State == cloud.Pending) {
		return inProgress
	}
	return completed
}

// power begins to change a droplet's power. A droplet that is so already is refused: the reference does not say what happens.
func (f *Front) power(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Type string `json:"type"`
	}
	if err := f.decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	droplet := r.HTTP.PathValue("id")
	i, ok := f.cloud.Instance(droplet)
	switch {
	case in.Type != powerOff && in.Type != powerOn:
		return rest.Answer{}, f.invalid("type must be power_off or power_on, in this simulation")
	case !ok || i.State == cloud.Terminated:
		return rest.Answer{}, f.notFound()
	}
	f.mu.Lock()
	busy := f.engaged(droplet)
	i, _ = f.cloud.Instance(droplet)
	same := i.State == map[string]cloud.InstanceState{powerOff: cloud.Stopped, powerOn: cloud.Running}[in.Type]
	if busy || same {
		f.mu.Unlock()
		if busy {
			return rest.Answer{}, f.pending("Droplet")
		}
		return rest.Answer{}, f.invalid("Droplet is already powered %s.", map[string]string{powerOff: "off", powerOn: "on"}[in.Type])
	}
	defer f.mu.Unlock()
	var err error
	if in.Type == powerOff {
		_, err = r.Stop(droplet, true)
	} else {
		_, err = r.Start(droplet)
	}
	if err != nil {
		return rest.Answer{}, err
	}
	return f.record(http.StatusCreated, action{droplet: droplet, kind: in.Type, region: i.Zone}), nil
}

// listPower lists the actions of a droplet, the latest first. Those of its volumes are not among them.
func (f *Front) listPower(r *rest.Request) (rest.Answer, error) {
	if _, err := f.query(r, "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	if i, ok := f.cloud.Instance(r.HTTP.PathValue("id")); !ok || i.State == cloud.Terminated {
		return rest.Answer{}, f.notFound()
	}
	var shown []shownAction
	f.mu.Lock()
	for _, a := range slices.Backward(f.actions) {
		if a.droplet == r.HTTP.PathValue("id") {
			shown = append(shown, a.show(f.status(a)))
		}
	}
	f.mu.Unlock()
	return page(f, r, "actions", shown)
}
