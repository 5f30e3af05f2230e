package metrics

import (
	"cmp"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/blockvol/blockvol/driver"
)

// gather is the registry's metrics, and those of the state of this node's volumes. The latter are made here because the registry
// checks each series of a collector, which takes longer than all the rest with thousands of them.
func (m *Metrics) gather() ([]*dto.MetricFamily, error) {
	families, err := m.registry.Gather()
	families = append(families, m.state(time.Now())...)
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return families, err
}

// states are those that a volume of this node can be in.
var states = []string{"pending", "attached", "mounted", "releasing"}

func stateOf(h driver.Here) string {
	switch {
	case !h.Releasing.IsZero():
		return "releasing"
	case h.State == "":
		return "pending"
	}
	return h.State
}

// figure is a metric with a value for each volume; ok is false for a volume that has none.
type figure struct {
	name, help string
	of         func(h driver.Here, now time.Time) (value float64, ok bool)
}

func measured(of func(h driver.Here) int64) func(driver.Here, time.Time) (float64, bool) {
	return func(h driver.Here, _ time.Time) (float64, bool) { return float64(of(h)), !h.MeasuredAt.IsZero() }
}

func inodes(of func(h driver.Here) int64) func(driver.Here, time.Time) (float64, bool) {
	return func(h driver.Here, _ time.Time) (float64, bool) { return float64(of(h)), h.Space.Inodes > 0 }
}

// The last part of the names of those that are measured is kubelet's, as in kubelet_volume_stats_used_bytes.
var figures = []figure{
	{"volume_size_bytes", "Size of the volume's device.", func(h driver.Here, _ time.Time) (float64, bool) { return float64(h.Size), h.Size > 0 }},
	{"volume_uses", "How many containers of this node use the volume.", func(h driver.Here, _ time.Time) (float64, bool) { return float64(len(h.Uses)), h.State != "" }},
	{"volume_detach_pending_seconds", "Since when nobody on this node uses the volume, and it is not detached yet.", func(h driver.Here, now time.Time) (float64, bool) {
		return now.Sub(h.Releasing).Seconds(), !h.Releasing.IsZero()
	}},
	{"volume_phase_seconds", "Since when the volume is in its present phase.", func(h driver.Here, now time.Time) (float64, bool) {
		return now.Sub(h.Since).Seconds(), !h.Since.IsZero()
	}},
	{"volume_last_snapshot_timestamp_seconds", "For when the volume's latest complete scheduled snapshot was due.", func(h driver.Here, _ time.Time) (float64, bool) {
		return float64(h.LastSnapshot.Unix()), !h.LastSnapshot.IsZero()
	}},
	{"volume_snapshot_overdue_seconds", "Since when a scheduled snapshot is due that is not complete.", func(h driver.Here, now time.Time) (float64, bool) {
		return now.Sub(h.SnapshotDue).Seconds(), !h.SnapshotDue.IsZero()
	}},
	{"volume_stats_age_seconds", "How long ago the volume_stats were measured. More than a minute: the kernel does not answer.", func(h driver.Here, now time.Time) (float64, bool) {
		return now.Sub(h.MeasuredAt).Seconds(), !h.MeasuredAt.IsZero()
	}},
	{"volume_stats_capacity_bytes", "Size of the mounted volume's file system.", measured(func(h driver.Here) int64 { return h.Space.Total })},
	{"volume_stats_used_bytes", "Bytes used in the mounted volume's file system.", measured(func(h driver.Here) int64 { return h.Space.Used })},
	{"volume_stats_available_bytes", "Bytes that containers can still write.", measured(func(h driver.Here) int64 { return h.Space.Available })},
	{"volume_stats_inodes", "Inodes of the mounted volume's file system. None for btrfs.", inodes(func(h driver.Here) int64 { return h.Space.Inodes })},
	{"volume_stats_inodes_used", "Inodes used.", inodes(func(h driver.Here) int64 { return h.Space.InodesUsed })},
	{"volume_stats_inodes_free", "Inodes not used.", inodes(func(h driver.Here) int64 { return h.Space.Inodes - h.Space.InodesUsed })},
}

// state is the state of this node and its volumes.
func (m *Metrics) state(now time.Time) []*dto.MetricFamily {
	node, why := m.served()
	serving := gauge("serving", "1 if volumes are served, 0 if each call is answered with an error.")
	add(serving, "", "", truth(node != nil && why == nil))
	identified := gauge("node_identified", "1 if the cloud has told which node this is.")
	add(identified, "", "", truth(node != nil && node.Identified()))
	families := []*dto.MetricFamily{serving, identified}
	if node == nil {
		return families
	}
	here := node.Here()
	count := map[string]int{}
	for _, h := range here {
		count[stateOf(h)]++
	}
	volumes := gauge("volumes", "Volumes of this node by state: mounted; attached; releasing: no longer used, and not detached yet; pending: nothing of them is here yet.")
	for _, state := range states {
		add(volumes, "state", state, float64(count[state]))
	}
	families = append(families, volumes)
	for _, f := range figures {
		family := gauge(f.name, f.help)
		for _, h := range here {
			if value, ok := f.of(h, now); ok {
				add(family, "volume", h.Name, value)
			}
		}
		if len(family.GetMetric()) > 0 {
			families = append(families, family)
		}
	}
	return families
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

func gauge(name, help string) *dto.MetricFamily {
	name = "blockvol_" + name
	return &dto.MetricFamily{Name: &name, Help: &help, Type: dto.MetricType_GAUGE.Enum()}
}

func add(family *dto.MetricFamily, label, labelled string, value float64) {
	metric := &dto.Metric{Gauge: &dto.Gauge{Value: &value}}
	if label != "" {
		metric.Label = []*dto.LabelPair{{Name: &label, Value: &labelled}}
	}
	family.Metric = append(family.Metric, metric)
}
