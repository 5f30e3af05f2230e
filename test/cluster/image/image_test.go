package image_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cluster/image"
)

// The machines of later tests start from this image.
func TestImageIsBuiltOnceAndCached(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	made, err := image.Get(ctx, t)
	require.NoError(t, err)
	for _, file := range []string{made.Kernel, made.Initrd, made.Root} {
		assert.FileExists(t, file)
	}
	made.Release()
	again, err := image.Get(ctx, t)
	require.NoError(t, err)
	assert.Equal(t, made.Root, again.Root)
	again.Release()
}
