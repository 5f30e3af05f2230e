// Package admin is the operator's API: HTTP and JSON on the plugin's socket, which only root can open. The command line is a
// client of it. docs/api.md describes it.
//
// Its paths begin with Root. Within one version, fields and values are added and never change their meaning.
package admin

import (
	"errors"
	"net/http"
	"time"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
)

// Root is the beginning of every path, with the version of the API.
const Root = "/blockvol/v1/"

// Volume is a volume of the cluster.
type Volume struct {
	Name       string     `json:"name"`
	ID         string     `json:"id"`                   // the cloud's
	Size       int64      `json:"size_bytes"`           // of the disk
	CreatedAt  *time.Time `json:"created_at,omitempty"` // missing if the cloud does not tell
	Mountpoint string     `json:"mountpoint,omitempty"` // on this node

	Users []User `json:"users,omitempty"` // who has it mounted on this node

	// Failure is the call about it that has failed last on this node, if the same has not succeeded since.
	Failure *Event `json:"failure,omitempty"`

	// Status is what docker volume inspect shows; docs/operations.md lists its keys.
	Status map[string]any `json:"status"`
}

// User is a container that has a volume mounted, or a process that is in no container. All fields are missing if it is not known who.
type User struct {
	Container string `json:"container,omitempty"` // its id
	PID       int    `json:"pid,omitempty"`       // of the process, or of the container's first one
	Command   string `json:"command,omitempty"`   // the name of the process
	Path      string `json:"path,omitempty"`      // where it has the volume, as it sees it
}

// Volumes is the answer to a call for all of them, sorted by name.
type Volumes struct {
	Volumes []Volume `json:"volumes"`
}

// Snapshot is a snapshot of a volume of the cluster.
type Snapshot struct {
	ID        string     `json:"id"`
	Volume    string     `json:"volume,omitempty"` // its name then
	Disk      string     `json:"disk"`             // the id of its disk
	Size      int64      `json:"size_bytes"`       // of a volume made from it
	CreatedAt *time.Time `json:"created_at,omitempty"`
	State     string     `json:"state"`             // creating, complete or failed
	Detail    string     `json:"detail,omitempty"`  // how far it is, or why it has failed, in the cloud's words
	Reason    string     `json:"reason,omitempty"`  // why it was taken
	DueAt     *time.Time `json:"due_at,omitempty"`  // when a schedule had it due; missing if none did
	Useless   string     `json:"useless,omitempty"` // in the answer to a call for garbage: why it is
}

// Snapshots is the answer to a call for them, the oldest first.
type Snapshots struct {
	Snapshots []Snapshot `json:"snapshots"`
}

func toSnapshot(s *driver.Snapshot) Snapshot {
	shown := Snapshot{
		ID: s.ID, Volume: s.Name, Disk: s.Volume, Size: s.Size, State: string(s.State), Detail: s.Detail, Reason: driver.Reason(s),
	}
	if !s.CreatedAt.IsZero() {
		at := s.CreatedAt.UTC()
		shown.CreatedAt = &at
	}
	if due := volume.DueAt(s.Record); !due.IsZero() {
		shown.DueAt = &due
	}
	return shown
}

// Jobs is the answer to a call for all of them: those that run, and those that have ended lately; the latest last.
type Jobs struct {
	Jobs []Job `json:"jobs"`
}

func toVolume(info driver.Info, paths host.Paths) Volume {
	v := Volume{Name: info.Name, ID: info.ID, Size: info.Size, Mountpoint: paths.In(info.Mountpoint), Status: paths.InAll(info.Status)}
	if !info.CreatedAt.IsZero() {
		at := info.CreatedAt.UTC()
		v.CreatedAt = &at
	}
	for _, user := range info.Users {
		v.Users = append(v.Users, User(user))
	}
	return v
}

// Hold is the answer to a call that holds a volume for a command.
type Hold struct {
	Mountpoint string `json:"mountpoint"` // on the host
}

// PluginDisk is a disk of another plugin for Docker.
type PluginDisk struct {
	ID        string     `json:"id"`   // the cloud's
	Name      string     `json:"name"` // of the volume there
	Size      int64      `json:"size_bytes"`
	Zone      string     `json:"zone,omitempty"`
	CreatedAt *time.Time `json:"created_at,omitempty"` // missing if the cloud does not tell
	Node      string     `json:"node,omitempty"`       // that holds it
	Marked    bool       `json:"marked"`               // with that plugin's own mark; otherwise it merely has a name, as all its disks have
}

