package linode

import (
	"net/http"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/rest"
)

// shutdown shuts an instance down: its system is asked first, and cut off if it does not do so. boot starts it. An instance that is so
// already is refused, in words that the reference does not tell.
func (f *Front) shutdown(r *rest.Request) (rest.Answer, error) {
	return f.power(r, &struct{}{}, cloud.Running, "off", func(id string) error { _, err := r.Stop(id, false); return err })
}

func (f *Front) boot(r *rest.Request) (rest.Answer, error) {
	var in struct {
		ConfigID int64 `json:"config_id"`
	}
	return f.power(r, &in, cloud.Stopped, "on", func(id string) error { _, err := r.Start(id); return err })
}

func (f *Front) power(r *rest.Request, in any, from cloud.InstanceState, word string, change func(id string) error) (rest.Answer, error) {
	if len(r.Body) > 0 {
		if err := decode(r, in); err != nil {
			return rest.Answer{}, err
		}
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	i, ok := f.cloud.Instance(r.HTTP.PathValue("id"))
	switch {
	case !ok || i.State == cloud.Terminated:
		return rest.Answer{}, notFound()
	case i.State != cloud.Running && i.State != cloud.Stopped, f.busy(i.ID, ""):
		return rest.Answer{}, errBusy
	case i.State != from:
		return rest.Answer{}, bad("", "Linode %s is already powered %s.", i.ID, word)
	}
	if err := change(i.ID); err != nil {
		return rest.Answer{}, err
	}
	return rest.Answer{Status: http.StatusOK, Body: struct{}{}}, nil
}
