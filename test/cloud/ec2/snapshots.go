package ec2

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/blockvol/blockvol/test/cloud"
)

type snapshotItem struct {
	SnapshotID     string    `xml:"snapshotId"`
	VolumeID       string    `xml:"volumeId"`
	Status         string    `xml:"status"`
	StartTime      string    `xml:"startTime"`
	CompletionTime string    `xml:"completionTime,omitempty"`
	Progress       string    `xml:"progress"`
	OwnerID        string    `xml:"ownerId"`
	VolumeSize     int64     `xml:"volumeSize"`
	Description    string    `xml:"description"`
	Encrypted      bool      `xml:"encrypted"`
	KMSKeyID       string    `xml:"kmsKeyId,omitempty"`
	StorageTier    string    `xml:"storageTier"`
	Tags           []tagItem `xml:"tagSet>item"`
}

func (f *Front) snapshotItem(s cloud.Snapshot) snapshotItem {
	return snapshotItem{
		s.ID, s.VolumeID, string(s.State), stamp(s.StartedAt), stamp(s.CompletedAt), integer(s.Progress)[0] + "%",
		f.cfg.Account, s.Size / gib, s.Description, s.Encrypted, s.KMSKey, "standard", tagItems(s.Tags),
	}
}

// snapshotFields are the filters of DescribeSnapshots. All snapshots belong to the account.
func (f *Front) snapshotFields(s cloud.Snapshot, name string) ([]string, bool) {
	switch name {
	case "description":
		return []string{s.Description}, true
	case "encrypted":
		return boolean(s.Encrypted), true
	case "owner-alias":
		return nil, true
	case "owner-id":
		return []string{f.cfg.Account}, true
	case "progress":
		return []string{integer(s.Progress)[0] + "%"}, true
	case "snapshot-id":
		return []string{s.ID}, true
	case "start-time":
		return []string{stamp(s.StartedAt)}, true
	case "status":
		return []string{string(s.State)}, true
	case "storage-tier", "transfer-type":
		return []string{"standard"}, true
	case "volume-id":
		return []string{s.VolumeID}, true
	case "volume-size":
		return integer(s.Size / gib), true
	default:
		return tagFields(s.Tags, name)
	}
}

// maxDescription is the limit in characters.
const maxDescription = 255

func createSnapshot(r *request) (any, error) {
	volume, err := r.idParam("vol", "VolumeId")
	if err != nil {
		return nil, err
	}
	description := r.params.get("Description")
	if utf8.RuneCountInString(description) > maxDescription {
		return nil, refuse("InvalidParameterValue", "The description must not be longer than %d characters.", maxDescription)
	}
	tags, err := r.params.specifiedTags("snapshot")
	if err != nil {
		return nil, err
	}
	s, err := r.CreateSnapshot(volume, description, tags)
	switch {
	case errors.Is(err, cloud.ErrNoVolume):
		return nil, noVolume(volume)
	case errors.Is(err, cloud.ErrState):
		return nil, refuse("IncorrectState", "The volume '%s' is not 'available'.", volume)
	case err != nil:
		return nil, err
	}
	return r.front.snapshotItem(s), nil
}

func deleteSnapshot(r *request) (any, error) {
	id, err := r.idParam("snap", "SnapshotId")
	if err != nil {
		return nil, err
	}
	if err := r.DeleteSnapshot(id); errors.Is(err, cloud.ErrNoSnapshot) {
		return nil, noSnapshot(id)
	}
	return done{true}, nil
}

func describeSnapshots(r *request) (any, error) {
	page, next, err := read[cloud.Snapshot]{
		param: "SnapshotId", kind: "snap", shown: "snapshots",
		id:      func(s cloud.Snapshot) string { return s.ID },
		key:     func(s cloud.Snapshot) string { return byAge(s.StartedAt, s.ID) },
		missing: noSnapshot,
		fields:  r.front.snapshotFields,
		least:   5, most: 1000,
	}.of(r, everything(r.Snapshots()))
	if err != nil {
		return nil, err
	}
	answer := struct {
		Snapshots []snapshotItem `xml:"snapshotSet>item"`
		Next      string         `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, s := range page {
		if r.ownSnapshots() {
			answer.Snapshots = append(answer.Snapshots, r.front.snapshotItem(s))
		}
	}
	return answer, nil
}

// ownSnapshots reports whether the requested owners include this account.
func (r *request) ownSnapshots() bool {
	owners := strings.Join(r.params.list("Owner"), " ")
	return owners == "" || strings.Contains(owners, "self") || strings.Contains(owners, r.front.cfg.Account)
}
