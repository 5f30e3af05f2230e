package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Finding is the result of one check.
type Finding = providers.Finding

// The severities of findings.
const (
	OK      = providers.OK
	Warning = providers.Warning
	Problem = providers.Problem
)

const (
	// examineTimeout is the longest that the cloud, or the kernel about one volume, is waited for.
	examineTimeout = 15 * time.Second
	// longWork is the least time after which work on a volume is reported: only a format, a check or a copy of a large disk takes longer.
	longWork = 10 * time.Minute
	// askedAtOnce is how many questions about other nodes are sent to the cloud at once.
	askedAtOnce = 8
	// nearlyFull is the part of a file system that is used when that is reported, in percent.
	nearlyFull = 95
)

// Diagnose checks the cloud, the journal, and whether they and the kernel agree on the volumes of the cluster. It changes nothing.
//
// An answer of the cloud may be as old as controller.MaxStale, and volumes come and go meanwhile. So what seems wrong is looked at again
// after that time, and reported only if it still is.
func (d *Driver) Diagnose(ctx context.Context) []Finding {
	var cloud []Finding
	var asking sync.WaitGroup
	asking.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, examineTimeout)
		defer cancel()
		cloud = d.controller.Examine(ctx)
	})
	found, unlisted := d.compare(ctx)
	if slices.ContainsFunc(found, mayPass) && pause.For(ctx, controller.MaxStale) == nil {
		before := found
		found, unlisted = d.compare(ctx)
		found = slices.DeleteFunc(found, func(f Finding) bool {
			return mayPass(f) && !slices.ContainsFunc(before, func(b Finding) bool { return b.Code == f.Code && b.Volume == f.Volume })
		})
	}
	asking.Wait()
	switch {
	case unlisted != nil && !hasTrouble(cloud): // else that is the reason
		found = append(found, providers.Judge("volumes", "the cloud", "the manual", unlisted))
	case unlisted == nil && !slices.ContainsFunc(found, func(f Finding) bool { return f.Check == "volumes" }):
		found = append(found, providers.Passed("volumes", fmt.Sprintf("the kernel, the journal and the cloud agree on the volumes that this node has, %d in all", len(d.held()))))
	}
	return append(cloud, found...)
}

// mayPass tells whether a finding may be about what is under way.
func mayPass(f Finding) bool {
	return f.Severity != OK && (f.Check == "volumes" || f.Check == "mounts")
}

func hasTrouble(found []Finding) bool {
	return slices.ContainsFunc(found, func(f Finding) bool { return f.Severity != OK })
}

// compare checks the journal, and whether it, the kernel and the cloud agree. unlisted is why the cloud does not tell which volumes there
// are.
func (d *Driver) compare(ctx context.Context) (found []Finding, unlisted error) {
	s, found, unlisted := d.survey(ctx)
	names := d.held()
	found = append(found, d.examineNode(ctx, names)...)
	looks := make([][]Finding, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { looks[i] = d.examineVolume(ctx, name, s) })
	}
	all.Wait()
	return append(append(found, slices.Concat(looks...)...), d.examineOthers(ctx, s, names)...), unlisted
}

// survey is what the cloud says of the cluster's volumes.
type survey struct {
	here    string                       // this node's id
	volumes map[string]*providers.Volume // by name
	whole   bool                         // all of them
}

// survey asks the cloud. Volumes that cannot be read are findings; unlisted is why none can be.
func (d *Driver) survey(ctx context.Context) (s survey, found []Finding, unlisted error) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	here, err := d.thisNode(ctx)
	if err != nil {
		return s, nil, err
	}
	s.here = here.ID
	all, err := d.controller.Survey(ctx)
	switch {
	case err == nil:
		s.whole = true
	case all == nil:
		return s, nil, err
	default: // errors.Join puts each volume's on a line
		for line := range strings.Lines(err.Error()) {
			found = append(found, Finding{
				Severity: Problem, Check: "volumes", Code: "volume-unreadable", Message: strings.TrimSpace(line),
				Remedy: "correct in the cloud what the message names: until then the volume is neither served nor removed",
			})
		}
	}
	s.volumes = make(map[string]*providers.Volume, len(all))
	for _, vol := range all {
		s.volumes[vol.Name] = vol
	}
	return s, found, nil
}

// examineNode checks the journal and the mounts.
func (d *Driver) examineNode(ctx context.Context, names []string) []Finding {
	dirs := make(map[string]bool, len(names))
	for _, name := range names {
		dirs[node.DirOf(name)] = true
	}
	return slices.DeleteFunc(d.node.Examine(ctx, dirs), func(f Finding) bool {
		return f.Code == "journal-old" && slices.Contains(names, f.Volume) // it was taken up: its release is looked at below
	})
}

