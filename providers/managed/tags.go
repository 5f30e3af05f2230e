package managed

import (
	"context"

	"github.com/blockvol/blockvol/providers"
)

// Tags returns the operator's own tags of a volume, without those that a new one could not be given, as the cloud's own.
func (p *Provider[V]) Tags(ctx context.Context, id string) (map[string]string, error) {
	d, err := p.GetOurs(ctx, id)
	if err != nil || p.cloud.Tags == nil {
		return nil, err
	}
	tags := make(map[string]string)
	for key, value := range p.cloud.Tags(d.Native) {
		if p.cloud.CheckSpec(providers.Spec{Tags: map[string]string{key: value}}) == nil {
			tags[key] = value
		}
	}
	return tags, nil
}
