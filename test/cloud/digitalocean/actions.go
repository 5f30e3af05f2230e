package digitalocean

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// action is an operation on a volume or a droplet that takes time.
type action struct {
	id      int
	volume  string // "" if it is on a droplet
	droplet string // "" if it is on a volume
	kind    string // attach, detach, resize; power_off, power_on
	region  string
	started time.Time
	errored bool // Fail was called
}

type shownAction struct {
	ID           int     `json:"id"`
	Status       string  `json:"status"`
	Type         string  `json:"type"`
	StartedAt    string  `json:"started_at"`
	CompletedAt  *string `json:"completed_at"`
	ResourceID   *int    `json:"resource_id"`
	ResourceType string  `json:"resource_type"`
	Region       region  `json:"region"`
	RegionSlug   string  `json:"region_slug"`
}

// The statuses.
const (
	inProgress = "in-progress"
	completed  = "completed"
	errored    = "errored"
)

// begin records an action and returns the response for it. The caller holds the lock.
func (f *Front) begin(v cloud.Volume, kind string) rest.Answer {
	return f.record(http.StatusAccepted, action{volume: v.ID, kind: kind, region: v.Zone})
}

func (f *Front) record(status int, begun action) rest.Answer {
	a := &begun
	a.id, a.started = 2_400_000_000+len(f.actions), time.Now()
	f.actions = append(f.actions, a)
	return rest.Answer{Status: status, Body: map[string]any{"action": a.show(inProgress)}}
}

func (a *action) show(status string) shownAction {
	s := shownAction{ID: a.id, Status: status, Type: a.kind + "_volume", StartedAt: stamp(a.started), ResourceType: "volume", Region: regionOf(a.region), RegionSlug: a.region}
	if a.droplet != "" {
		id := int(number(a.droplet))
		s.Type, s.ResourceType, s.ResourceID = a.kind, "droplet", &id
	}
	if status != inProgress {
		end := stamp(time.Now())
		s.CompletedAt = &end
	}
	return s
}

// status returns an action's status, from the state of the volume unless a later action of the same kind exists. The caller
// holds the lock.
func (f *Front) status(a *action) string {
	if a.droplet != "" {
		return f.powerStatus(a)
	}
	v, _ := f.cloud.Volume(a.volume)
	last := a
	for _, other := range f.actions {
		if other.volume == a.volume && (other.kind == "resize") == (a.kind == "resize") {
			last = other
		}
	}
	state := cloud.AttachmentState("")
	if len(v.Attachments) > 0 {
		state = v.Attachments[0].State
	}
	switch {
	case a.errored:
		return errored
	case last != a:
		return completed
	case a.kind == "attach" && state == cloud.Attaching, a.kind == "detach" && state == cloud.Detaching:
		return inProgress
	case a.kind == "attach" && state == "", a.kind == "detach" && state == cloud.Busy:
		return errored
	case a.kind == "resize" && v.Modification != nil && v.Modification.State == cloud.Modifying:
		return inProgress
	case a.kind == "resize" && v.Modification != nil && v.Modification.State == cloud.Failed:
		return errored
	}
	return completed
}

// Fail makes the pending attach of a volume end as errored. The volume is detached again.
func (f *Front) Fail(volume string) {
	_, err := f.cloud.Do(context.Background(), cloud.Call{Action: "Fail", Aside: true}, func(r *cloud.Request) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, a := range f.actions {
			if a.volume == volume && a.kind == "attach" && f.status(a) == inProgress {
				a.errored = true
				_, err := r.DetachVolume(volume, "", "", true)
				return err
			}
		}
		return errors.New("no attach is pending")
	})
	if err != nil {
		panic("digitalocean: " + volume + ": " + err.Error())
	}
}

func isInUse(err error) bool { return errors.Is(err, cloud.ErrInUse) }

// underway reports whether an attachment is being attached or detached.
func underway(v cloud.Volume) bool {
	return len(v.Attachments) > 0 && (v.Attachments[0].State == cloud.Attaching || v.Attachments[0].State == cloud.Detaching)
}

// engaged reports whether an action of the droplet or of one of its volumes is pending.
func (f *Front) engaged(droplet string) bool {
	if i, _ := f.cloud.Instance(droplet); i.State != cloud.Running && i.State != cloud.Stopped {
		return true
	}
	return f.cloud.AnyVolume(func(v cloud.Volume) bool {
		held := len(v.Attachments) > 0 && v.Attachments[0].Instance == droplet
		return held && (underway(v) || resizing(v))
	})
}

func resizing(v cloud.Volume) bool {
	return v.Modification != nil && v.Modification.State == cloud.Modifying
}

var errFull = errors.New("the droplet has the maximum number of volumes")

