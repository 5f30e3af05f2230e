package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/host"
)

// keptJobs is how many jobs that have ended are remembered.
const keptJobs = 100

// jobVersion is the version of the files. Those of a later version are left as they are.
const jobVersion = 1

// jobs runs jobs, each in a file of its own from before it begins. What a job does can be done again from the start at any time,
// so one that a crash has cut off is.
type jobs struct {
	dir    string
	driver Driver
	paths  host.Paths
	log    logrus.FieldLogger

	life  context.Context // ends with close
	end   context.CancelFunc
	tasks sync.WaitGroup

	mu      sync.Mutex
	all     map[string]*Job
	changed chan struct{} // closed, and replaced, at each change of a job
}

// file is a job on disk.
type file struct {
	Version int `json:"version"`
	Job
}

// openJobs reads the jobs in dir and continues those that have not ended.
func openJobs(dir string, d Driver, paths host.Paths, log logrus.FieldLogger) (*jobs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the directory of jobs cannot be made: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the directory of jobs cannot be read: %w", err)
	}
	j := &jobs{dir: dir, driver: d, paths: paths, log: log, all: make(map[string]*Job), changed: make(chan struct{})}
	j.life, j.end = context.WithCancel(context.Background())
	for _, entry := range entries {
		id, isJob := strings.CutSuffix(entry.Name(), ".json")
		if !isJob {
			continue
		}
		job, err := j.read(id)
		if err != nil {
			log.WithError(err).WithField("job", id).Error("A job cannot be read and is left as it is")
			continue
		}
		j.all[id] = job
	}
	for _, job := range j.all {
		if _, known := kinds[job.Kind]; job.State == Running && !known {
			log.WithField("job", job.ID).Errorf("A job that a later blockvol has begun is left to it: there is no job %q here", job.Kind)
			delete(j.all, job.ID)
			continue
		}
		if job.State == Running {
			log.WithField("job", job.ID).WithField("volume", job.Volume).Infof("Continuing %s", job.Kind)
			j.begin(job)
		}
	}
	return j, nil
}

func (j *jobs) path(id string) string { return filepath.Join(j.dir, id+".json") }

func (j *jobs) read(id string) (*Job, error) {
	data, err := os.ReadFile(j.path(id))
	if err != nil {
		return nil, err
	}
	var f file
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	if f.Version != jobVersion {
		return nil, fmt.Errorf("it is of version %d, and this blockvol knows version %d", f.Version, jobVersion)
	}
	if f.ID != id {
		return nil, fmt.Errorf("it is of a job %q", f.ID)
	}
	return &f.Job, nil
}

// write makes the job durable.
func (j *jobs) write(job Job) error {
	data, err := json.Marshal(file{jobVersion, job})
	if err != nil {
		return err
	}
	return host.ReplaceFile(j.path(job.ID), filepath.Join(j.dir, job.ID+".part"), data, nil)
}

var idForm = regexp.MustCompile(`^[a-z0-9-]{8,64}$`)

