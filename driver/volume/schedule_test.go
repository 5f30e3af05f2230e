package volume

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
)

func at(text string) time.Time {
	t, err := time.Parse(time.DateTime, text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestTheLastTimeOfASchedule(t *testing.T) {
	now := at("2026-11-30 18:39:10") // a Monday
	for when, want := range map[string]string{
		"@hourly":      "2026-11-30 18:00:00",
		"@daily":       "2026-11-30 00:00:00",
		"@weekly":      "2026-11-29 00:00:00",
		"@monthly":     "2026-11-01 00:00:00",
		"@yearly":      "2026-01-01 00:00:00",
		"* * * * *":    "2026-11-30 18:39:00",
		"*/15 * * * *": "2026-11-30 18:30:00",
		"30 3 * * 0":   "2026-11-29 03:30:00",
		"0 4 1 3 *":    "2026-03-01 04:00:00",
	} {
		s, err := ParseSchedule(when, "")
		require.NoError(t, err, when)
		assert.True(t, s.Exists())
		assert.Equal(t, at(want), s.Last(now), when)
		assert.Equal(t, at(want), s.Last(at(want)), "%s: at that moment", when)
		assert.True(t, s.Last(at(want).Add(-time.Nanosecond)).Before(at(want)), "%s: before", when)
		assert.Equal(t, at(want), s.Last(now.In(time.FixedZone("east", 9*3600))), "%s: in another zone", when)
	}
	none, err := ParseSchedule("", "")
	require.NoError(t, err)
	assert.False(t, none.Exists())
	assert.Zero(t, none.Last(now))
}

func TestSnapshotsExpire(t *testing.T) {
	var taken []time.Time
	for hour := range 24 * 60 { // each hour, the last at 2026-11-30 18:00
		taken = append(taken, at("2026-11-30 18:00:00").Add(-time.Duration(hour)*time.Hour))
	}
	for keep, want := range map[string][]string{
		"":      {"2026-11-30 18:00:00", "2026-11-30 17:00:00", "2026-11-30 16:00:00", "2026-11-30 15:00:00", "2026-11-30 14:00:00", "2026-11-30 13:00:00", "2026-11-30 12:00:00"},
		"1":     {"2026-11-30 18:00:00"},
		"3d":    {"2026-11-30 18:00:00", "2026-11-29 23:00:00", "2026-11-28 23:00:00"},
		"2, 2d": {"2026-11-30 18:00:00", "2026-11-30 17:00:00", "2026-11-29 23:00:00"},
		"3w":    {"2026-11-30 18:00:00", "2026-11-29 23:00:00", "2026-11-22 23:00:00"},
		"2m,1h": {"2026-11-30 18:00:00", "2026-10-31 23:00:00"},
		"9y":    {"2026-11-30 18:00:00"},
	} {
		s, err := ParseSchedule("@hourly", keep)
		require.NoError(t, err, keep)
		gone := map[time.Time]bool{}
		for _, at := range s.Expired(taken) {
			gone[at] = true
		}
		var kept []time.Time
		for _, at := range taken {
			if !gone[at] {
				kept = append(kept, at)
			}
		}
		var wanted []time.Time
		for _, text := range want {
			wanted = append(wanted, at(text))
		}
		assert.Equal(t, wanted, kept, keep)
	}
}

func TestSchedulesThatAreNone(t *testing.T) {
	for _, wrong := range []struct{ when, keep, says string }{
		{"", "7", "give snapshot-schedule as well"},
		{"@every 1h", "", "not an interval"},
		{"CRON_TZ=Europe/Berlin 0 3 * * *", "", "must be in UTC"},
		{"TZ=UTC 0 3 * * *", "", "must be in UTC"},
		{"daily", "", "must be minute, hour"},
		{"61 * * * *", "", "must be minute, hour"},
		{"@daily", "0", `snapshot-keep="0"`},
		{"@daily", "7d,,3w", `snapshot-keep="7d,,3w"`},
		{"@daily", "7x", `snapshot-keep="7x"`},
		{"@daily", "-7", `snapshot-keep="-7"`},
		{"@daily", "99999d", `snapshot-keep="99999d"`},
	} {
		_, err := ParseSchedule(wrong.when, wrong.keep)
		require.ErrorContains(t, err, wrong.says)
		assert.False(t, ScheduleOf(providers.Record{KeySchedule: wrong.when, KeyKeep: wrong.keep}).Exists(), "what cannot be read takes nothing and deletes nothing")
	}
	assert.False(t, ScheduleOf(providers.Record{KeySchedule: NoSchedule}).Exists())
	assert.True(t, ScheduleOf(providers.Record{KeySchedule: "@daily"}).Exists())
}

func TestWhatASnapshotWasDueFor(t *testing.T) {
	due := at("2026-11-30 18:00:00")
	assert.Equal(t, due, DueAt(providers.Record{KeyTaken: TakenAt(due.In(time.FixedZone("east", 9*3600)))}))
	assert.True(t, IsToCopy(providers.Record{KeyTaken: ToCopy("a", "data")}))
	assert.NotEqual(t, ToCopy("a", "data"), ToCopy("b", "data"))
	assert.True(t, IsToMake(providers.Record{KeyTaken: ToCopy("a", "data")}, "data"))
	assert.False(t, IsToMake(providers.Record{KeyTaken: ToCopy("a", "data")}, "copy"))
	for _, reason := range []string{"", TakenByHand, ToCopy("a", "data"), TakenToRemove, "at noon", "2026-11-30T18:00:00Z"} {
		assert.Zero(t, DueAt(providers.Record{KeyTaken: reason}), reason)
	}
}
