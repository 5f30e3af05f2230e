package aws

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

func TestRefusalsComeWithAdvice(t *testing.T) {
	for _, refusal := range []struct {
		action, code string
		is           error
		advice       string
	}{
		{"CreateVolume", "VolumeLimitExceeded", providers.ErrNoSpace, "higher quota"},
		{"CreateVolume", "InsufficientVolumeCapacity", providers.ErrBusy, "-o zone=…"},
		{"CreateVolume", "VolumeTypeNotAvailableInZone", providers.ErrInvalid, "-o type=…"},
		{"CreateVolume", "UnknownVolumeType", providers.ErrInvalid, "-o type=…"},
		{"CreateVolume", "VolumeIOPSLimit", providers.ErrInvalid, "-o iops=…"},
		{"CreateVolume", "KMS.DisabledException", providers.ErrInvalid, "KMS key"},
		{"CreateVolume", "TagPolicyViolation", providers.ErrInvalid, "tag policy"},
		{"CreateVolume", "PendingVerification", nil, "AWS Support"},
		{"AttachVolume", "CustomerKeyHasBeenRevoked", providers.ErrInvalid, "KMS key"},
		{"AttachVolume", "EncryptedVolumesNotSupported", providers.ErrInvalid, "instance type"},
		{"ModifyVolume", "VolumeModificationSizeLimitExceeded", providers.ErrNoSpace, "wait"},
		{"CreateSnapshot", "PendingSnapshotLimitExceeded", providers.ErrBusy, "wait"},
		{"CreateSnapshot", "SnapshotCreationPerVolumeRateExceeded", providers.ErrBusy, "wait"},
	} {
		t.Run(refusal.code, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				p := w.on(w.node("a"))
				v := w.create(p, "db")
				w.cloud.Inject(cloud.Rule{Action: refusal.action, Fault: cloud.Fail, Code: refusal.code})
				var err error
				switch refusal.action {
				case "CreateVolume":
					_, err = p.Create(t.Context(), providers.Spec{Name: "more", Size: gib})
				case "AttachVolume":
					err = providertest.Attach(t.Context(), p, v.ID)
				case "ModifyVolume":
					_, err = p.Modify(t.Context(), v.ID, providers.Change{Size: 2 * gib})
				case "CreateSnapshot":
					_, err = p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "backup"})
				}
				providertest.Sentence(t, err, refusal.action, refusal.code, refusal.advice)
				if refusal.is != nil {
					require.ErrorIs(t, err, refusal.is)
				}
			})
		})
	}
}
