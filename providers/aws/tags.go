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

// The tags by which a volume is ours. EC2 allows any character in them, up to 128 in a key and 256 in a value, and 50 of
// them on a volume (Amazon EC2 User Guide, "Tag restrictions").
const (
	tagPrefix  = "blockvol:"
	tagCluster = tagPrefix + "cluster" // CLUSTER; the IAM policy's conditions rest on it
	tagName    = tagPrefix + "name"    // Docker's name, exact
	// tagKey is what volumes are looked up by: a digest of cluster and name. A filter on the name itself would take * and ?
	// in it for wildcards.
	tagKey    = tagPrefix + "key"
	tagRecord = tagPrefix + "record:" // followed by the entry's key
	tagTurn   = tagPrefix + "turn"    // of the ClientToken that made the volume, see tokenOf
	tagKMSKey = tagPrefix + "kms-key" // the key that was asked for, in the words in which it was; EC2 tells its ARN
	tagOrigin = tagPrefix + "origin"  // on a snapshot: a digest of what it was asked to be
	tagShown  = "Name"                // what the console shows; set unless the operator's own tags say otherwise

	maxTags     = 50
	maxTagValue = 256
)

// keyOf is the lookup key of a name.
func (p *Provider) keyOf(name string) string { return labels.Digest(p.cluster, name) }

// tagMap are the tags of a volume or snapshot.
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

// recordOf takes the record out of the tags.
func recordOf(tags map[string]string) providers.Record {
	rec := providers.Record{}
	for key, value := range tags {
		if entry, is := strings.CutPrefix(key, tagRecord); is {
			rec[entry] = value
		}
	}
	return rec
}

func recordTags(rec providers.Record) map[string]string {
	tags := make(map[string]string, len(rec))
	for key, value := range rec {
		tags[tagRecord+key] = value
	}
	return tags
}

// marks are the tags that make a volume this cluster's under that name, with all that goes with it.
func (p *Provider) marks(spec providers.Spec) map[string]string {
	tags := map[string]string{tagShown: spec.Name}
	maps.Copy(tags, spec.Tags)
	maps.Copy(tags, recordTags(spec.Record))
	tags[tagCluster], tags[tagName], tags[tagKey] = p.cluster, spec.Name, p.keyOf(spec.Name)
	if spec.KMSKey != "" && len(spec.KMSKey) <= maxTagValue {
		tags[tagKMSKey] = spec.KMSKey
	}
	return tags
}

// checkSpec refuses what EC2 would, before anything is made.
func checkSpec(spec providers.Spec) error {
	if spec.Size < 0 {
		return fmt.Errorf("%w: the size is %d bytes", providers.ErrInvalid, spec.Size)
	}
	tags := spec.Tags
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		switch {
		case strings.HasPrefix(strings.ToLower(key), "aws:"), strings.HasPrefix(key, tagPrefix):
			return fmt.Errorf("%w: tag %q: keys that begin with aws: or %s are not for operators: choose another", providers.ErrInvalid, key, tagPrefix)
		case utf8.RuneCountInString(key) > 128:
			return fmt.Errorf("%w: the key of tag %q is longer than 128 characters", providers.ErrInvalid, key)
		case utf8.RuneCountInString(tags[key]) > maxTagValue:
			return fmt.Errorf("%w: the value of tag %q is longer than 256 characters", providers.ErrInvalid, key)
		}
	}
	return nil
}
