package aws

import (
	"context"
	"slices"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// ofPlugin returns the volumes that have a name for people, by which rexray knows its own. It gives them no mark. Others have names, too:
// those that are deleted with their instance, as the disks that instances start from, are not rexray's.
func (p *Provider) ofPlugin(ctx context.Context) ([]types.Volume, error) {
	return p.describeVolumes(ctx, filter("tag-key", tagShown), sdk.Int32(500))
}

func pluginName(v types.Volume) (name string, marked bool) {
	if !exists(v) || slices.ContainsFunc(v.Attachments, func(a types.VolumeAttachment) bool { return sdk.ToBool(a.DeleteOnTermination) }) {
		return "", false
	}
	return tagMap(v.Tags)[tagShown], false
}