// PluginDisks is the answer to a call for those of one plugin, sorted by name.
type PluginDisks struct {
	Disks []PluginDisk `json:"disks"`
}

func toPluginDisk(d driver.PluginDisk) PluginDisk {
	shown := PluginDisk{ID: d.ID, Name: d.Name, Size: d.Size, Zone: d.Zone, Node: d.Node, Marked: d.Marked}
	if !d.CreatedAt.IsZero() {
		at := d.CreatedAt.UTC()
		shown.CreatedAt = &at
	}
	return shown
}

// Orphan is a disk of the cluster that is no volume.
type Orphan struct {
	ID        string     `json:"id"`               // the cloud's
	Volume    string     `json:"volume,omitempty"` // the name of the volume that it was, or was to be; missing if that is not known
	Kind      string     `json:"kind"`             // kept, unclaimed, unreadable, ambiguous or unfinished
	Detail    string     `json:"detail,omitempty"`
	Size      int64      `json:"size_bytes,omitempty"` // missing if it is not known
	Zone      string     `json:"zone,omitempty"`
	CreatedAt *time.Time `json:"created_at,omitempty"` // missing if the cloud does not tell
	Node      string     `json:"node,omitempty"`       // that holds it
}

// Orphans is the answer to a call for them, sorted by the names that they had.
type Orphans struct {
	Disks []Orphan `json:"disks"`
}

func toOrphan(o driver.Orphan, paths host.Paths) Orphan {
	shown := Orphan{ID: o.ID, Volume: o.Name, Kind: string(o.Kind), Detail: paths.In(o.Detail), Size: o.Size, Zone: o.Zone, Node: o.Node}
	if !o.CreatedAt.IsZero() {
		at := o.CreatedAt.UTC()
		shown.CreatedAt = &at
	}
	return shown
}

// About is what does not change while the plugin runs.
type About struct {
	Version  string `json:"version"`
	Provider string `json:"provider"`
	Cluster  string `json:"cluster"`
	Takeover string `json:"takeover"`
}

// Status is this node.
type Status struct {
	About
	State   string   `json:"state"`             // starting, serving or broken
	Problem string   `json:"problem,omitempty"` // why it does not serve volumes, or does not know which node it is
	Node    string   `json:"node,omitempty"`    // its id, as the cloud knows it
	Zone    string   `json:"zone,omitempty"`
	Volumes []Volume `json:"volumes"` // those that it has something of
	Jobs    []Job    `json:"jobs"`    // those that are not finished

	Disks        *Disks  `json:"disks,omitempty"`         // how many it can have; missing if that is not known
	DisksUnknown string  `json:"disks_unknown,omitempty"` // why not
	Failures     []Event `json:"failures"`                // the calls that have failed last: of each volume and operation one
}

// Disks are the places for disks of a node, volumes or not.
type Disks struct {
	Used int  `json:"used"`
	Most int  `json:"most,omitempty"` // missing if there is no limit
	Free *int `json:"free,omitempty"` // how many more it can have; missing if there is no limit
}

func toDisks(slots driver.Slots) *Disks {
	disks := &Disks{Used: slots.Used, Most: slots.Most}
	if slots.Most > 0 {
		free := max(0, slots.Most-slots.Used)
		disks.Free = &free
	}
	return disks
}

// The states of a plugin.
const (
	Starting = "starting"
	Serving  = "serving"
	Broken   = "broken"
)

// Kind is what a job does.
type Kind string

// The kinds of jobs.
const (
	Modify Kind = "modify" // changes a volume, and grows its file system
	Adopt  Kind = "adopt"  // makes an existing disk a volume
	Remove Kind = "remove" // removes a volume, and its disk as its reclaim policy says
	Forget Kind = "forget" // removes a volume and keeps its disk

	Copy           Kind = "snapshot"        // takes a snapshot of a volume
	Restore        Kind = "restore"         // makes a volume from a snapshot, or replaces the disk of one
	Clone          Kind = "clone"           // makes a volume that is a copy of another
	DeleteSnapshot Kind = "delete-snapshot" // destroys a snapshot
)

