package providers

import (
	"context"
	"errors"
)

// Examiner is a Provider that can check its own settings, credentials and cloud.
type Examiner interface {
	// Examine checks what every call relies on: the identity of this node, the credentials, the permissions, the clock. It changes
	// nothing: its requests read, or are dry runs. It returns what it has found when ctx ends.
	Examine(ctx context.Context) []Finding
}

// Finding is the result of one check.
type Finding struct {
	Severity Severity
	Check    string // what was checked, for programs: one lower-case word
	Code     string // what was found, for programs: lower-case words joined by dashes; empty if Severity is OK
	Volume   string // the name of the volume that it is about; may be empty
	Message  string // a sentence for the operator, the cause first
	Remedy   string // what to do; empty if Severity is OK
}

// Severity is how bad a finding is.
type Severity string

// The severities.
const (
	OK      Severity = "ok"
	Warning Severity = "warning" // volumes are served, but not as they should be, or not for long
	Problem Severity = "problem" // some call fails, or data is at risk
)

// Passed is the finding of a check that has found nothing wrong.
func Passed(check, message string) Finding {
	return Finding{Severity: OK, Check: check, Message: message}
}

// Judge is the finding for a call to the cloud that has failed with err. manual is the page that lists the permissions.
func Judge(check, cloud, manual string, err error) Finding {
	f := Finding{Severity: Problem, Check: check, Message: err.Error()}
	switch {
	case errors.Is(err, ErrCredentials):
		f.Code, f.Remedy = "credentials-refused", "correct the credentials in blockvol's settings, or in the file that a setting names"
	case errors.Is(err, ErrDenied):
		f.Code, f.Remedy = "permission-missing", "grant the permission: "+manual+" lists all that blockvol needs"
	case errors.Is(err, ErrBusy):
		f.Severity, f.Code, f.Remedy = Warning, "cloud-busy", "try again in a minute; if it stays so, find out what else uses the account's rate limit"
	case errors.Is(err, ErrUnavailable):
		f.Code, f.Remedy = "cloud-unreachable", "make "+cloud+" reachable from this node: check the network, name resolution, HTTPS_PROXY and NO_PROXY, and the cloud's status page"
	case errors.Is(err, ErrInvalid):
		f.Code, f.Remedy = "setting-wrong", "correct the setting and restart blockvol"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		f.Code, f.Remedy = "cloud-slow", "try again; if it stays so, check the network and the cloud's status page"
		f.Message = cloud + " has not answered in time: " + f.Message
	default:
		f.Code, f.Remedy = "cloud-error", "follow what the message says; "+manual+" has blockvol's requirements"
	}
	return f
}
