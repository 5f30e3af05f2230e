package aws

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/labels"
)

// The tags of a volume of ours. EC2 allows any character in them, up to 128 in a key and 256 in a value, and 50 tags on a volume
// (Amazon EC2 User Guide, "Tag restrictions").
const (
	tagPrefix  = "blockvol:"
	tagCluster = tagPrefix + "cluster" // CLUSTER; the IAM policy's conditions use it
	tagName    = tagPrefix + "name"    // Docker's name, exact
	// tagKey is a digest of cluster and name, by which volumes are found: in a filter on the name itself, * and ? would be
	// wildcards.
	tagKey    = tagPrefix + "key"
	tagRecord = tagPrefix + "record:" // followed by the entry's key
	tagTurn   = tagPrefix + "turn"    // of the ClientToken that created the volume
	tagFormer = tagPrefix + "former-" // followed by cluster or name: whose a forgotten volume was
	tagKMSKey = tagPrefix + "kms-key" // the key as it was asked for; EC2 shows its ARN
	tagOrigin = tagPrefix + "origin"  // on a snapshot: a digest of the request for it
	tagShown  = "Name"                // what the console shows; the operator's own tag takes precedence

	maxTags     = 50
	maxTagValue = 256
)

// keyOf returns the value of tagKey for a name.
func (p *Provider) keyOf(name string) string { return labels.Digest(p.cfg.Cluster, name) }

func tagMap(tags []types.Tag) map[string]string {
	m := make(map[string]string, len(tags))
	for _, t := range tags {
		m[sdk.ToString(t.Key)] = sdk.ToString(t.Value)
	}
	return m
}

func tagList(tags map[string]string) []types.Tag {
	list := make([]types.Tag, 0, len(tags))
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, types.Tag{Key: &key, Value: sdk.String(tags[key])})
	}
	return list
}

// ownTags returns the tags that checkSpec accepts, which are the operator's, and the name that the console shows.
func ownTags(v types.Volume) map[string]string { return tagMap(v.Tags) }

func recordOf(tags map[string]string) providers.Record { return labels.CutPrefix(tagRecord, tags) }

func recordTags(rec providers.Record) map[string]string { return labels.AddPrefix(tagRecord, rec) }

// marks returns the tags of this cluster's volume of that name: its marks, its Record and the operator's tags.
func (p *Provider) marks(spec providers.Spec) map[string]string {
	tags := map[string]string{tagShown: spec.Name}
	maps.Copy(tags, spec.Tags)
	maps.Copy(tags, recordTags(spec.Record))
	tags[tagCluster], tags[tagName], tags[tagKey] = p.cfg.Cluster, spec.Name, p.keyOf(spec.Name)
	if spec.KMSKey != "" && len(spec.KMSKey) <= maxTagValue {
		tags[tagKMSKey] = spec.KMSKey
	}
	return tags
}

// checkSpec returns ErrInvalid for what EC2 would refuse later.
func checkSpec(spec providers.Spec) error {
	if spec.Size < 0 {
		return fmt.Errorf("%w: the size is %d bytes", providers.ErrInvalid, spec.Size)
	}
	for _, key := range slices.Sorted(maps.Keys(spec.Tags)) {
		switch {
		case strings.HasPrefix(strings.ToLower(key), "aws:"), strings.HasPrefix(key, tagPrefix):
			return fmt.Errorf("%w: tag %q: keys that begin with aws: or %s are reserved: choose another", providers.ErrInvalid, key, tagPrefix)
		case utf8.RuneCountInString(key) > 128:
			return fmt.Errorf("%w: the key of tag %q is longer than 128 characters", providers.ErrInvalid, key)
		case utf8.RuneCountInString(spec.Tags[key]) > maxTagValue:
			return fmt.Errorf("%w: the value of tag %q is longer than 256 characters", providers.ErrInvalid, key)
		}
	}
	return nil
}
