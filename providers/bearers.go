package providers

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Bearers are the volumes of a cluster by the names that they bear. One name is one volume's; if an accident or somebody's hands
// made it two, neither is taken for the right one.
type Bearers[V any] struct {
	Cloud   string         // for people
	Cluster string         // for people
	Show    func(V) string // which volume it is, for people
	Take    string         // what those that are not meant shall lose: "the label x"
}

// One returns the volume of the name, of all that bear it. Errors: ErrNotFound, ErrAmbiguous.
func (b Bearers[V]) One(name string, all []V) (one V, err error) {
	switch len(all) {
	case 0:
		return one, fmt.Errorf("%w: %s has none named %q in cluster %q", ErrNotFound, b.Cloud, name, b.Cluster)
	case 1:
		return all[0], nil
	}
	shown := make([]string, len(all))
	for i, v := range all {
		shown[i] = b.Show(v)
	}
	slices.Sort(shown)
	return one, fmt.Errorf("%w: %q is the name of %s: find out which holds the data, and take %s from the others", ErrAmbiguous, name, strings.Join(shown, " and "), b.Take)
}

// List describes the volumes, sorted by name, as Provider.List returns them: the error names what is not among them, problems
// that were met before included.
func (b Bearers[V]) List(byName map[string][]V, describe func(V) (*Volume, error), problems ...error) (list []*Volume, err error) {
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		var described *Volume
		one, err := b.One(name, byName[name])
		if err == nil {
			described, err = describe(one)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		list = append(list, described)
	}
	return list, errors.Join(problems...)
}