// examineVolume checks a volume that this node has something of.
func (d *Driver) examineVolume(ctx context.Context, name string, s survey) []Finding {
	h := d.known(name)
	if h == nil || h.Entry() == nil {
		return nil // released meanwhile
	}
	e := h.Entry()
	here := h.report(e)
	found := func(severity providers.Severity, code, message, remedy string) []Finding {
		return []Finding{{Severity: severity, Check: "volumes", Code: code, Volume: name, Message: message, Remedy: remedy}}
	}
	switch {
	case here.Problem != "":
		h.mu.Lock()
		problem := h.problem
		h.mu.Unlock()
		message, remedy := here.Problem, "blockvol keeps trying; see blockvol events "+name
		if failed, is := errors.AsType[*volume.Error](problem); is && failed.Advice != "" {
			message, remedy = failed.Cause.Error(), failed.Advice
		}
		return found(Warning, "release-unfinished", "nothing uses the volume, and it cannot be released: "+message, remedy)
	case here.Phase != "" && here.Phase != volume.Reconciling && !here.Since.IsZero():
		if time.Since(here.Since) < longWork {
			return nil // it is on its way
		}
		return found(Warning, "work-unfinished", fmt.Sprintf("since %s the volume is %s", here.Since.UTC().Format(time.RFC3339), here.Message),
			"a format, a check or a copy of a large disk can take so long; otherwise look at the cloud and at the kernel's log (dmesg)")
	}
	look, answered := lookAt(ctx, h)
	if !answered {
		return found(Problem, "kernel-hangs", fmt.Sprintf("the kernel has not answered within %s when it was asked about the volume's device", examineTimeout),
			"look for I/O errors in the kernel's log (dmesg) and at the cloud's disk; containers that use the volume hang, too")
	}
	if contradiction := s.contradicts(h, e, look); contradiction != nil {
		return found(Problem, contradiction.Code, contradiction.Message, contradiction.Remedy)
	}
	return d.judgeLook(name, e, look, s.volumes[name])
}

// lookAt asks the kernel about a volume, which may never answer.
func lookAt(ctx context.Context, h *handle) (look node.Look, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	looked := make(chan node.Look, 1)
	go func() { looked <- h.Look(ctx) }() // it ends when the kernel answers
	select {
	case look = <-looked:
		return look, ctx.Err() == nil
	case <-ctx.Done():
		return look, false
	}
}

// contradicts returns how what the cloud says of a volume contradicts what this node has of it, nil if it does not.
func (s survey) contradicts(h *handle, e *node.Entry, look node.Look) *Finding {
	vol, shown := s.volumes[h.Name]
	has := look.Err == nil || look.Staged || len(e.Uses) > 0
	const stop = "stop the containers that use it, and "
	switch {
	case s.volumes == nil, !shown && !s.whole:
		return nil // the cloud does not tell
	case !shown:
		return &Finding{
			Code: "disk-gone", Message: fmt.Sprintf("the cloud has no volume of this name any more, and this node had disk %s for it", e.Volume),
			Remedy: stop + "see in the cloud who has deleted or renamed the disk",
		}
	case vol.ID != e.Volume:
		return &Finding{
			Code: "disk-replaced", Message: fmt.Sprintf("the cloud says that the volume is disk %s, and this node has disk %s for it", vol.ID, e.Volume),
			Remedy: stop + "start them again, to use the disk that the cloud has",
		}
	case vol.HeldBy(s.here) && vol.Attachment.State == providers.AttachFailed:
		return &Finding{
			Code: "attach-failed", Message: fmt.Sprintf("the cloud could not attach disk %s: %s", e.Volume, vol.Attachment.Problem),
			Remedy: "detach the disk in the cloud, if it does not do so by itself",
		}
	case !vol.HeldBy(s.here) && has:
		holder := "no node holds"
		if vol.Held() {
			holder = "node " + vol.Attachment.Node + " holds"
		}
		return &Finding{
			Code: "not-attached", Message: fmt.Sprintf("the cloud says that %s disk %s, which this node uses", holder, e.Volume),
			Remedy: stop + "see in the cloud who has detached the disk; what was not written to it yet is lost",
		}
	}
	return nil
}

