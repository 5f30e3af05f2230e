package volume

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/blockvol/blockvol/providers"
)

// Schedule is when snapshots of a volume are taken, and which of them are kept. The zero Schedule takes none.
type Schedule struct {
	when cron.Schedule
	keep []rule
}

// rule keeps the latest snapshot of each of the last count periods that have any.
type rule struct {
	count  int
	period period
}

// period tells which period a time belongs to.
type period func(time.Time) string

// The periods by their letters in snapshot-keep; without one it is each snapshot. Days and weeks are those of UTC.
var periods = map[string]period{
	"":  func(t time.Time) string { return t.Format(time.RFC3339Nano) },
	"h": func(t time.Time) string { return t.Format("2006-01-02T15") },
	"d": func(t time.Time) string { return t.Format(time.DateOnly) },
	"w": func(t time.Time) string {
		year, week := t.ISOWeek()
		return fmt.Sprint(year, " ", week)
	},
	"m": func(t time.Time) string { return t.Format("2006-01") },
	"y": func(t time.Time) string { return t.Format("2006") },
}

// DefaultKeep is snapshot-keep where only a schedule is given.
const DefaultKeep = "7"

var rulePattern = regexp.MustCompile(`^([1-9][0-9]{0,3})([hdwmy]?)$`)

// ParseSchedule decodes the options snapshot-schedule and snapshot-keep, each of which may be empty.
func ParseSchedule(when, keep string) (Schedule, error) {
	var s Schedule
	var err error
	switch {
	case when == "" && keep == "":
		return s, nil
	case when == "":
		return s, errors.New("snapshot-keep says which snapshots of a schedule are kept: give snapshot-schedule as well")
	case strings.HasPrefix(when, "@every"):
		return s, fmt.Errorf("snapshot-schedule=%q must name times, which are the same on each node, and not an interval: @hourly, or */15 * * * *", when)
	case strings.Contains(when, "TZ="):
		return s, fmt.Errorf("snapshot-schedule=%q must be in UTC: leave out the time zone", when)
	}
	if s.when, err = cron.ParseStandard(when); err != nil {
		return s, fmt.Errorf("snapshot-schedule=%q must be minute, hour, day of the month, month and day of the week, in UTC, like 30 3 * * *, or one of @hourly, @daily, @weekly, @monthly, @yearly: %w", when, err)
	}
	for part := range strings.SplitSeq(cmp.Or(keep, DefaultKeep), ",") {
		found := rulePattern.FindStringSubmatch(strings.TrimSpace(part))
		if found == nil {
			return s, fmt.Errorf("snapshot-keep=%q must be a number, with h, d, w, m or y for one in each hour, day, week, month or year: 7, or 7d,4w,12m", keep)
		}
		count, _ := strconv.Atoi(found[1]) // by the pattern
		s.keep = append(s.keep, rule{count, periods[found[2]]})
	}
	return s, nil
}

// ScheduleOf returns the schedule in a volume's Record, or none if it cannot be read: a later version may have written it.
func ScheduleOf(rec providers.Record) Schedule {
	when := rec[KeySchedule]
	if when == NoSchedule {
		return Schedule{}
	}
	s, err := ParseSchedule(when, rec[KeyKeep])
	if err != nil {
		return Schedule{}
	}
	return s
}

// Since returns when the volume with this Record got its schedule, zero if that was at its creation.
func Since(rec providers.Record) time.Time {
	at, err := time.Parse(time.RFC3339, rec[KeySince])
	if err != nil {
		return time.Time{}
	}
	return at
}

// Exists tells whether the schedule ever takes a snapshot.
func (s Schedule) Exists() bool { return s.when != nil }

// Last returns the last time at or before now when a snapshot was due, zero if there was none in a year.
func (s Schedule) Last(now time.Time) (last time.Time) {
	if s.when == nil {
		return last
	}
	now = now.UTC()
	const day = 24 * time.Hour
	for _, window := range []time.Duration{time.Hour, day, 8 * day, 32 * day, 367 * day} {
		for at := s.when.Next(now.Add(-window - time.Second)); !at.IsZero() && !at.After(now); at = s.when.Next(at) {
			last = at
		}
		if !last.IsZero() {
			return last
		}
	}
	return last
}

// Expired returns those of the times of snapshots that are not kept any more.
func (s Schedule) Expired(taken []time.Time) []time.Time {
	latest := slices.Clone(taken)
	slices.SortFunc(latest, func(a, b time.Time) int { return b.Compare(a) })
	kept := make(map[time.Time]bool)
	for _, rule := range s.keep {
		last, count := "", 0
		for _, at := range latest {
			if is := rule.period(at.UTC()); is != last {
				last, count = is, count+1
				if count > rule.count {
					break
				}
				kept[at] = true
			}
		}
	}
	return slices.DeleteFunc(latest, func(at time.Time) bool { return kept[at] })
}

// Why a snapshot was taken, in its Record under KeyTaken.
const (
	TakenByHand   = "by hand"
	TakenToCopy   = "to copy"   // for a volume made of it at once; which one follows, see ToCopy
	TakenToRemove = "to remove" // the volume's last state
)

// ToCopy is the reason of a snapshot that the node takes to make a volume of that name of it.
func ToCopy(node, name string) string { return toMake(name) + digest(node) }

// IsToMake tells whether the snapshot was taken, by any node, to make a volume of that name of it.
func IsToMake(snapshot providers.Record, name string) bool {
	return strings.HasPrefix(snapshot[KeyTaken], toMake(name))
}

func toMake(name string) string { return TakenToCopy + " " + digest(name) + " by " }

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// IsToCopy tells whether the snapshot was taken to make a volume of it at once.
func IsToCopy(snapshot providers.Record) bool {
	return strings.HasPrefix(snapshot[KeyTaken], TakenToCopy)
}

const takenAt = "at "

// TakenAt is the reason of a scheduled snapshot that was due at that time.
func TakenAt(due time.Time) string { return takenAt + due.UTC().Format(time.RFC3339) }

// DueAt returns when the snapshot was due by its schedule, zero if no schedule has taken it.
func DueAt(snapshot providers.Record) time.Time {
	text, is := strings.CutPrefix(snapshot[KeyTaken], takenAt)
	at, err := time.Parse(time.RFC3339, text)
	if !is || err != nil {
		return time.Time{}
	}
	return at
}
