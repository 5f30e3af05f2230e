package providers

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEveryAttachmentHoldsTheVolume(t *testing.T) {
	for _, state := range []AttachState{Attaching, Attached, Detaching, AttachFailed} {
		v := &Volume{Attachment: Attachment{Node: "a", State: state}}
		assert.True(t, v.Held())
		assert.True(t, v.HeldBy("a"))
		assert.False(t, v.HeldBy("b"))
	}
	v := &Volume{Attachment: Attachment{Node: "a"}}
	assert.False(t, v.Held())
	assert.False(t, v.HeldBy("a"))
}

func TestWhoHoldsAVolumeIsNamed(t *testing.T) {
	require.EqualError(t, &HeldError{Volume: "1", Node: "b"}, "volume 1 is attached to node b")
	require.EqualError(t, &HeldError{Volume: "1"}, "volume 1 is attached to another node")
	require.ErrorIs(t, &HeldError{}, ErrHeld)
	require.NotErrorIs(t, &HeldError{}, ErrBusy)
	require.ErrorIs(t, NotOurs("1"), ErrNotFound)
	require.ErrorIs(t, Sizes{}.Shrinks("1", 2), ErrInvalid)
}

func TestNamesAndRecordsHaveTheirLimits(t *testing.T) {
	long := strings.Repeat("x", 255)
	for _, name := range []string{"a", long} {
		require.NoError(t, CheckName(name))
	}
	for _, name := range []string{"", long + "x"} {
		require.ErrorIs(t, CheckName(name), ErrInvalid)
	}
	for _, record := range []Record{nil, {"key-16-bytes-lon": long}} {
		require.NoError(t, CheckRecord(record))
	}
	for _, record := range []Record{{"key-17-bytes-long": ""}, {"Key": ""}, {"": ""}, {"key": long + "x"}} {
		require.ErrorIs(t, CheckRecord(record), ErrInvalid)
	}
}

func TestAnAnswerIsAsOldAsTheFirstRequestThatWasHeard(t *testing.T) {
	first, later := time.Unix(1, 0), time.Unix(2, 0)
	NoteAsked(t.Context(), first)() // nobody wants to know
	ctx, asked := WithAsked(t.Context())
	assert.Zero(t, asked.At())
	NoteAsked(ctx, time.Time{})
	assert.Zero(t, asked.At())
	unheard := NoteAsked(ctx, first)
	assert.Equal(t, first, asked.At())
	NoteAsked(ctx, later)()
	assert.Equal(t, first, asked.At(), "what a later request says is its own")
	unheard()
	assert.Zero(t, asked.At())
	NoteAsked(ctx, later)
	assert.Equal(t, later, asked.At())
}

// none is a provider that cannot do anything.
type none struct{ Provider }

func TestAConstructorThatFailedGivesNoProvider(t *testing.T) {
	p, err := AsProvider((*none)(nil), errors.New("no"))
	require.EqualError(t, err, "no")
	require.Nil(t, p)
	p, err = AsProvider(&none{}, nil)
	require.NoError(t, err)
	require.NotNil(t, p)
}