// start begins a job, unless there is one with its id, and returns it as it stands.
func (j *jobs) start(r Request) (Job, error) {
	if !idForm.MatchString(r.ID) {
		return Job{}, volume.Fail(volume.Invalid, fmt.Sprintf("the job's id %q is not 8 to 64 lower-case letters, digits and dashes", r.ID), "")
	}
	if err := check(r); err != nil {
		return Job{}, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if old := j.all[r.ID]; old != nil {
		if old.Request != r {
			return Job{}, volume.Fail(volume.Conflict, fmt.Sprintf("there is another job with the id %s", r.ID), "choose another id")
		}
		return *old, nil
	}
	if j.life.Err() != nil {
		return Job{}, volume.Fail(volume.Unavailable, "the plugin is stopping", "try again when it runs")
	}
	job := &Job{Request: r, State: Running, Began: time.Now().UTC(), Revision: 1}
	if err := j.write(*job); err != nil {
		return Job{}, volume.Advise(fmt.Errorf("%w: the job could not be recorded, so it has not begun", err), "")
	}
	j.all[r.ID] = job
	j.begin(job)
	return *job, nil
}

// check refuses what can be seen to be wrong without asking anybody.
func check(r Request) error {
	what, known := kinds[r.Kind]
	if !known {
		return volume.Fail(volume.Invalid, fmt.Sprintf("there is no job %q", r.Kind), "see docs/api.md, and whether this blockvol is older than its client")
	}
	if r.Volume == "" && r.Kind != DeleteSnapshot {
		return volume.Fail(volume.Invalid, "the volume's name is missing", "")
	}
	return what.check(r)
}

// kind is what jobs of a kind do. It can be done again from the start.
type kind struct {
	check func(r Request) error
	do    func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (outcome ending, err error)
}

// ending is what a job tells of its success.
type ending struct {
	message string
	made    string // the id of what was made
}

// takes refuses a request that is not what a job takes. is is asked without id, kind and volume.
func takes(what string, is func(r Request) bool) func(r Request) error {
	return func(r Request) error {
		details := r
		details.ID, details.Kind, details.Volume = "", "", ""
		if !is(details) {
			return volume.Fail(volume.Invalid, fmt.Sprintf("the job %q takes %s", r.Kind, what), "give that and nothing else")
		}
		return nil
	}
}

func nothing(r Request) bool { return r == Request{} }

func diskOnly(r Request) bool { return r == Request{Disk: r.Disk} }

func (r Request) reschedules() bool { return r.SnapshotSchedule != "" || r.SnapshotKeep != "" }

func checkModify(r Request) error {
	change := r.Size != 0 || r.Type != "" || r.IOPS != 0 || r.Throughput != 0
	switch {
	case r.Disk != "" || r.Plugin != "" || r.Snapshot != "" || r.From != "":
		return volume.Fail(volume.Invalid, "the disk of a volume cannot be changed for another", "")
	case r.Size < 0 || r.IOPS < 0 || r.Throughput < 0:
		return volume.Fail(volume.Invalid, "a negative number makes no sense", "")
	case r.reschedules() && change:
		return volume.Fail(volume.Invalid, "the schedule of snapshots and the disk are changed by different jobs", "change one, then the other")
	case !r.reschedules() && !change:
		return volume.Fail(volume.Invalid, "nothing is to be changed", "give a size, a type, iops, throughput or a schedule of snapshots")
	}
	return nil
}

var kinds = map[Kind]kind{
	Modify: {checkModify, func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		if r.reschedules() {
			step(volume.Step{Phase: volume.Modifying})
			message, err := d.Reschedule(ctx, r.Volume, r.SnapshotSchedule, r.SnapshotKeep)
			return ending{message: message}, err
		}
		message, err := d.Modify(ctx, r.Volume, driver.Change{Size: r.Size, Type: r.Type, IOPS: r.IOPS, Throughput: r.Throughput}, step)
		return ending{message: message}, err
	}},
	Adopt: {takes("a volume, the id of a disk and the plugin that it was used with", func(r Request) bool { return r.Disk != "" && r == Request{Disk: r.Disk, Plugin: r.Plugin} }), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		step(volume.Step{Phase: volume.Creating, Detail: "being adopted"})
		return ending{message: "the disk " + r.Disk + " is a volume"}, d.Adopt(ctx, r.Volume, r.Disk, r.Plugin)
	}},
	Remove: {takes("a volume, and its disk if no other is meant", diskOnly), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		step(volume.Step{Phase: volume.Removing})
		return ending{message: "removed"}, d.RemoveDisk(ctx, r.Volume, r.Disk)
	}},
	Forget: {takes("a volume, and its disk if no other is meant", diskOnly), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		step(volume.Step{Phase: volume.Removing})
		return ending{message: "forgotten"}, d.Forget(ctx, r.Volume, r.Disk)
	}},
	Copy: {takes("a volume", nothing), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		s, message, err := d.TakeSnapshot(ctx, r.Volume, r.ID, step)
		if err != nil {
			return ending{}, err
		}
		return ending{message, s.ID}, nil
	}},
	Restore: {takes("a volume, a snapshot, and the volume's disk if that is to be replaced", func(r Request) bool {
		return r.Snapshot != "" && r == Request{Snapshot: r.Snapshot, Disk: r.Disk}
	}), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		if r.Disk != "" {
			message, err := d.Rollback(ctx, r.Volume, r.Disk, r.Snapshot, step)
			return ending{message: message}, err
		}
		step(volume.Step{Phase: volume.Restoring})
		return ending{message: "made from snapshot " + r.Snapshot}, d.Create(ctx, r.Volume, map[string]string{"snapshot": r.Snapshot})
	}},
	Clone: {takes("a volume and the one that is copied", func(r Request) bool { return r.From != "" && r == Request{From: r.From} }), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		step(volume.Step{Phase: volume.Creating, Detail: "being made as a copy of " + r.From})
		return ending{message: "a copy of " + r.From}, d.Create(ctx, r.Volume, map[string]string{"from": r.From})
	}},
	DeleteSnapshot: {takes("a snapshot", func(r Request) bool { return r.Snapshot != "" && r == Request{Snapshot: r.Snapshot} }), func(ctx context.Context, d Driver, r Request, step func(volume.Step)) (ending, error) {
		step(volume.Step{Phase: volume.Removing, Detail: "snapshot " + r.Snapshot + " is being deleted"})
		return ending{message: "snapshot " + r.Snapshot + " is deleted"}, d.DeleteSnapshot(ctx, r.Snapshot)
	}},
}