// judgeLook finds what is wrong with a volume that the cloud says this node holds, by what the kernel shows.
func (d *Driver) judgeLook(name string, e *node.Entry, look node.Look, vol *providers.Volume) (found []Finding) {
	add := func(severity providers.Severity, code, message, remedy string) {
		found = append(found, Finding{Severity: severity, Check: "volumes", Code: code, Volume: name, Message: message, Remedy: remedy})
	}
	switch {
	case errors.Is(look.Err, mount.ErrNoDevice):
		if vol != nil || len(e.Uses) > 0 {
			add(Problem, "device-missing", fmt.Sprintf("disk %s is attached to this node, and the kernel has no device of it", e.Volume),
				"look for the device in the kernel's log (dmesg); stop the containers that use the volume, so that the disk is detached and attached again")
		}
		return found
	case errors.Is(look.Err, mount.ErrAmbiguousDevice):
		add(Problem, "device-ambiguous", look.Err.Error(), "detach the device that is not the volume's disk")
		return found
	case look.Err != nil:
		add(Problem, "device-unknown", look.Err.Error(), "look at the device in the kernel's log (dmesg)")
		return found
	case len(e.Uses) > 0 && !look.Staged:
		add(Warning, "uses-without-mount", fmt.Sprintf("%d containers were given the volume, and it is not mounted at its path, as after a crash of the engine", len(e.Uses)),
			"restart the containers that use it; if none does, blockvol releases the volume by itself")
		return found
	case len(e.Uses) == 0 && len(look.Users) > 0:
		add(Warning, "used-without-containers", "the journal knows nothing that uses the volume, and it is mounted by "+look.Users.String(),
			"stop what has it mounted: until then the disk stays on this node")
	}
	for _, wrong := range look.Wrong {
		add(severityOf(wrong), wrong.Code, wrong.Message, wrong.Remedy)
	}
	if vol != nil && look.Device.Size < vol.Size {
		add(Warning, "device-too-small", fmt.Sprintf("device %s has %s, and the cloud says that its disk has %s", look.Device.Path, volume.FormatSize(look.Device.Size), volume.FormatSize(vol.Size)),
			"have the kernel look at the disk again (for SCSI: echo 1 > /sys/block/NAME/device/rescan), or stop its containers, so that it is detached and attached again")
	}
	if e.Frozen {
		add(Problem, "filesystem-frozen", "the file system is frozen: whoever writes to it waits", "restart blockvol, which thaws it; if that fails, run fsfreeze --unfreeze on its mountpoint")
	}
	const more = "make the volume larger with blockvol resize, or remove files"
	if used := percent(look.Space.Used, look.Space.Used+look.Space.Available); used >= nearlyFull {
		add(Warning, "filesystem-full", fmt.Sprintf("%d %% of the file system's space are used", used), more)
	} else if used := percent(look.Space.InodesUsed, look.Space.Inodes); used >= nearlyFull {
		add(Warning, "filesystem-full", fmt.Sprintf("%d %% of the file system's inodes are used: no more files can be made, whatever space is left", used), more)
	}
	return found
}

func percent(part, whole int64) int64 {
	if whole <= 0 {
		return 0
	}
	return part * 100 / whole
}

func severityOf(f mount.Finding) providers.Severity {
	switch {
	case f.Code == "":
		return OK
	case f.Problem:
		return Problem
	}
	return Warning
}

// examineOthers checks the volumes that this node has nothing of: whether the cloud says that it holds them, and whether the nodes that
// hold them are there.
func (d *Driver) examineOthers(ctx context.Context, s survey, held []string) (found []Finding) {
	holders := make(map[string][]string) // by node: names
	for _, name := range slices.Sorted(maps.Keys(s.volumes)) {
		vol := s.volumes[name]
		switch {
		case slices.Contains(held, name) || !vol.Held():
		case !vol.HeldBy(s.here):
			if vol.Attachment.Node != "" {
				holders[vol.Attachment.Node] = append(holders[vol.Attachment.Node], name)
			}
		case d.node.HasDevice(ctx, vol.Serial):
			found = append(found, Finding{
				Severity: Warning, Check: "volumes", Code: "stray", Volume: name,
				Message: fmt.Sprintf("disk %s is attached to this node, and the journal does not know it", vol.ID),
				Remedy:  "mount the volume, or restart blockvol, which releases the disk if nothing uses it; until then no other node can have it",
			})
		case vol.Attachment.State != providers.Detaching:
			f := Finding{Severity: Problem, Check: "volumes", Code: "absent-disk", Volume: name}
			if e, is := errors.AsType[*volume.Error](absentError(vol)); is {
				f.Message, f.Remedy = e.Cause.Error(), e.Advice
			}
			found = append(found, f)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, examineTimeout)
	defer cancel()
	nodes := slices.Sorted(maps.Keys(holders))
	gone := make([][]Finding, len(nodes))
	var asking errgroup.Group
	asking.SetLimit(askedAtOnce)
	for i, holder := range nodes {
		asking.Go(func() error {
			gone[i] = d.examineHolder(ctx, holder, holders[holder])
			return nil
		})
	}
	_ = asking.Wait() // it returns none
	return append(found, slices.Concat(gone...)...)
}

// examineHolder checks whether a node that holds volumes is there.
func (d *Driver) examineHolder(ctx context.Context, holder string, names []string) (found []Finding) {
	state, remedy := d.controller.Holder(ctx, holder)
	if state.Life != providers.Gone {
		return nil
	}
	for _, name := range names {
		found = append(found, Finding{
			Severity: Warning, Check: "volumes", Code: "holder-gone", Volume: name,
			Message: fmt.Sprintf("the disk is attached to node %s, which is gone: %s", holder, state.Evidence),
			Remedy:  cmp.Or(remedy, "mount the volume somewhere, which takes it over"),
		})
	}
	return found
}

// ExamineMachine checks whether this machine has what volumes need, also where no Driver could be made.
func ExamineMachine(ctx context.Context, cfg mount.Config) (found []Finding) {
	for _, f := range mount.Examine(ctx, cfg) {
		found = append(found, Finding{Severity: severityOf(f), Check: f.Check, Code: f.Code, Message: f.Message, Remedy: f.Remedy})
	}
	return found
}
