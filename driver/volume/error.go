package volume

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/providers"
)

// Code is the kind of an error, for programs. An Error matches its code with errors.Is.
type Code string

func (c Code) Error() string { return string(c) }

// The kinds of errors.
const (
	NotFound    Code = "not-found"   // the cloud itself says that there is no such volume
	Unsure      Code = "unsure"      // whether the volume exists cannot be told now; never to be read as "it does not exist"
	Invalid     Code = "invalid"     // what was asked for is not accepted, and nothing was changed
	Conflict    Code = "conflict"    // the volume exists, and is not what was asked for
	Held        Code = "held"        // another node has the volume
	InUse       Code = "in-use"      // a container or a process of this node uses the volume
	Busy        Code = "busy"        // the cloud or the kernel is not done with something else
	NoSpace     Code = "no-space"    // a quota, a full pool, or no free attachment of this node
	WrongDisk   Code = "wrong-disk"  // the disk does not hold what it should, or cannot be identified
	Unavailable Code = "unavailable" // the cloud, this node's identity or its state directory cannot be reached
	Unfinished  Code = "unfinished"  // the caller's time ran out; the work goes on, and a retry joins it
	Failed      Code = "failed"      // anything else
)

// Codes are all of them.
func Codes() []Code {
	return []Code{NotFound, Unsure, Invalid, Conflict, Held, InUse, Busy, NoSpace, WrongDisk, Unavailable, Unfinished, Failed}
}

// Op is what failed, for programs.
type Op string

// The operations of a volume.
const (
	Create  Op = "create"
	Get     Op = "get"
	List    Op = "list"
	Mount   Op = "mount"
	Unmount Op = "unmount"
	Remove  Op = "remove"
	Release Op = "release"
	Modify  Op = "modify"
	Copy    Op = "snapshot"
	Restore Op = "restore"
	Hold    Op = "hold"
	Drop    Op = "drop"
)

// Error is what the driver returns: the cause first, and what the operator can do about it last.
type Error struct {
	Code   Code
	Op     Op
	Volume string // its name
	ID     string // its disk, if known
	Node   string // this node, if known
	Cause  error
	Advice string // what to do about it; empty if the cause says it
}

// Brief is the sentence without what a caller knows that has asked for this volume by name.
func (e *Error) Brief() string {
	if e.Advice == "" {
		return e.Cause.Error()
	}
	return e.Cause.Error() + "; " + e.Advice
}

// Error is the whole sentence: cause, volume and node, advice.
func (e *Error) Error() string {
	var about []string
	if e.Volume != "" {
		about = append(about, fmt.Sprintf("volume %q", e.Volume))
	}
	if e.ID != "" {
		about = append(about, e.ID)
	}
	if e.Node != "" {
		about = append(about, "node "+e.Node)
	}
	s := e.Cause.Error()
	if len(about) > 0 {
		s += " (" + strings.Join(about, ", ") + ")"
	}
	if e.Advice != "" {
		s += "; " + e.Advice
	}
	return s
}

// Is makes an Error match its code.
func (e *Error) Is(target error) bool { return e.Code != "" && target == error(e.Code) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Fail is an error of that kind whose cause is a sentence of ours.
func Fail(code Code, cause, advice string) error {
	return &Error{Code: code, Cause: errors.New(cause), Advice: advice}
}

// Advise adds to an error what the operator can do about it.
func Advise(cause error, advice string) error {
	return &Error{Code: CodeOf(cause), Cause: cause, Advice: advice}
}

// Also adds to an error's cause what it means. The advice stays last.
func Also(err error, meaning string) error {
	e := *At(err, Error{}).(*Error) //nolint:errorlint // At returns no other
	e.Cause = fmt.Errorf("%w: %s", e.Cause, meaning)
	return &e
}

// Stopping is an error whose cause is that the plugin is stopping.
func Stopping(err error) error {
	e := *At(err, Error{}).(*Error) //nolint:errorlint // At returns no other
	e.Cause, e.Advice = stopping{e.Cause}, "try again when it runs"
	if e.Code == Failed {
		e.Code = Unavailable
	}
	return &e
}

type stopping struct{ cause error }

func (stopping) Error() string   { return "the plugin is stopping" }
func (s stopping) Unwrap() error { return s.cause }

var codes = []struct {
	err  error
	code Code
}{
	{providers.ErrNotFound, NotFound},
	{providers.ErrAmbiguous, Conflict},
	{providers.ErrInvalid, Invalid},
	{providers.ErrNoSpace, NoSpace},
	{providers.ErrAttachLimit, NoSpace},
	{providers.ErrHeld, Held},
	{providers.ErrBusy, Busy},
	{providers.ErrUnavailable, Unavailable},
	{mount.ErrInvalid, Invalid},
	{mount.ErrBusy, InUse},
	{mount.ErrBlank, WrongDisk},
	{mount.ErrNotBlank, WrongDisk},
	{mount.ErrWrongFS, WrongDisk},
	{mount.ErrWrongDevice, WrongDisk},
	{mount.ErrAmbiguousDevice, WrongDisk},
	{mount.ErrForeignLayout, WrongDisk},
}

// CodeOf is the kind of any error.
func CodeOf(err error) Code {
	if e, is := errors.AsType[*Error](err); is && e.Code != "" {
		return e.Code
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return Failed
}

// At completes an error with where it has happened: the outermost Error keeps its advice, and what it says already stands.
func At(err error, at Error) error {
	if err == nil {
		return nil
	}
	e, is := err.(*Error) //nolint:errorlint // one that is wrapped is part of the cause
	if !is {
		e = &Error{Cause: err}
	}
	at.Code = cmp.Or(e.Code, CodeOf(err))
	at.Op, at.Volume, at.ID, at.Node = cmp.Or(e.Op, at.Op), cmp.Or(e.Volume, at.Volume), cmp.Or(e.ID, at.ID), cmp.Or(e.Node, at.Node)
	at.Cause, at.Advice = e.Cause, e.Advice
	return &at
}
