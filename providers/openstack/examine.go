package openstack

import (
	"context"

	"github.com/gophercloud/gophercloud/v2/openstack/blockstorage/v3/limits"

	"github.com/blockvol/blockvol/providers/managed"
)

// quotas asks for the limits of the project, which have what is used in one answer.
func (p *Provider) quotas(ctx context.Context) ([]managed.Quota, error) {
	told, err := call(ctx, p, "the request for the limits of the project", func(ctx context.Context, s *session) (*limits.Limits, error) {
		return limits.Get(ctx, s.volume).Extract()
	})
	if err != nil {
		return nil, err
	}
	a := told.Absolute
	return []managed.Quota{
		{What: "volumes", Used: int64(a.TotalVolumesUsed), Most: int64(a.MaxTotalVolumes)},
		{What: "GiB", Used: int64(a.TotalGigabytesUsed), Most: int64(a.MaxTotalVolumeGigabytes)},
		{What: "snapshots", Used: int64(a.TotalSnapshotsUsed), Most: int64(a.MaxTotalSnapshots)},
	}, nil
}
