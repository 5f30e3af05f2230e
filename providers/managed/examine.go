package managed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/blockvol/blockvol/providers"
)

// clockTolerance is how far this node's clock may be from the cloud's: a request takes seconds at most.
const clockTolerance = 30 * time.Second

// Examine implements providers.Examiner. It stops at the first check that fails, since those after it would fail for the same reason.
func (p *Provider[V]) Examine(ctx context.Context) []providers.Finding {
	var findings []providers.Finding
	for _, check := range []func(context.Context) []providers.Finding{p.examineIdentity, p.examineReads, p.examinePermissions, p.examineSnapshots, p.examineQuotas} {
		found := check(ctx)
		findings = append(findings, found...)
		if len(found) > 0 && found[len(found)-1].Severity != providers.OK {
			break
		}
	}
	return append(findings, p.examineClock()...) // by the answers to the requests before
}

// examineIdentity checks which node this is, and whether the credentials show it.
func (p *Provider[V]) examineIdentity(ctx context.Context) []providers.Finding {
	c := &p.cloud
	self, err := c.Self(ctx)
	if err != nil {
		f := p.judge("identity", err)
		if f.Code == "cloud-unreachable" || f.Code == "cloud-slow" {
			f.Code, f.Remedy = "identity-unknown", "make the metadata service reachable from this node, without a proxy; "+c.Manual+" has the setting that names the node instead"
		}
		return []providers.Finding{f}
	}
	_, err = c.Status(ctx, self.ID)
	if errors.Is(err, providers.ErrNotFound) {
		return []providers.Finding{{
			Severity: providers.Problem, Check: "identity", Code: "node-unknown",
			Message: fmt.Sprintf("%s shows these credentials no %s %s, which this node is: they are of another account, project or region, or may not see it", c.Name, c.Machine, self.ID),
			Remedy:  "use credentials of the account, project and region that this node is in; see " + c.Manual,
		}}
	}
	if err != nil {
		return []providers.Finding{p.judge("credentials", err)}
	}
	where := fmt.Sprintf("this node is %s %s of %s", c.Machine, self.ID, c.Name)
	if self.Zone != "" {
		where += ", in " + self.Zone
	}
	return []providers.Finding{providers.Passed("identity", where)}
}

// examineReads checks whether the credentials show the cluster's volumes.
func (p *Provider[V]) examineReads(ctx context.Context) []providers.Finding {
	all, err := p.cloud.All(ctx)
	if err != nil {
		return []providers.Finding{p.judge("credentials", err)}
	}
	ours := 0
	for _, v := range all {
		if p.IsOurs(p.cloud.Show(v)) {
			ours++
		}
	}
	return []providers.Finding{providers.Passed("credentials", fmt.Sprintf("%s accepts the credentials, and shows them the volumes of cluster %s, %d in all", p.cloud.Name, p.cloud.Cluster, ours))}
}

// examinePermissions checks what else blockvol may do, where the cloud lets that be tried without a change.
func (p *Provider[V]) examinePermissions(ctx context.Context) (findings []providers.Finding) {
	if p.cloud.Permissions == nil {
		return []providers.Finding{providers.Passed("permissions", p.cloud.Name+" lets the credentials read; whether they may write cannot be tried without a change")}
	}
	tried, problems := p.cloud.Permissions(ctx)
	for _, err := range problems {
		findings = append(findings, p.judge("permissions", err))
	}
	if len(problems) == 0 {
		findings = append(findings, providers.Passed("permissions", tried))
	}
	return findings
}

// examineSnapshots checks whether the credentials show the cluster's snapshots, where the cloud has any. Volumes are served without.
func (p *Provider[V]) examineSnapshots(ctx context.Context) []providers.Finding {
	if p.countSnapshots == nil {
		return nil
	}
	n, err := p.countSnapshots(ctx)
	if err == nil {
		return []providers.Finding{providers.Passed("snapshots", fmt.Sprintf("%s shows the credentials the snapshots of cluster %s, %d in all", p.cloud.Name, p.cloud.Cluster, n))}
	}
	f := p.judge("snapshots", err)
	if errors.Is(err, providers.ErrDenied) {
		f.Severity = providers.Warning
	}
	return []providers.Finding{f}
}

// Quota is a limit of the account on something that blockvol makes.
type Quota struct {
	What       string // "volumes"
	Used, Most int64  // Most below 0: there is no limit
}

// quotaLow is the part of a quota that is used when that is reported, in percent.
const quotaLow = 90

// examineQuotas checks whether the account's quotas leave room.
func (p *Provider[V]) examineQuotas(ctx context.Context) (findings []providers.Finding) {
	if p.cloud.Quotas == nil {
		return nil
	}
	quotas, err := p.cloud.Quotas(ctx)
	switch {
	case errors.Is(err, providers.ErrDenied): // blockvol itself never asks for them
		return []providers.Finding{providers.Passed("quota", "the credentials may not see the quotas of the account at "+p.cloud.Name+", and need not")}
	case err != nil:
		return []providers.Finding{p.judge("quota", err)}
	}
	var room []string
	for _, q := range quotas {
		used := fmt.Sprintf("%d of %d %s", q.Used, q.Most, q.What)
		f := providers.Finding{Severity: providers.Warning, Check: "quota", Remedy: "remove what is not needed, or have the quota raised"}
		switch {
		case q.Most < 0:
			room = append(room, fmt.Sprintf("%d %s without a limit", q.Used, q.What))
		case q.Used >= q.Most:
			f.Code, f.Message = "quota-reached", "the quota of the account is used up, so no more can be made: "+used
			findings = append(findings, f)
		case q.Used*100 >= q.Most*quotaLow:
			f.Code, f.Message = "quota-low", "the quota of the account is nearly used up: "+used
			findings = append(findings, f)
		default:
			room = append(room, used)
		}
	}
	if len(findings) == 0 && len(room) > 0 {
		findings = append(findings, providers.Passed("quota", "of the quotas of the account are used: "+strings.Join(room, ", ")))
	}
	return findings
}

func (p *Provider[V]) examineClock() []providers.Finding {
	if p.cloud.Clock == nil {
		return nil
	}
	ahead, known := p.cloud.Clock()
	switch {
	case !known:
		return nil
	case ahead.Abs() <= clockTolerance:
		return []providers.Finding{providers.Passed("clock", "this node's clock agrees with the clock of "+p.cloud.Name)}
	}
	direction := "behind"
	if ahead < 0 {
		direction = "ahead of"
	}
	return []providers.Finding{{
		Severity: providers.Warning, Check: "clock", Code: "clock-wrong",
		Message: fmt.Sprintf("this node's clock is %s %s the clock of %s", ahead.Abs().Round(time.Second), direction, p.cloud.Name),
		Remedy:  "have a time service such as chrony or systemd-timesyncd set the clock",
	}}
}

func (p *Provider[V]) judge(check string, err error) providers.Finding {
	return providers.Judge(check, p.cloud.Name, p.cloud.Manual, err)
}
