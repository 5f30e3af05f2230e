package pause

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestQuestionsAboutWhatTakesTimeBecomeRarer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Most: 2 * time.Second}
		for _, most := range []time.Duration{least, 2 * least, 4 * least, b.Most, b.Most} {
			begin := time.Now()
			require.NoError(t, b.Wait(t.Context()))
			assert.GreaterOrEqual(t, time.Since(begin), most/2)
			assert.LessOrEqual(t, time.Since(begin), most)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, b.Wait(ctx), context.Canceled)
	})
}
