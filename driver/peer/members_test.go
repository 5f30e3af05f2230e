package peer

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/volume"
)

// village is nodes of which one answers, and tells of another that does not.
type village struct{ answers, dead string }

func (v village) Ask(context.Context, []netip.Addr, volume.Want) (volume.Holding, error) {
	return volume.Holding{}, errors.New("no answer")
}

func (v village) Greet(_ context.Context, to string, _ []netip.Addr, hello Hello) (Hello, error) {
	if to != v.answers {
		return Hello{}, errors.New("no answer")
	}
	return Hello{From: to, To: hello.From, Nodes: map[string]Sign{v.dead: {Met: true, Heard: time.Minute}}}, nil
}

func TestWhoIsThereIsFoundOutWhenANodeIsAskedForAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		m := NewMembers(func(context.Context) (string, error) { return "a", nil }, village{answers: "b", dead: "c"}, "", logrus.New())
		var finds, there atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.Run(ctx, func(context.Context, func(string) bool) (map[string][]netip.Addr, error) {
				finds.Add(1)
				if there.Load() == 0 {
					return nil, nil
				}
				return map[string][]netip.Addr{"b": nil, "c": nil}, nil
			})
		}()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		assert.LessOrEqual(t, finds.Load(), int64(24*12*2), "while nobody is there")
		assert.Empty(t, m.Known())
		for before := finds.Load(); finds.Load() == before; synctest.Wait() {
			time.Sleep(time.Second)
		}
		before := finds.Load()
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Equal(t, before, finds.Load(), "the next is some minutes away")
		there.Store(1)
		_, err := m.Ask(ctx, nil, volume.Want{To: "c"})
		require.Error(t, err)
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, []string{"b", "c"}, m.Known())
		end()
		<-done
	})
}
