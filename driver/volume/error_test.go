package volume

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

func TestASentenceIsCauseThenPlaceThenAdvice(t *testing.T) {
	place := Error{Op: Mount, Volume: "data", ID: "vol-1", Node: "a"}
	full := errors.New("disk full")
	for want, err := range map[string]error{
		`disk full (volume "data", vol-1, node a)`:                               full,
		`disk full (volume "data", vol-1, node a); make room`:                    Advise(full, "make room"),
		`disk full: it is not mounted (volume "data", vol-1, node a); make room`: Also(Advise(full, "make room"), "it is not mounted"),
		`disk full: it is not mounted (volume "data", vol-1, node a)`:            Also(full, "it is not mounted"),
	} {
		at := At(err, place)
		require.EqualError(t, at, want)
		require.ErrorIs(t, at, full)
		require.EqualError(t, At(at, Error{Op: Remove, Volume: "other", ID: "vol-2", Node: "b"}), want, "where it has happened is said once")
	}
	require.NoError(t, At(nil, place))
}

func TestTheCodeOfAnErrorIsThatOfItsCause(t *testing.T) {
	for err, want := range map[error]Code{
		errors.New("?"): Failed,
		fmt.Errorf("%w: no", providers.ErrAttachLimit):                              NoSpace,
		Advise(fmt.Errorf("%w: no", providers.ErrHeld), "wait"):                     Held,
		fmt.Errorf("no: %w", Fail(WrongDisk, "another disk", "")):                   WrongDisk,
		Also(Fail(Unavailable, "the journal cannot be written", ""), "not mounted"): Unavailable,
		fmt.Errorf("%w: no", mount.ErrBusy):                                         InUse,
	} {
		require.ErrorIs(t, At(err, Error{Op: Mount}), want)
		assert.Equal(t, want, CodeOf(err))
	}
}
