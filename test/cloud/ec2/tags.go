package ec2

import (
	"errors"
	"maps"

	"github.com/blockvol/blockvol/test/cloud"
)

// maxResources is the maximum number of resources of a request.
const maxResources = 1000

// taggable returns the resources whose tags the request edits.
func (r *request) taggable() ([]string, error) {
	ids := r.params.list("ResourceId")
	if len(ids) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter resourceIdSet")
	}
	if len(ids) > maxResources {
		return nil, refuse("InvalidParameterValue", "The maximum number of resources in one request is %d", maxResources)
	}
	for _, id := range ids {
		if !anID.MatchString(id) {
			return nil, refuse("InvalidID", "The ID '%s' is not valid", id)
		}
	}
	return ids, nil
}

func createTags(r *request) (any, error) {
	ids, err := r.taggable()
	if err != nil {
		return nil, err
	}
	given := r.params.tags("Tag")
	if len(given) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter tagSet")
	}
	wanted, err := tagMap(given)
	if err != nil {
		return nil, err
	}
	return r.edit(ids, func(_ string, tags map[string]string) error {
		maps.Copy(tags, wanted)
		if len(tags) > maxTags {
			return tooManyTags()
		}
		return nil
	})
}

func deleteTags(r *request) (any, error) {
	ids, err := r.taggable()
	if err != nil {
		return nil, err
	}
	unwanted := r.params.tags("Tag")
	return r.edit(ids, func(_ string, tags map[string]string) error {
		if len(unwanted) == 0 {
			clear(tags)
		}
		for _, t := range unwanted {
			if value, ok := tags[t.key]; ok && (!t.valued || value == t.value) {
				delete(tags, t.key)
			}
		}
		return nil
	})
}

func (r *request) edit(ids []string, edit func(id string, tags map[string]string) error) (any, error) {
	missing, err := r.EditTags(ids, edit)
	switch {
	case errors.Is(err, cloud.ErrNoVolume):
		return nil, noVolume(missing)
	case errors.Is(err, cloud.ErrNoInstance):
		return nil, noInstance(missing)
	case errors.Is(err, cloud.ErrNoSnapshot):
		return nil, noSnapshot(missing)
	}
	return done{true}, err
}
