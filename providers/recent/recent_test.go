package recent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// A read that was under way while this process forgot the volume says nothing about it.
func TestAnOlderAnswerDoesNotReplaceANewerOne(t *testing.T) {
	var m Map[int, bool]
	early, late := time.Now(), time.Now().Add(time.Millisecond)
	m.Put(1, late, false)
	m.Put(1, early, true)
	ours, is := m.Get(time.Minute, 1)
	assert.True(t, is)
	assert.False(t, ours)
	m.Put(1, late.Add(time.Millisecond), true)
	ours, _ = m.Get(time.Minute, 1)
	assert.True(t, ours)
	m.Put(2, time.Now().Add(-time.Minute), true)
	_, is = m.Get(time.Minute, 2)
	assert.False(t, is, "it may have become another's")
	_, is = m.Get(time.Hour, 2)
	assert.True(t, is)
	_, is = m.Get(time.Hour, 3)
	assert.False(t, is)
}

func TestOldEntriesAreDroppedFromALargeMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map[int, bool]
		for i := range many {
			m.Put(i, time.Now(), true)
		}
		time.Sleep(old + time.Second)
		m.Put(0, time.Now(), true)
		_, is := m.Get(2*old, 1)
		assert.True(t, is)
		m.Put(many, time.Now(), true)
		_, is = m.Get(2*old, 1)
		assert.False(t, is)
		for _, kept := range []int{0, many} {
			_, is = m.Get(2*old, kept)
			assert.True(t, is)
		}
	})
}

// The cost of a list of thousands would be quadratic if each of its keys led to a search for old ones.
func TestOldKeysAreLookedForSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Map[int, bool]
		for i := range many + 1 {
			m.Put(i, time.Now(), true)
		}
		time.Sleep(old + time.Second)
		has := func(key int) bool { _, is := m.Get(2*old, key); return is }
		for i := range many - 1 {
			m.Put(many+1+i, time.Now(), true)
		}
		assert.True(t, has(0), "as many again as were left after the last search")
		m.Put(2*many, time.Now(), true)
		assert.False(t, has(0))
		assert.True(t, has(many+1))
	})
}