// Request asks for a job.
type Request struct {
	// ID is chosen by the client, 8 to 64 lower-case letters, digits and dashes. The same request can be sent again, if the
	// answer was lost: there is one job for each id.
	ID     string `json:"id"`
	Kind   Kind   `json:"kind"`
	Volume string `json:"volume"`

	// Of Modify; a field that is missing stays as it is.
	Size       int64  `json:"size_bytes,omitempty"`
	Type       string `json:"type,omitempty"`
	IOPS       int    `json:"iops,omitempty"`
	Throughput int    `json:"throughput,omitempty"` // MiB per second

	// Of Modify, alone: the schedule of snapshots, as the create options have it; "none" ends it.
	SnapshotSchedule string `json:"snapshot_schedule,omitempty"`
	SnapshotKeep     string `json:"snapshot_keep,omitempty"`

	// Of Adopt: the disk's id in the cloud. Of Restore: the disk of the volume that is replaced by a copy of the snapshot; without
	// it the volume is new. Of Remove and Forget, optional: the disk of the volume that is meant; if the volume is another, nothing is
	// done. A job may go on long after it was begun, and the name be another volume's by then.
	Disk string `json:"disk,omitempty"`

	// Of Restore and DeleteSnapshot: the snapshot's id.
	Snapshot string `json:"snapshot,omitempty"`

	// Of Clone: the name of the volume that is copied.
	From string `json:"from,omitempty"`

	// Of Adopt: the plugin that the disk was used with, if it is one of those in docs/cli.md.
	Plugin string `json:"plugin,omitempty"`
}

// Job is long work. It goes on though its client has left, and after a restart of the plugin.
type Job struct {
	Request
	State    JobState   `json:"state"`
	Phase    string     `json:"phase,omitempty"`   // while it runs, for programs
	Message  string     `json:"message,omitempty"` // the same for people; once it is done, what has become of the volume
	Made     string     `json:"made,omitempty"`    // the id of the snapshot that was taken
	Began    time.Time  `json:"began"`
	Ended    *time.Time `json:"ended,omitempty"`
	Error    *Error     `json:"error,omitempty"`
	Revision int        `json:"revision"` // changes with every other field
}

// JobState is whether a job has ended.
type JobState string

// The states of a job.
const (
	Running JobState = "running"
	Done    JobState = "done"
	Failed  JobState = "failed"
)

// Error is the answer to a call that failed, and of a job that did.
type Error struct {
	Code    volume.Code `json:"code"`
	Message string      `json:"message"` // the cause
	Advice  string      `json:"advice,omitempty"`
	Volume  string      `json:"volume,omitempty"`
	ID      string      `json:"id,omitempty"`
	Node    string      `json:"node,omitempty"`
}

// Error is the whole sentence.
func (e *Error) Error() string {
	return (&volume.Error{Code: e.Code, Volume: e.Volume, ID: e.ID, Node: e.Node, Cause: errors.New(e.Message), Advice: e.Advice}).Error()
}

// Is makes an Error match its code.
func (e *Error) Is(target error) bool { return target == error(e.Code) }

func toError(err error, paths host.Paths) *Error {
	e := volume.At(err, volume.Error{}).(*volume.Error) //nolint:errorlint,forcetypeassert // At returns no other
	return &Error{Code: e.Code, Message: paths.In(e.Cause.Error()), Advice: paths.In(e.Advice), Volume: e.Volume, ID: e.ID, Node: e.Node}
}

// statusOf returns the HTTP status for a kind of error.
func statusOf(code volume.Code) int {
	switch code {
	case volume.NotFound:
		return http.StatusNotFound
	case volume.Invalid:
		return http.StatusBadRequest
	case volume.Conflict, volume.Held, volume.InUse, volume.Busy, volume.WrongDisk:
		return http.StatusConflict
	case volume.NoSpace:
		return http.StatusInsufficientStorage
	case volume.Unsure, volume.Unavailable:
		return http.StatusServiceUnavailable
	case volume.Unfinished:
		return http.StatusGatewayTimeout
	case volume.Failed:
	}
	return http.StatusInternalServerError
}