// begin runs a job. The caller holds mu, or is the only one who has j.
func (j *jobs) begin(job *Job) {
	request := job.Request
	j.tasks.Go(func() {
		outcome, err := j.run(request)
		if j.life.Err() != nil && err != nil {
			return // the next start continues it
		}
		j.finish(job, outcome, err)
	})
}

func (j *jobs) run(r Request) (ending, error) {
	return kinds[r.Kind].do(j.life, j.driver, r, func(step volume.Step) { j.step(r.ID, step) })
}

func (j *jobs) step(id string, step volume.Step) {
	j.mu.Lock()
	defer j.mu.Unlock()
	job := j.all[id]
	job.Phase, job.Message = string(step.Phase), step.Words()
	j.tell(job)
}

// tell wakes up those that wait for a change. The caller holds mu.
func (j *jobs) tell(job *Job) {
	job.Revision++
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *jobs) finish(job *Job, outcome ending, err error) {
	log := j.log.WithField("job", job.ID).WithField("volume", job.Volume)
	j.mu.Lock()
	defer j.mu.Unlock()
	ended := time.Now().UTC()
	job.State, job.Phase, job.Message, job.Made, job.Ended = Done, "", outcome.message, outcome.made, &ended
	if err != nil {
		job.State, job.Message, job.Made, job.Error = Failed, "", "", toError(err, j.paths)
		log.WithError(err).Warnf("The job failed: %s", job.Kind)
	}
	j.tell(job)
	if err := j.write(*job); err != nil {
		log.WithError(err).Error("That a job has ended could not be recorded: it will be done again after the next start")
	}
	j.forget()
}

// forget removes the jobs that ended longest ago. The caller holds mu.
func (j *jobs) forget() {
	var ended []*Job
	for _, job := range j.all {
		if job.State != Running {
			ended = append(ended, job)
		}
	}
	slices.SortFunc(ended, func(a, b *Job) int { return a.Ended.Compare(*b.Ended) })
	for _, job := range ended[:max(0, len(ended)-keptJobs)] {
		if err := os.Remove(j.path(job.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.log.WithError(err).Warn("The record of an old job could not be removed")
			continue
		}
		delete(j.all, job.ID)
	}
}

// list returns all jobs, the latest last.
func (j *jobs) list() []Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make([]Job, 0, len(j.all))
	for _, job := range j.all {
		all = append(all, *job)
	}
	slices.SortFunc(all, func(a, b Job) int { return cmp.Or(a.Began.Compare(b.Began), cmp.Compare(a.ID, b.ID)) })
	return all
}

// await returns the job once it has another revision than that, or as it is when ctx ends.
func (j *jobs) await(ctx context.Context, id string, revision int) (Job, error) {
	for {
		j.mu.Lock()
		job, changed := j.all[id], j.changed
		if job == nil {
			j.mu.Unlock()
			return Job{}, volume.Fail(volume.NotFound, fmt.Sprintf("there is no job %q on this node", id), fmt.Sprintf("the last %d are remembered, each on the node that did it", keptJobs))
		}
		now := *job
		j.mu.Unlock()
		if now.Revision != revision || now.State != Running {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return now, nil
		case <-j.life.Done():
			return now, nil
		}
	}
}

func (j *jobs) close(ctx context.Context) error {
	j.mu.Lock()
	j.end()
	j.mu.Unlock()
	ended := make(chan struct{})
	go func() { j.tasks.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("jobs are left for the next start: %w", ctx.Err())
	}
}
