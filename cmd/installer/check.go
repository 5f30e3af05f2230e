package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/engine"
)

// granted are the privileges that the plugin may have. docs/install.md says why it needs each.
var granted = map[string][]string{
	"network":           {"host"},
	"mount":             {"/dev", "/proc", "/var/lib/blockvol/state", "/var/lib/blockvol/volumes"},
	"allow-all-devices": {"true"},
	"capabilities":      {"CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"},
}

// privileges asks what the plugin of that reference wants. Errors: more than it may have.
func (i *installer) privileges(ctx context.Context, reference string) ([]engine.Privilege, error) {
	asked, err := i.engine.Privileges(ctx, reference, i.authFor(reference))
	if err != nil {
		return nil, fail(codeRegistry, "%s cannot be had: %w", reference, err)
	}
	for _, p := range asked {
		for _, value := range p.Value {
			if !slices.Contains(granted[p.Name], value) {
				return nil, fail(codePrivilege, "%s asks for the privilege %q of %s, which blockvol does not need: find out who has pushed it; nothing was installed", reference, value, p.Name)
			}
		}
	}
	return asked, nil
}

// The findings of doctor that mean that settings or the version are wrong for this node; the others come and go with the machine and its volumes.
var (
	ignored  = []string{"setting-ignored", "no-peers"} // warnings: the plugin goes on without these settings
	refusals = append([]string{"not-serving", "no-create", "setting-wrong", "identity-unknown", "node-unknown", "credentials-refused", "permission-missing", "journal-newer", "kernel-too-old", "tool-missing", "tool-broken"}, ignored...)
)

// starting is how long a plugin may take to be ready.
const starting = 30 * time.Second

// check waits until the plugin serves volumes, and has it examine itself if the target is new. Errors: it serves none, or finds
// that its settings are wrong.
func (c *change) check(ctx context.Context, id string) error {
	client := c.client(id)
	status, err := started(ctx, client)
	switch {
	case err != nil:
		return fmt.Errorf("%s does not answer: %w", c.target.reference, err)
	case status.State == admin.Broken:
		return fail(codeSettings, "blockvol serves no volumes: %s", status.Problem)
	case c.record.Done == c.target.id():
		return nil
	}
	report, err := client.Doctor(ctx)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", c.target.reference, err)
	}
	var wrong []string
	for _, f := range report.Findings {
		switch {
		case f.Severity == "ok":
		case slices.Contains(refusals, f.Code) && (f.Severity == "problem" || slices.Contains(ignored, f.Code)):
			wrong = append(wrong, f.Message+": "+f.Remedy)
		default:
			c.log.Printf("%s: %s: %s", f.Severity, f.Message, f.Remedy)
		}
	}
	if wrong != nil {
		return fail(codeSettings, "%s", strings.Join(wrong, "; "))
	}
	return nil
}

// started returns the status of the plugin once that is ready, or has not become so in time.
func started(ctx context.Context, client *admin.Client) (status admin.Status, err error) {
	status, err = client.Status(ctx)
	for begun := time.Now(); err == nil && status.State == admin.Starting && time.Since(begun) < starting; {
		time.Sleep(100 * time.Millisecond)
		status, err = client.Status(ctx)
	}
	return status, err
}

func (i *installer) client(id string) *admin.Client {
	return admin.NewClient(path.Join(i.sockets, id, "blockvol.sock"))
}
