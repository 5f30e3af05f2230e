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
	// askedAtOnce is how many questions about other nodes are sent to the cloud at once.
	askedAtOnce = 8
)

// Diagnose checks the cloud, the journal, and whether they and the kernel agree on the volumes of the cluster. It changes nothing.
//
// An answer of the cloud may be as old as providers.MaxStale, and volumes come and go meanwhile. So what seems wrong is looked at again
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
	if slices.ContainsFunc(found, mayPass) && pause.For(ctx, providers.MaxStale) == nil {
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

// mayPass tells whether a finding may be about work that is under way.
func mayPass(f Finding) bool {
	return f.Severity != OK && (f.Check == "volumes" || f.Check == "mounts")
}

func hasTrouble(found []Finding) bool {
	return slices.ContainsFunc(found, func(f Finding) bool { return f.Severity != OK })
}

// compare checks the journal, and whether it, the kernel and the cloud agree. unlisted is the error of listing the volumes.
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

// survey asks the cloud. Volumes that cannot be read are findings; unlisted is the error if none can be.
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

func severityOf(f mount.Finding) providers.Severity {
	switch {
	case f.Code == "":
		return OK
	case f.Problem:
		return Problem
	}
	return Warning
}
