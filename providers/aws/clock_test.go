package aws

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

// A signature contains a time. EC2's refusal contains its own time.
func TestAWrongClockIsCorrected(t *testing.T) {
	for _, ahead := range []time.Duration{time.Hour, -time.Hour} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			p := w.on(w.node("a"))
			v := w.create(p, "db")
			for _, ahead := range []time.Duration{ahead, 0} { // and made right in the end
				w.cloud.SetClock(ahead)
				w.cloud.ResetCalls()
				_, err := p.Find(t.Context(), "db")
				require.NoError(t, err)
				assert.Equal(t, map[string]int{"DescribeVolumes": 2}, w.cloud.Calls())
				require.NoError(t, p.Mark(t.Context(), v.ID, "key", ahead.String()))
				assert.Equal(t, 1, w.cloud.Calls()["CreateTags"], "the difference is known now")
			}
		})
	}
}

func TestAWrongClockIsCorrectedForRequestsSentOnce(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		v := w.create(p, "db")
		w.cloud.SetClock(time.Hour)
		_, err := p.Snapshot(t.Context(), v.ID, providers.SnapshotSpec{Description: "one"})
		require.NoError(t, err)
		assert.Len(t, w.cloud.Snapshots(), 1)
	})
}

func TestRefusedKeysAreNotRetried(t *testing.T) {
	for _, code := range []string{"AuthFailure", "SignatureDoesNotMatch"} {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			p := w.on(w.node("a"))
			w.create(p, "db")
			w.cloud.ResetCalls()
			w.cloud.Inject(cloud.Rule{Fault: cloud.Fail, Code: code})
			_, err := p.Find(t.Context(), "db")
			providertest.Sentence(t, err, code, "AWS_ACCESS_KEY_ID", "role", "clock")
			assert.Equal(t, map[string]int{"DescribeVolumes": 1}, w.cloud.Calls())
		})
	}
}

func TestAnExpiredSessionTokenIsReported(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node("a"))
		w.create(p, "db")
		w.cloud.ResetCalls()
		w.cloud.Inject(cloud.Rule{Fault: cloud.Fail, Code: "RequestExpired"})
		_, err := p.Find(t.Context(), "db")
		providertest.Sentence(t, err, "RequestExpired", "clock", "session token has expired")
		assert.Equal(t, map[string]int{"DescribeVolumes": 2}, w.cloud.Calls())
	})
}

// The SDK checks the expiry of credentials by the node's clock.
func TestRoleCredentialsAreRenewedDespiteAWrongClock(t *testing.T) {
	for _, ahead := range []time.Duration{40 * time.Minute, 7 * time.Hour, -40 * time.Minute, -7 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				w.cloud.SetClock(ahead)
				p := w.on(w.node("a"))
				w.create(p, "db")
				for range 2 * 24 * 12 {
					_, err := p.Find(t.Context(), "db")
					require.NoError(t, err)
					time.Sleep(5 * time.Minute)
				}
			})
		})
	}
}