func (f *Front) act(r *rest.Request) (rest.Answer, error) {
	var in struct {
		Type          string  `json:"type"`
		DropletID     *int64  `json:"droplet_id"`
		Region        *string `json:"region"`
		SizeGigabytes *int64  `json:"size_gigabytes"`
	}
	if err := f.decode(r, &in); err != nil {
		return rest.Answer{}, err
	}
	v, ok := f.cloud.Volume(r.HTTP.PathValue("id"))
	if !ok || !there(v) {
		return rest.Answer{}, f.notFound()
	}
	if in.Region != nil && *in.Region != v.Zone {
		return rest.Answer{}, f.invalid("the volume is not in region %s", *in.Region)
	}
	switch in.Type {
	case "attach", "detach":
		if in.SizeGigabytes != nil || in.DropletID == nil {
			return rest.Answer{}, f.invalid("%s takes droplet_id, and no size_gigabytes", in.Type)
		}
		droplet := strconv.FormatInt(*in.DropletID, 10)
		if i, ok := f.cloud.Instance(droplet); !ok || i.State == cloud.Terminated {
			return rest.Answer{}, f.notFound()
		}
		if in.Type == "attach" {
			return f.attach(r, v, droplet)
		}
		return f.detach(r, v, droplet)
	case "resize":
		if in.SizeGigabytes == nil || in.Region == nil || in.DropletID != nil {
			return rest.Answer{}, f.invalid("resize takes size_gigabytes and region, and no droplet_id")
		}
		return f.resize(r, v, *in.SizeGigabytes)
	}
	return rest.Answer{}, f.invalid("type must be attach, detach or resize")
}

func (f *Front) attach(r *rest.Request, v cloud.Volume, droplet string) (rest.Answer, error) {
	f.mu.Lock()
	_, err := r.AttachVolume(v.ID, droplet, "", func(_ cloud.Instance, held []cloud.Volume) error {
		switch {
		case slices.ContainsFunc(held, func(v cloud.Volume) bool { return underway(v) || resizing(v) }), resizing(v):
			return cloud.ErrState
		case len(held) >= f.cfg.Most:
			return errFull
		}
		return nil
	})
	if err == nil {
		defer f.mu.Unlock()
		return f.begin(v, "attach"), nil
	}
	now, _ := f.cloud.Volume(v.ID)
	f.mu.Unlock()
	switch {
	case errors.Is(err, errFull):
		return rest.Answer{}, f.invalid("cannot attach more volumes to the Droplet")
	case isInUse(err) && !underway(now):
		return rest.Answer{}, f.invalid("This volume is already attached")
	case isInUse(err):
		return rest.Answer{}, f.pending("Volume")
	case errors.Is(err, cloud.ErrState):
		return rest.Answer{}, f.pending("Droplet")
	}
	return rest.Answer{}, err
}

func (f *Front) detach(r *rest.Request, v cloud.Volume, droplet string) (rest.Answer, error) {
	f.mu.Lock()
	busy := f.engaged(droplet)
	var err error
	if !busy {
		if _, err = r.DetachVolume(v.ID, droplet, "", false); err == nil {
			defer f.mu.Unlock()
			return f.begin(v, "detach"), nil
		}
	}
	f.mu.Unlock()
	switch {
	case busy:
		return rest.Answer{}, f.pending("Droplet")
	case errors.Is(err, cloud.ErrState), errors.Is(err, cloud.ErrNotAttached):
		return rest.Answer{}, f.invalid("Attachment not found")
	}
	return rest.Answer{}, err
}

func (f *Front) resize(r *rest.Request, v cloud.Volume, gibs int64) (rest.Answer, error) {
	if gibs > mostGiB {
		return rest.Answer{}, f.invalid("size_gigabytes must be between 1 and %d", mostGiB)
	}
	f.mu.Lock()
	busy, small := false, false
	_, err := r.ModifyVolume(v.ID, func(v cloud.Volume) (cloud.Shape, error) {
		busy, small = underway(v) || resizing(v), gibs <= v.Size/gib
		if busy || small {
			return cloud.Shape{}, cloud.ErrState
		}
		return cloud.Shape{Size: gibs * gib}, nil
	})
	if err == nil {
		defer f.mu.Unlock()
		return f.begin(v, "resize"), nil
	}
	f.mu.Unlock()
	if !busy && small {
		return rest.Answer{}, f.invalid("Volumes may only be resized upwards")
	}
	return rest.Answer{}, err
}

func (f *Front) listActions(r *rest.Request) (rest.Answer, error) {
	if _, err := f.query(r, "page", "per_page"); err != nil {
		return rest.Answer{}, err
	}
	if _, err := f.find(r, r.HTTP.PathValue("id")); err != nil {
		return rest.Answer{}, err
	}
	var shown []shownAction
	f.mu.Lock()
	for _, a := range slices.Backward(f.actions) {
		if a.volume == r.HTTP.PathValue("id") {
			shown = append(shown, a.show(f.status(a)))
		}
	}
	f.mu.Unlock()
	return page(f, r, "actions", shown)
}

func (f *Front) getAction(r *rest.Request) (rest.Answer, error) {
	volume := r.HTTP.PathValue("id")
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.actions {
		if (volume == "" || a.volume == volume) && strconv.Itoa(a.id) == r.HTTP.PathValue("action") {
			return rest.Answer{Status: http.StatusOK, Body: map[string]any{"action": a.show(f.status(a))}}, nil
		}
	}
	return rest.Answer{}, cloud.ErrNoVolume
}
