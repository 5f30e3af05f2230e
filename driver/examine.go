package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/blockvol/blockvol/driver/node"
	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

const (
	// longWork is the least time after which work on a volume is reported: only a format, a check or a copy of a large disk takes longer.
	longWork = 10 * time.Minute
	// nearlyFull is the part of a file system that is used when that is reported, in percent.
	nearlyFull = 95
)

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

// contradicts returns a finding if the cloud's description of a volume contradicts this node's; nil otherwise.
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
