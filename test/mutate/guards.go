package main

// guards are grouped by the promise that they keep.
var guards = []guard{
	// A disk is formatted once.
	{
		protects: "the copy of a snapshot that looks blank is not formatted", file: "driver/node/stage.go",
		code: `, contents.Blank && vol.Snapshot != "":`, without: `:`,
	},
	{
		protects: "a disk that was formatted before and looks blank is not formatted again", file: "driver/node/stage.go",
		code: `case set.Formatted && contents.Blank, contents`, without: `case contents`,
	},
	{
		protects: "another node's format is not overwritten: the cloud is asked again as the holder", file: "driver/controller/controller.go",
		code: `case !missing && now.ID == vol.ID && now.HeldBy(node.ID):`, without: `case !missing:`,
	},
	{
		protects: "the cloud learns that the disk is formatted before anybody may write to it", file: "driver/controller/controller.go",
		code: `if err := c.cloud.mark(ctx, vol.ID, volume.KeyFormatted, fstype); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "a device smaller than its volume is another disk", file: "driver/node/stage.go",
		code: `if dev.Size < vol.Size {`, without: `if false {`,
	},
	{
		protects: "a format that was cut short is finished before another node gets the disk", file: "driver/unmount.go",
		code: "	if e.Formatting {\n		if err := d.finishFormat", without: "	if false {\n		if err := d.finishFormat",
	},
	{
		protects: "the remains of a format that a disk has from elsewhere are not cleared", file: "driver/node/volume.go",
		code: `if e != nil && e.Formatting && !v.node.HasDevice(ctx, vol.Serial) {`, without: `if false {`,
	},
	{
		protects: "a device is not formatted if another one with its serial has come", file: "mount/format.go",
		code: "if _, err := h.Find(ctx, disk.Serial); err != nil {", without: "if err := error(nil); err != nil {",
	},
	{
		protects: "a device is not formatted if it is smaller than the cloud says", file: "mount/format.go",
		code: `if spec.Size <= 0 || size < spec.Size {`, without: `if false {`,
	},
	{
		protects: "a device is not formatted if anything is on it", file: "mount/format.go",
		code: `if !c.Blank {`, without: `if false {`,
	},
	{
		protects: "what mkfs failed on is not cleared if it is somebody else's", file: "mount/format.go",
		code: `return s != spec.FSType && s != unknownData })`, without: `return s == "" })`,
	},
	{
		protects: "the format is recorded before its first byte", file: "mount/format.go",
		code: "if err := spec.Begin(ctx); err != nil {", without: "if err := error(nil); err != nil {",
	},
	{
		protects: "a signature that only wipefs sees counts", file: "mount/probe.go",
		code: "			c.Found = append(c.Found, s)\n", without: "",
	},
	{
		protects: "a signature that only blkid sees counts", file: "mount/probe.go",
		code: `if c := parseBlkid(res.stdout); len(c.Found) > 0 {`, without: `if c := (Contents{}); true {`,
	},
	{
		protects: "bytes of an unknown kind at the edges of a disk count", file: "mount/probe.go",
		code: `if len(c.Found) == 0 && !zero {`, without: `if len(c.Found) == 0 && !zero && c.FSType != "" {`,
	},
	{
		protects: "bytes in the first MiB count, not only in the last", file: "mount/probe.go",
		code: `zero = zero && isZero(buf[:s.length])`, without: `zero = isZero(buf[:s.length])`,
	},
	{
		protects: "blkid that failed does not mean blank", file: "mount/probe.go",
		code: `res.code == 2 && res.stdout == "" && res.stderr == ""`, without: `res.code == 2`,
	},
	{
		protects: "wipefs that failed does not mean blank", file: "mount/probe.go",
		code: `if res.code != 0 || res.stderr != "" {`, without: `if false {`,
	},
	{
		protects: "a device that changed between its discovery and its use is not touched", file: "mount/device.go",
		code: "	if err := h.verify(disk); err != nil {", without: "	if err := error(nil); err != nil {",
	},
	{
		protects: "a device node of another number is not the device", file: "mount/device.go",
		code: `unix.Major(st.Rdev) != d.Major || unix.Minor(st.Rdev) != d.Minor`, without: `false`,
	},
	{
		protects: "a device on a bus that is not the cloud's is not touched", file: "mount/identity.go",
		code: "bus, ours := h.buses[name]\n	if !ours {", without: "bus, ours := buses[name]\n	if !ours {",
	},
	{
		protects: "of two devices with one serial neither is used", file: "mount/device.go",
		code: `case len(names) > 1:`, without: `case false:`,
	},

	// One writer.
	{
		protects: "TAKEOVER=never takes nothing", file: "driver/controller/takeover.go",
		code: `case c.takeover == TakeoverNever:`, without: `case false:`,
	},
	{
		protects: "under TAKEOVER=always a holder is given time to release the volume", file: "driver/controller/takeover.go",
		code: ` && time.Since(watch.since) >= holderGrace:`, without: `:`,
	},
	{
		protects: "a takeover that has been ordered is not ordered again at once", file: "driver/controller/takeover.go",
		code: `watch.taken == holder && time.Since(watch.at) < holderGrace ||`, without: ``,
	},
	{
		protects: "a holder that is detaching by itself is not robbed", file: "driver/controller/takeover.go",
		code: `vol.Attachment.State == providers.Detaching && time.Since(watch.since) < holderGrace`, without: `false`,
	},
	{
		protects: "a forced detach does not outlive its evidence", file: "driver/controller/takeover.go",
		code: `asked.Add(forceTimeout)`, without: `asked.Add(time.Hour)`,
	},
	{
		protects: "evidence that has become old is not acted upon", file: "driver/controller/takeover.go",
		code: `case writesNoMore(state) && time.Since(asked) <= evidenceLife:`, without: `case writesNoMore(state):`,
	},
	{
		protects: "no node is powered off that another one has heard of lately", file: "driver/controller/fence.go",
		code: `ago := time.Since(signs.Last).Round(time.Second); {`, without: `ago := time.Since(signs.Last).Round(time.Second) + time.Hour; {`,
	},
	{
		protects: "no node is powered off that nobody has heard of before", file: "driver/controller/fence.go",
		code: `case !signs.Known:`, without: `case false:`,
	},
	{
		protects: "no node is powered off that stops on purpose", file: "driver/controller/fence.go",
		code: `case time.Since(signs.Left) < leavingGrace:`, without: `case false:`,
	},
	{
		protects: "a node that reaches the lesser part of the others powers off none", file: "driver/controller/fence.go",
		code: `all > 2 && 2*(answering+1) <= all`, without: `all < 0`,
	},
	{
		protects: "a node that is off is not among those that this one may be cut off from", file: "driver/controller/fence.go",
		code: `			case providers.Stopped:
				continue`, without: `			case providers.Stopped:`,
	},
	{
		protects: "a node that another one is about to power off powers off none", file: "driver/controller/claim.go",
		code: `of != me || by == me || !a.fences.isFresh(claim)`, without: `of != "" || !a.fences.isFresh(claim)`,
	},
	{
		protects: "a node that wants to power off another waits until all claims before its own are shown", file: "driver/controller/fence.go",
		code: `max(fenceGrace-silent, providers.MaxStale-time.Since(f.claimed))`, without: `fenceGrace-silent`,
	},
	{
		protects: "no node is powered off for a caller who has left", file: "driver/controller/fence.go",
		code: `case !a.claim.Wanted():`, without: `case false:`,
	},
	{
		protects: "a claim on a node that answers again is withdrawn", file: "driver/controller/fence.go",
		code: `silent == 0 || of != holder`, without: `of != holder`,
	},
	{
		protects: "one node of several that want a volume has its holder powered off", file: "driver/controller/claim.go",
		code: `of == holder && by != me && a.fences.isFresh(theirs)`, without: `of == "" && by != me && a.fences.isFresh(theirs)`,
	},
	{
		protects: "a node that was powered off is started again after its disks are gone", file: "driver/controller/restart.go",
		code: `err != nil || len(held) > 0 && time.Since(off) < emptyWithin`, without: `err != nil || len(held) < 0`,
	},
	{
		protects: "a node is not started again for a power-off of long ago", file: "driver/controller/restart.go",
		code: `started again")
		c.record(ctx, name, claim, restarted)`, without: `started again")
		c.record(ctx, name, claim, wasOff)`,
	},
	{
		protects: "a power-off is not asked for when it was long ago that nobody objected", file: "driver/controller/fence.go",
		code: `silent == 0 || time.Since(f.asked) >= evidenceFor`, without: `time.Since(f.asked) >= time.Hour`,
	},
	{
		protects: "a node that starts later than this one is not powered off", file: "driver/controller/fence.go",
		code: `!signs.Last.After(a.begun) && time.Since(a.begun) < bootGrace`, without: `time.Since(a.begun) < 0`,
	},
	{
		protects: "a claim that is carried through slowly is made anew", file: "driver/controller/fence.go",
		code: `f.claim == "" || time.Since(f.claimed) >= offAgain`, without: `f.claim == ""`,
	},
	{
		protects: "whether a node is off is the cloud's word, not the answer to a request", file: "driver/controller/fence.go",
		code: `last.refusal != nil && !off`, without: `last.refusal != nil`,
	},
	{
		protects: "a node that an operator switches off stays off", file: "driver/controller/restart.go",
		code: ` || c.resumed.Swap(true)`, without: ``,
	},
	{
		protects: "a node that is being started again is not powered off again", file: "driver/controller/restart.go",
		code: `c.witnesses.Started(holder)`, without: `_ = c.witnesses`,
	},
	{
		protects: "a power-off for which the cloud is busy is asked for again soon", file: "driver/controller/fences.go",
		code: `errors.Is(refusal, providers.ErrBusy)`, without: `errors.Is(refusal, providers.ErrBusy) && false`,
	},
	{
		protects: "a node whose plugin is being started again is not powered off", file: "driver/controller/fence.go",
		code: `case signs.Refused && `, without: `case false && `,
	},
	{
		protects: "a node is not gone for credentials that do not see this node either", file: "providers/managed/node.go",
		code: `switch _, err := c.Status(ctx, self.ID); {
	case errors.Is(err, providers.ErrNotFound):`, without: `switch _, err := c.Status(ctx, self.ID); {
	case false:`,
	},
	{
		protects: "a node that one other cannot reach is heard of by those whom that one asks", file: "driver/peer/hello.go",
		code: `	if hello.About != "" {
		m.look(`, without: `	if hello.About == self {
		m.look(`,
	},
	{
		protects: "an answer that cannot be used is a sign of life", file: "driver/peer/members.go",
		code: `case err == nil, errors.Is(err, ErrAlive):`, without: `case err == nil:`,
	},
	{
		protects: "an answer of another node is no sign of life", file: "driver/peer/client.go",
		code: `answer.StatusCode != http.StatusMisdirectedRequest`, without: `answer != nil`,
	},
	{
		protects: "a node with another key is alive", file: "driver/peer/client.go",
		code: `err = shows{err, ErrOtherKey}`, without: `err = shows{err, err}`,
	},
	{
		protects: "a node that does not know which it is answers that it is there", file: "driver/peer/server.go",
		code: `status := http.StatusServiceUnavailable`, without: `status := http.StatusMisdirectedRequest`,
	},
	{
		protects: "a node that is stopping does not unsay it", file: "driver/peer/hello.go",
		code: `Leaving: m.leaving,`, without: ``,
	},
	{
		protects: "a node that only asks for volumes is not known to answer", file: "driver/peer/server.go",
		code: `s.members.heard(want.From, false, from(r))`, without: `s.members.heard(want.From, true, from(r))`,
	},
	{
		protects: "nor is one of which others have heard only that", file: "driver/peer/hello.go",
		code: `m.meet(n, s.Met)`, without: `m.meet(n, true)`,
	},
	{
		protects: "what is told of a node does not become younger by being told on", file: "driver/peer/hello.go",
		code: `	if !n.own.heard.IsZero() {
		s.Heard = now.Sub(n.own.heard)`, without: `	if at, _ := n.heard(); !at.IsZero() {
		s.Heard = now.Sub(at)`,
	},
	{
		protects: "what others said to one whose time ran out is not what they say", file: "driver/peer/signs.go",
		code: `own.cut = value, time.Now(), ctx.Err() != nil`, without: `own.cut = value, time.Now(), false`,
	},
	{
		protects: "nodes keep in touch, whatever the policy of this one is", file: "cmd/blockvol/serve.go",
		code: `keepInTouch(members, find))`, without: `keepInTouch(nil, find))`,
	},
	{
		protects: "a node that the cloud has told of is greeted before it is forgotten", file: "driver/peer/members.go",
		code: `time.Since(heard) > rememberFor && time.Since(n.noted) > rememberFor`, without: `time.Since(heard) > rememberFor`,
	},
	{
		protects: "this node itself is not powered off", file: "providers/managed/fence.go",
		code: `case self.ID == node:`, without: `case self.ID == "":`,
	},
	{
		protects: "a node that is off and locked, perhaps by its start, is not powered off already", file: "providers/managed/fence.go",
		code: `s.Life == providers.Stopped && !busy`, without: `s.Life == providers.Stopped && (busy || !busy)`,
	},
	{
		protects: "a node that could not be powered off is not gone because one answer does not know it", file: "providers/managed/fence.go",
		code: `case state.Life == providers.Gone:`, without: `case true:`,
	},
	{
		protects: "a power-off whose answer is lost is not sent again to Hetzner", file: "providers/hetzner/client.go",
		code: ` && !strings.Contains(r.URL.Path, "/servers/")`, without: ``,
	},
	{
		protects: "a power-off whose answer is lost is not sent again to Linode", file: "providers/linode/client.go",
		code: ` && !strings.Contains(r.URL.Path, "/linode/instances/")`, without: ``,
	},
	{
		protects: "a power-off whose answer is lost is not sent again to DigitalOcean", file: "providers/digitalocean/client.go",
		code: `return err == nil && action.Type == "attach"`, without: `return err == nil && action.Type != "detach"`,
	},
	{
		protects: "a power-off whose answer is lost is not sent again to EC2", file: "providers/aws/fence.go",
		code: `once(ctx, p, (*ec2.Client).StopInstances,`, without: `call(ctx, p, (*ec2.Client).StopInstances,`,
	},
	{
		protects: "a power-off is not sent again after a status 503, which EC2 may answer though it has begun", file: "providers/aws/client.go",
		code: `case throttled && (most > 1 || isThrottleCode(err)):`, without: `case throttled:`,
	},
	{
		protects: "a power-off of EC2 waits for no system that may hang", file: "providers/aws/fence.go",
		code: `SkipOsShutdown: sdk.Bool(true)})
	if err`, without: `SkipOsShutdown: sdk.Bool(false)})
	if err`,
	},
	{
		protects: "a trial whether nodes of EC2 may be powered off powers off none", file: "providers/aws/fence.go",
		code: `StopInstancesInput{DryRun: sdk.Bool(true)`, without: `StopInstancesInput{DryRun: sdk.Bool(false)`,
	},
	{
		protects: "a server that OpenStack calls stopped, and whose power is on, writes", file: "providers/openstack/openstack.go",
		code: `case server.Power == servers.RUNNING || server.Power == servers.PAUSED:`, without: `case false:`,
	},
	{
		protects: "a live holder costs few refused attaches", file: "driver/controller/takeover.go",
		code: `w.tries < mostTries && `, without: ``,
	},
	{
		protects: "no attach is tried once a shown holder cannot be of a time before the wait", file: "driver/controller/takeover.go",
		code: `time.Since(w.since) < providers.MaxStale/2 && w.taken`, without: `w.taken`,
	},
	{
		protects: "no attach is tried while a takeover is under way", file: "driver/controller/takeover.go",
		code: ` && w.taken == ""`, without: ``,
	},
	{
		protects: "an attach that was tried while another node was shown as the holder is this node's to call off", file: "driver/controller/attach.go",
		code: `a.claim.Record(ctx, vol, !mine)`, without: `a.claim.Record(ctx, vol, !vol.Held())`,
	},
	{
		protects: "a disk that EC2 would attach to several instances is neither adopted nor served", file: "providers/aws/volume.go",
		code: `case sdk.ToBool(v.MultiAttachEnabled):
		return fmt`, without: `case false:
		return fmt`,
	},
	{
		protects: "a volume of another zone is not attached", file: "driver/controller/attach.go",
		code: `if vol.Zone != "" && a.claim.Node.Zone != "" && vol.Zone != a.claim.Node.Zone {`, without: `if false {`,
	},

	// Never detach what is mounted.
	{
		protects: "a volume is unmounted before it is detached", file: "driver/node/stage.go",
		code: "	if err := v.node.host.Unstage(ctx, v.dir); err != nil {\n", without: "	if err := error(nil); err != nil {\n",
	},
	{
		protects: "a volume is not detached while the kernel holds its file system", file: "driver/node/stage.go",
		code: `if err := v.WaitFree(ctx, progress); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "a release is not over before the device has gone", file: "driver/unmount.go",
		code: `if err := h.WaitGone(gone); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "a mount ID that the journal lost does not release what a container uses", file: "driver/unmount.go",
		code: `} else if len(users) > 0 {`, without: `} else if len(users) > 0 && false {`,
	},
	{
		protects: "a disk whose device this boot has not seen is not detached", file: "driver/unmount.go",
		code: `if !e.Ours && !h.Seen() && !hasDevice {`, without: `if false {`,
	},
	{
		protects: "a disk is not attached under a new name while it is released under the old one", file: "driver/node/volume.go",
		code: `if o := v.node.disks[disk]; o != nil && o != v {`, without: `if o := v.node.disks[disk]; false {`,
	},
	{
		protects: "an attach is not called off while containers use the volume", file: "driver/node/volume.go",
		code: "	if len(e.Uses) > 0 {\n		return volume.Fail(volume.InUse, fmt.Sprintf(\"the cloud says that the attach", without: "	if false {\n		return volume.Fail(volume.InUse, fmt.Sprintf(\"the cloud says that the attach",
	},
	{
		protects: "an attach that is not this node's own is not called off", file: "driver/mount.go",
		code: `if e := h.Entry(); e == nil || e.Volume != vol.ID || !e.Ours {`, without: `if false {`,
	},
	{
		protects: "an attach is not called off while its device is here", file: "driver/node/volume.go",
		code: `if _, err := v.node.host.Find(ctx, vol.Serial); !errors.Is(err, mount.ErrNoDevice) {`, without: `if err := error(nil); errors.Is(err, mount.ErrNoDevice) {`,
	},
	{
		protects: "a mount that cannot be attributed counts as use", file: "mount/inuse.go",
		code: `case !all.complete:`, without: `case false:`,
	},
	{
		protects: "a mount in another namespace is use", file: "mount/inuse.go",
		code: `case of != nil && of.used:`, without: `case false:`,
	},
	{
		protects: "a container's own mount is no copy of the staged one", file: "mount/inuse.go",
		code: `return at == c.published`, without: `return true || at == c.published`,
	},
	{
		protects: "a mount beside the targets is no copy of what is bound there", file: "mount/inuse.go",
		code: `if slices.Contains(c.targets[q], at) {`, without: `if len(c.targets[q]) > 0 {`,
	},
	{
		protects: "only the targets that a caller knows are not use", file: "mount/inuse.go",
		code: `dir == h.scratch || slices.Contains(targets[q], m.Mountpoint) {`, without: `dir == h.scratch || dir != "" {`,
	},
	{
		protects: "a copy of the staged mount that something is mounted on is use", file: "mount/inuse.go",
		code: `isCopy := !covered[m.ID] && c.isCopy`, without: `isCopy := c.isCopy`,
	},
	{
		protects: "processes that are hidden may use anything", file: "mount/processes.go",
		code: `c.complete = slices.Contains(pids, "1")`, without: `c.complete = true`,
	},
	{
		protects: "a file system that no mount shows holds its device", file: "mount/busy.go",
		code: `		if len(found) > 0 {`, without: `		if len(found) > 1<<20 {`,
	},
	{
		protects: "a volume is busy if its top is, not only its disk", file: "mount/busy.go",
		code: "	return isBusy(top)\n", without: "	return false, nil\n",
	},
	{
		protects: "a volume is in use if its disk is mounted, not only its top", file: "mount/inuse.go",
		code: "		c.addDevice(q, q.disk)\n", without: "		c.addDevice(q, q.top)\n",
	},
	{
		protects: "another program's exclusive open holds a device", file: "mount/busy.go",
		code: "	case errors.Is(err, unix.EBUSY):\n		return true, nil\n	case errors.Is(err, unix.ENOENT)", without: "	case errors.Is(err, unix.EBUSY):\n		return false, nil\n	case errors.Is(err, unix.ENOENT)",
	},

	// What the cloud says may be old.
	{
		protects: "after a detach the answers of the cloud are not believed for as long as they may be old", file: "driver/controller/attach.go",
		code: `case (!vol.Held() || mine) && detaching > 0:`, without: `case false:`,
	},
	{
		protects: "a detach by a release is remembered", file: "driver/controller/detach.go",
		code: `c.AskedToDetach(id) // perhaps also if it failed`, without: ``,
	},
	{
		protects: "a detach by a called-off attach is remembered", file: "driver/controller/detach.go",
		code: "	c.AskedToDetach(id)\n", without: "",
	},
	{
		protects: "an old answer after a detach is no attachment", file: "providers/managed/holders.go",
		code: `if err == nil && !h.confirms(volume, node, asked) {`, without: `if false {`, tests: "./providers/hetzner",
	},
	{
		protects: "what was just created is not missing because an old answer does not show it", file: "providers/managed/find.go",
		code: `case asked.Sub(lately.at) >= providers.MaxStale:`, without: `case asked.Sub(lately.at) >= 0:`,
	},
	{
		protects: "a volume is not another's because an old answer does not show its marks", file: "providers/managed/managed.go",
		code: `certain = p.IsOurs(d) || asked.Sub(ours) >= providers.MaxStale`, without: `certain = p.IsOurs(d) || asked.Sub(ours) >= 0`,
	},
	{
		protects: "an old answer before an attach is not taken for a detach", file: "providers/managed/attach.go",
		code: `held == providers.Detached && !p.holders.denies(id, node, asked)`, without: `held == providers.Detached && asked.IsZero()`,
	},
	{
		protects: "an old answer does not end a detach that is under way", file: "providers/managed/operation.go",
		code: `o.over && d.Asked.Sub(o.at) >= providers.MaxStale`, without: `o.over`,
	},
	{
		protects: "a volume of another name or cluster is not adopted", file: "providers/managed/adopt.go",
		code: "	case d.Marked:\n		return refuse", without: "	case false:\n		return refuse",
	},
	{
		protects: "an old answer after a detach does not detach from the next server", file: "providers/managed/attach.go",
		code: `case !p.holders.confirms(id, node, asked):`, without: `case false:`, tests: "./providers/hetzner",
	},
	{
		protects: "an answer from before this node's own change is not believed", file: "driver/controller/catalog.go",
		code: "	case !s.ours():\n		return nil, false", without: "	case true:\n		return nil, false",
	},
	{
		protects: "an answer to an older question does not undo this node's change", file: "driver/controller/catalog.go",
		code: `case s.change > asked:`, without: `case false:`,
	},
	{
		protects: "an old list does not undo this node's change", file: "driver/controller/catalog.go",
		code: `if s.change > asked || s.ours() {`, without: `if false {`,
	},
	{
		protects: "one answer that may be old does not make an attach fail", file: "driver/controller/attach.go",
		code: "		if again {\n", without: "		if true || again {\n",
	},

	// Never show an empty folder, or another disk, for a volume.
	{
		protects: "the mount of a disk that has been replaced is not answered", file: "driver/node/stage.go",
		code: `was := v.Device(); err != nil || dev.Name != was.Name || dev.Major != was.Major || dev.Minor != was.Minor`, without: `err != nil`,
	},
	{
		protects: "a path that shows nothing is not answered", file: "driver/node/stage.go",
		code: "	return err == nil && staged\n", without: "	return err == nil || staged\n",
	},
	{
		protects: "a volume made anew is not mistaken for the one that containers have mounted", file: "driver/node/volume.go",
		code: `if e != nil && e.Volume != vol.ID && len(e.Uses) > 0 {`, without: `if false {`,
	},
	{
		protects: "what the engine does not see is not answered", file: "driver/mount.go",
		code: `if err := d.node.Visible(ctx); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "another file system than the volume's is not mounted", file: "mount/stage.go",
		code: "if err := verifyFS(ctx, top, fstype); err != nil {", without: "		if err := error(nil); err != nil {",
	},
	{
		protects: "a file system is checked before it is mounted", file: "mount/stage.go",
		code: "return check(ctx, top, fstype)", without: "return nil",
	},
	{
		protects: "a file system that a container holds is not checked", file: "mount/stage.go",
		code: "busy, err := isBusy(top)\n	if err != nil || busy {\n		return err", without: "_, err := isBusy(top)\n	if err != nil {\n		return err",
	},
	{
		protects: "nobody can write into the bare mountpoint", file: "mount/mountpoint.go",
		code: `err := unix.Mkdir(path, 0)`, without: `err := unix.Mkdir(path, 0o755)`,
	},
	{
		protects: "a bare mountpoint that somebody wrote into is not covered", file: "mount/mountpoint.go",
		code: `if len(names) > 0 {`, without: `if false {`,
	},
	{
		protects: "a path that shows another file system is not answered", file: "mount/stage.go",
		code: `if !isOf(m, top) || m.Root != root {`, without: `if false {`,
	},
	{
		protects: "what is not staged is bound nowhere", file: "mount/table.go",
		code: `if err = verifyDeviceOf(root, top, m.FSType); err != nil {`, without: `if err = error(nil); err != nil {`,
	},
	{
		protects: "the bare mountpoint is bound nowhere", file: "mount/table.go",
		code: "	case m == nil:\n		err = fmt.Errorf", without: "	case m == nil:\n		_ = fmt.Errorf",
	},
	{
		protects: "a target that shows another file system is not answered", file: "mount/bind.go",
		code: `if !isOf(m, top) || m.Root != staged.Root {`, without: `if false {`,
	},
	{
		protects: "a target that is writable is not answered for one that is to be read-only", file: "mount/bind.go",
		code: `if isReadOnly(m) != (readOnly || isReadOnly(staged)) {`, without: `if false {`,
	},
	{
		protects: "a read-only target is read-only", file: "mount/fsmount.go",
		code: `attr.Attr_set = unix.MOUNT_ATTR_RDONLY`, without: `attr.Attr_set = 0`,
	},
	{
		protects: "a mount inside a target stays there", file: "mount/fsmount.go",
		code: `unix.MountAttr{Propagation: unix.MS_PRIVATE}`, without: `unix.MountAttr{}`,
	},
	{
		protects: "what is not the volume's is not unmounted at a target", file: "mount/bind.go",
		code: `case !isOf(m, top):`, without: `case false:`,
	},
	{
		protects: "blockvol's own directories are no targets", file: "mount/bind.go",
		code: `if within(own, path) || within(path, own) {`, without: `if false {`,
	},

	// A file system does not stay frozen.
	{
		protects: "a freeze ends by itself", file: "mount/freeze.go",
		code: `time.AfterFunc(limit, func() { f.end(errFreezeLimit) })`, without: `time.AfterFunc(time.Hour, func() { f.end(errFreezeLimit) })`,
	},
	{
		protects: "a freeze is in the journal before it begins, for the next start to end it", file: "driver/node/freeze.go",
		code: `if err := v.write(e.but(func(e *Entry) { e.Frozen = true })); err != nil {`, without: `if err := error(nil); err != nil {`,
	},

	// The journal.
	{
		protects: "a use is in the journal before it is answered", file: "driver/node/volume.go",
		code: `if err := v.write(before.with(use, v.Device())); err != nil {`, without: `if err := v.write(before); err != nil {`,
	},
	{
		protects: "a Mount that nobody waits for leaves no use", file: "driver/job.go",
		code: "		if undo != nil {\n			undo()\n		}\n", without: "		_ = undo\n",
	},
	{
		protects: "an attach is in the journal before it is asked for", file: "driver/controller/attach.go",
		code: `if err := a.claim.Record(ctx, vol, !mine); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "an entry of a later version is left as it is", file: "driver/node/journal.go",
		code: `if err == nil && head.Name != "" && head.Version > journalVersion {`, without: `if false {`,
	},
	{
		protects: "no call works on a volume whose entry a later version has written", file: "driver/job.go",
		code: `	if err := d.node.Serves(name); err != nil {`, without: `	if err := d.node.Serves(name); false {`,
	},
	{
		protects: "nothing in the background works on a volume whose entry a later version has written", file: "driver/job.go",
		code: `	if d.node.Serves(name) != nil {`, without: `	if false {`,
	},
	{
		protects: "only callers that want a volume mounted keep its mount going", file: "driver/job.go",
		code: `	if j.joins {
		h.want(+1)`, without: `	if true {
		h.want(+1)`,
	},
	{
		protects: "an Unmount that waits when the plugin stops is done", file: "driver/job.go",
		code: `turn = context.WithoutCancel(caller)`, without: `turn = d.ctx`,
	},
	{
		protects: "an entry survives a power failure: its file is flushed", file: "internal/host/host.go", tests: "./driver/node",
		code: "		err = f.Sync()\n", without: "		err = nil\n",
	},
	{
		protects: "an entry survives a power failure: its directory is flushed", file: "internal/host/host.go", tests: "./driver/node",
		code: "	return SyncDir(filepath.Dir(path))\n", without: "	return nil\n",
	},
	{
		protects: "a removed entry does not come back after a power failure", file: "driver/node/journal.go",
		code: "err = host.SyncDir(string(dir))", without: "err = nil",
	},
	{
		protects: "mount IDs of an earlier boot are void", file: "driver/node/node.go",
		code: `sameBoot := e.Boot == n.boot`, without: `sameBoot := true`,
	},

	{
		protects: "an answer that its caller does not wait for is not made", file: "driver/job.go",
		code: "		if caller.Err() != nil {\n			return // nobody hears the answer\n		}\n", without: "",
	},

	// Snapshots.
	{
		protects: "the file system is frozen for a snapshot", file: "driver/snapshot.go",
		code: `held, err := h.Frozen(ctx, freezeLimit, take)`, without: `held, err := false, take(ctx)`,
	},
	{
		protects: "a volume is not deleted before its last snapshot is complete", file: "driver/controller/remove.go",
		code: `			snapshot, err = c.AwaitSnapshot(ctx, snapshot, step)`, without: `			_ = snapshot`,
	},
	{
		protects: "a schedule takes one snapshot at a time, whichever node has the volume", file: "driver/schedule.go",
		code: `case !begun:`, without: `case !begun || true:`,
	},
	{
		protects: "no snapshot expires before a newer one is complete", file: "driver/schedule.go",
		code: `case latest(taken).Before(v.due):`, without: `case false:`,
	},
	{
		protects: "only snapshots of the schedule expire", file: "driver/schedule.go",
		code: `at.IsZero() || at.After(now)`, without: `at.After(now)`,
	},
	{
		protects: "a snapshot of the future does not end its schedule", file: "driver/schedule.go",
		code: ` || at.After(now)`, without: ``,
	},
	{
		protects: "the snapshots of a volume that cannot be read are not garbage", file: "driver/garbage.go",
		code: `volumes, err := d.controller.ListWhole(ctx)`, without: `volumes, err := d.list(ctx)`,
	},
	{
		protects: "a copy keeps as many snapshots as its own schedule says", file: "driver/options.go",
		code: `			r.Spec.Record[volume.KeyKeep] = cmp.Or(r.Record[volume.KeyKeep], volume.DefaultKeep)`, without: ``,
	},
	{
		protects: "a volume is not deleted while a snapshot of it is copied", file: "driver/controller/remove.go",
		code: `if err := c.awaitSnapshotsOf(ctx, vol, step); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "a job removes the disk that was meant", file: "driver/remove.go",
		code: `case disk != "" && vol.ID != disk:`, without: `case false:`,
	},
	{
		protects: "snapshots of removed volumes are kept unless it is said otherwise", file: "driver/garbage.go",
		code: `case exists[s.Volume] == nil && removed:`, without: `case exists[s.Volume] == nil:`,
	},
	{
		protects: "the snapshots of a disk that was kept are not garbage", file: "driver/garbage.go",
		code: `case kept[s.Volume]:`, without: `case kept[s.Volume] && false:`,
	},
	{
		protects: "the snapshot of a copy that is being made is not garbage", file: "driver/garbage.go",
		code: ` && time.Since(s.CreatedAt) > copyAge:`, without: `:`,
	},
	{
		protects: "a node that does not know a volume's new schedule is told of", file: "driver/reschedule.go",
		code: `; err == nil && !vol.Held() {`, without: `; false {`,
	},
	{
		protects: "what is copied is not what the volume held long ago", file: "driver/create.go",
		code: ` && time.Since(s.CreatedAt) < resumeAge`, without: ``,
	},
	{
		protects: "a copy goes on with its own snapshot only", file: "driver/create.go",
		code: `s.Record[volume.KeyTaken] == reason`, without: `volume.IsToCopy(s.Record)`,
	},
	{
		protects: "an import copies to the volume, not to the bare directory", file: "cmd/blockvol/import.go",
		code: `err != nil || !is {`, without: `err != nil && !is {`,
	},
	{
		protects: "a refused forget changes nothing", file: "driver/retain.go",
		code: `if _, err := d.freeInTime(ctx, h); err != nil &&`, without: `if _, err := d.freeInTime(ctx, h); err == nil &&`,
	},
	{
		protects: "a copy does not go on with a snapshot that is taken for another", file: "driver/create.go",
		code: `volume.IsToMake(s.Record, h.Name)`, without: `volume.IsToCopy(s.Record)`,
	},
	{
		protects: "the snapshot for a copy is left to the node that has begun it", file: "driver/controller/create.go",
		code: `if shared && err != nil {`, without: `if shared && err == nil {`,
	},
	{
		protects: "what an attempt to copy has left is not copied", file: "driver/create.go",
		code: ` && s.CreatedAt.Before(d.started)`, without: ``,
	},
	{
		protects: "a volume in use is not put back to a snapshot", file: "driver/snapshot.go",
		code: `if vol, err = d.free(ctx, h); err != nil {`, without: `if false {`,
	},
	{
		protects: "the disk that a volume is put back in place of is the one that was meant", file: "driver/snapshot.go",
		code: `case err == nil && vol.ID == disk:`, without: `case err == nil:`,
	},
	{
		protects: "between two names the new disk is known", file: "driver/snapshot.go",
		code: `if err := d.controller.Mark(ctx, vol, volume.KeyReplacedBy, copied.ID); err != nil {`, without: `if copied == nil {`,
	},

	// Uses that nobody ended.
	{
		protects: "mount IDs are not dropped while the engine fills a new volume", file: "driver/node/usage.go",
		code: `case v.isWritten() && !v.backed, v.unbackedSince.IsZero():`, without: `case v.unbackedSince.IsZero():`,
	},
	{
		protects: "mount IDs are not dropped before the container's own mount can be there", file: "driver/node/usage.go",
		code: `case time.Since(v.unbackedSince) < unbackedTimeout:`, without: `case false:`,
	},
	{
		protects: "a volume whose device this boot has not seen is not removed while its mount IDs stand", file: "driver/remove.go",
		code: `case n > 0 && !used && !h.Seen():`, without: `case false:`,
	},
	{
		protects: "a volume is not removed while a container or a process uses it", file: "driver/remove.go",
		code: `used, n := len(users) > 0, len(e.Uses)`, without: `used, n := false, len(e.Uses)`,
	},

	// A disk that was taken from this node.
	{
		protects: "what waits in memory is not written when a file system is shut down", file: "mount/shutdown.go",
		code: `noLogFlush = 2`, without: `noLogFlush = 0`,
	},
	{
		protects: "the file system of another disk is not shut down", file: "mount/shutdown.go",
		code: `if err := h.mayBe(disk); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "one answer of the cloud takes a volume from nobody", file: "driver/protect.go",
		code: `case said != denied:`, without: `case said != denied && false:`,
	},
	{
		protects: "two answers that may be of one moment count as one", file: "driver/protect.go",
		code: `denied, wait = said, providers.MaxStale //`, without: `denied, wait = said, time.Second //`,
	},
	{
		protects: "an answer that this node holds the disk ends the doubt", file: "driver/protect.go",
		code: `case said == controller.Ours:`, without: `case false:`,
	},
	{
		protects: "a volume that can be read is not shut down because no node holds it", file: "driver/protect.go",
		code: `if said == controller.Elsewhere || silence != nil {`, without: `if said != controller.Unclear {`,
	},
	{
		protects: "an answer about another disk is none", file: "driver/controller/whose.go",
		code: `case err != nil, vol.ID != id:`, without: `case err != nil:`,
	},
	{
		protects: "an answer that names no node is none", file: "driver/controller/whose.go",
		code: `case vol.Attachment.Node == "":`, without: `case false:`,
	},
	{
		protects: "a node that was renamed believes no answer about what it attached before", file: "driver/protect.go",
		code: `|| err != nil || e.Node != here.ID {`, without: `|| err != nil {`,
	},
	{
		protects: "a node that stood still asks whether it holds its disks", file: "driver/reconcile.go",
		code: `searched = time.Time{}`, without: `_ = searched`,
	},
	{
		protects: "a volume that the cloud does not list is doubted", file: "driver/strays.go",
		code: `d.doubtAbsent(ids, begun)`, without: `_, _ = ids, begun`,
	},
	{
		protects: "a file system whose device is gone is shut down", file: "driver/protect.go",
		code: `case h.IsCutOff(ctx, m):`, without: `case false:`,
	},
	{
		protects: "the journal knows of a file system that is shut down from before", file: "driver/node/taken.go",
		code: `v.reduce(e.but(func(e *Entry) { e.Taken, e.Device = true, dev }))`, without: `v.become(e.but(func(e *Entry) { e.Taken, e.Device = true, dev }))`,
	},
	{
		protects: "a file system that is shut down does not pass for the volume", file: "driver/node/stage.go",
		code: `if e == nil || e.Taken || v.Mountpoint() == "" {`, without: `if e == nil || v.Mountpoint() == "" {`,
	},
	{
		protects: "the file system from before the disk was taken is not mounted again", file: "driver/node/stage.go",
		code: `if err := v.bury(ctx, dev, set.FSType); err != nil {`, without: `if err := error(nil); err != nil {`,
	},
	{
		protects: "a btrfs from before a disk was taken does not go on with it when it comes back", file: "driver/node/taken.go",
		code: `if fstype != "btrfs" {`, without: `if fstype != "" {`,
	},
	{
		protects: "an old file system is not given a disk that others have written to", file: "driver/protect.go",
		code: "			d.doubt(h, \"it is to be attached to this node\", 0)\n			return errDenied()", without: "			d.doubt(h, \"it is to be attached to this node\", 0)",
	},
	{
		protects: "what the cloud denies is shown to no further container", file: "driver/mount.go",
		code: `if h.isDenied() {`, without: `if false {`,
	},
	{
		protects: "a disk that another node has is not detached as this node's", file: "driver/unmount.go",
		code: `if err != nil || vol.ID != e.Volume || !vol.HeldBy(here.ID) {`, without: `if vol == nil {`,
	},

	// Space on local is promised once.
	{
		protects: "what is promised to an image is not promised again", file: "providers/local/capacity.go",
		code: `l.Headroom -= size`, without: `l.Headroom -= 0`,
	},
	{
		protects: "space that other programs took is not promised", file: "providers/local/capacity.go",
		code: `return l.Headroom - max(0, l.Free-free)`, without: `return l.Headroom`,
	},
	{
		protects: "a deleted image gives back no more than its size", file: "providers/local/capacity.go",
		code: `l.Free += own`, without: `l.Free += 0`,
	},

	// The installer leaves each node with a plugin that works.
	{
		protects: "what worked is known before the plugin is disabled", file: "cmd/installer/apply.go",
		code: "if err := c.save(ctx); err != nil {\n			c.record.Before = nil", without: "if err := error(nil); err != nil {\n			c.record.Before = nil",
	},
	{
		protects: "a task that is stopped does not leave the plugin disabled", file: "cmd/installer/apply.go",
		code: `	ctx = context.WithoutCancel(ctx)`, without: ``,
	},
	{
		protects: "the directories that an interrupted upgrade forgets are known", file: "cmd/installer/apply.go",
		code: `present = d.Record.Before.Settings`, without: ``,
	},
	{
		protects: "a plugin that an interrupted update has disabled is enabled if the registry is gone", file: "cmd/installer/apply.go",
		code: `if err != nil && (p == nil || p.Enabled) {`, without: `if err != nil {`,
	},
	{
		protects: "an unknown setting is found before the plugin is disabled", file: "cmd/installer/apply.go",
		code: `names := unknown(*config, c.target.settings); names != nil {`, without: `names := unknown(*config, c.target.settings); false {`,
	},
	{
		protects: "a target that does not work is not tried again and again", file: "cmd/installer/apply.go",
		code: `r != nil && c.record.Before == nil && r.Target == c.target.id() && r.isFresh() {`, without: `false {`,
	},
	{
		protects: "no privilege is granted that the manual does not list", file: "cmd/installer/check.go",
		code: `if !slices.Contains(granted[p.Name], value) {`, without: `if false {`,
	},
	{
		protects: "the installer does not remove a plugin whose volumes are in use", file: "cmd/installer/uninstall.go",
		code: `if err == nil && users != nil {`, without: `if false {`,
	},
	{
		protects: "the installer does not leave disks attached without a plugin", file: "cmd/installer/uninstall.go",
		code: `if err := client.Release(ctx, v.Name); err != nil {`, without: `if err := error(nil); v.Name == "" {`,
	},
	{
		protects: "a description of a later version is refused for that, and not called damaged", file: "providers/local/meta.go",
		code: `if head.Version > version {`, without: `if false {`,
	},
}
