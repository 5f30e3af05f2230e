package docker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCallsWaitAMomentForVolumesThatAreBeingOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for opens, answers := range map[time.Duration]time.Duration{0: 0, time.Second: time.Second, time.Hour: openingTimeout} {
			opened := errors.New("answered by what was opened")
			begin := time.Now()
			v := Opening(func() Volumes {
				time.Sleep(opens)
				return Broken(opened)
			})
			err := v.Remove(t.Context(), "data")
			assert.Equal(t, answers, time.Since(begin))
			if answers == opens {
				require.ErrorIs(t, err, opened)
				continue
			}
			require.ErrorIs(t, err, errOpening)
			require.ErrorIs(t, v.Remove(t.Context(), "data"), errOpening)
			assert.Equal(t, answers, time.Since(begin), "at once")
			time.Sleep(opens)
			require.ErrorIs(t, v.Remove(t.Context(), "data"), opened)
		}
		v := Opening(func() Volumes {
			time.Sleep(time.Second)
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, v.Remove(ctx, "data"), errOpening)
		time.Sleep(time.Minute)
	})
}
