package ec2

import (
	"errors"
	"slices"

	"github.com/blockvol/blockvol/test/cloud"
)

type changeItem struct {
	InstanceID string `xml:"instanceId"`
	Current    state  `xml:"currentState"`
	Previous   state  `xml:"previousState"`
}

type changes struct {
	Instances []changeItem `xml:"instancesSet>item"`
}

func needsInstances(r *request) (all []permission) {
	for _, id := range r.params.list("InstanceId") {
		all = append(all, r.on(id))
	}
	return all
}

// stopInstances stops instances, also those that are stopping, as EC2's "force stop" does. Without SkipOsShutdown it lets the guest
// shut down first. See https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StopInstances.html
func stopInstances(r *request) (any, error) {
	force, err := r.params.truth("Force")
	if err != nil {
		return nil, err
	}
	skip, err := r.params.truth("SkipOsShutdown")
	if err != nil {
		return nil, err
	}
	if hibernate, err := r.params.truth("Hibernate"); err != nil || hibernate {
		return nil, errors.Join(err, refuse("UnsupportedHibernationConfiguration", "The instance is not enabled for hibernation."))
	}
	return r.power("stopped", cloud.Stopping, func(id string) (cloud.InstanceState, error) { return r.Stop(id, force && skip) })
}

func startInstances(r *request) (any, error) {
	return r.power("started", cloud.Pending, r.Start)
}

// power changes the state of all instances of a request, or of none.
func (r *request) power(word string, to cloud.InstanceState, change func(id string) (was cloud.InstanceState, err error)) (any, error) {
	ids := r.params.list("InstanceId")
	if len(ids) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter InstanceId")
	}
	wrong := func(id string) error {
		return refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be %s.", id, word)
	}
	for _, id := range ids {
		if err := malformed("i", id, "instanceId"); err != nil {
			return nil, err
		}
		i, ok := r.front.cloud.Instance(id)
		if !ok {
			return nil, noInstance(id)
		}
		from := map[cloud.InstanceState][]cloud.InstanceState{
			cloud.Stopping: {cloud.Running, cloud.Stopping, cloud.Stopped},
			cloud.Pending:  {cloud.Stopped, cloud.Pending, cloud.Running},
		}[to]
		if !slices.Contains(from, i.State) {
			return nil, wrong(id)
		}
	}
	var answer changes
	for _, id := range ids {
		was, err := change(id)
		if errors.Is(err, cloud.ErrState) {
			err = wrong(id)
		}
		if err != nil {
			return nil, err
		}
		is := to
		if to == cloud.Stopping && was == cloud.Stopped || to == cloud.Pending && was == cloud.Running {
			is = was
		}
		answer.Instances = append(answer.Instances, changeItem{id, state{stateCodes[is], string(is)}, state{stateCodes[was], string(was)}})
	}
	return answer, nil
}
