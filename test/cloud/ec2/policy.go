package ec2

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// policy is an IAM identity-based policy. Effect, Action, Resource (with wildcards) and the conditions below are supported;
// anything else is an error. See https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements.html
type policy struct {
	Version   string
	ID        string `json:"Id"`
	Statement oneOrMore[statement]
}

type statement struct {
	Sid       string
	Effect    string
	Action    oneOrMore[string]
	Resource  oneOrMore[string]
	Condition map[string]map[string]oneOrMore[string] // operator, key, values
}

// oneOrMore is a JSON list, or a single element.
type oneOrMore[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (l *oneOrMore[T]) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("[")) {
		return strict(b, (*[]T)(l))
	}
	*l = make([]T, 1)
	return strict(b, &(*l)[0])
}

func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// CheckPolicy returns an error if the policy is not supported.
func CheckPolicy(document []byte) error {
	_, err := parsePolicy(document)
	return err
}

func parsePolicy(document []byte) (*policy, error) {
	var p policy
	if err := strict(document, &p); err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	if p.Version != "2012-10-17" {
		return nil, fmt.Errorf("the policy's version is %q, not 2012-10-17", p.Version)
	}
	if len(p.Statement) == 0 {
		return nil, errors.New("the policy has no statement")
	}
	for _, s := range p.Statement {
		if s.Effect != "Allow" && s.Effect != "Deny" || len(s.Action) == 0 || len(s.Resource) == 0 {
			return nil, fmt.Errorf("statement %q of the policy lacks Effect, Action or Resource", s.Sid)
		}
		for operator, conditions := range s.Condition {
			if _, ok := operators[operator]; !ok {
				return nil, fmt.Errorf("condition operator %s is not simulated", operator)
			}
			for key := range conditions {
				if !knownKey(key) {
					return nil, fmt.Errorf("condition key %s is not simulated", key)
				}
			}
		}
	}
	return &p, nil
}

// The condition keys, compared without regard to case; the part after the slash is a tag's key.
var conditionKeys = []string{"aws:resourcetag/", "ec2:resourcetag/", "aws:requesttag/", "aws:tagkeys", "ec2:createaction"}

func knownKey(key string) bool {
	return slices.ContainsFunc(conditionKeys, func(known string) bool {
		key := strings.ToLower(key)
		return key == known || strings.HasSuffix(known, "/") && strings.HasPrefix(key, known)
	})
}

// permission is an action on a resource. A request can need several.
type permission struct {
	action   string // "ec2:CreateVolume"
	resource string // ARN, or "*"
	context  conditionContext
}

// conditionContext has the values of condition keys.
type conditionContext struct {
	resourceTags map[string]string // nil if the resource does not exist yet
	requestTags  map[string]string
	createAction string
}

// values returns the values of a condition key.
func (c conditionContext) values(key string) []string {
	lower := strings.ToLower(key)
	_, name, _ := strings.Cut(key, "/")
	tag := func(tags map[string]string) []string {
		if value, ok := tags[name]; ok {
			return []string{value}
		}
		return nil
	}
	switch {
	case strings.HasPrefix(lower, "aws:resourcetag/"), strings.HasPrefix(lower, "ec2:resourcetag/"):
		return tag(c.resourceTags)
	case strings.HasPrefix(lower, "aws:requesttag/"):
		return tag(c.requestTags)
	case lower == "aws:tagkeys":
		return slices.Sorted(maps.Keys(c.requestTags))
	case lower == "ec2:createaction" && c.createAction != "":
		return []string{c.createAction}
	default:
		return nil
	}
}

// operators compare the values of a request with those of the policy.
var operators = map[string]func(has, wants []string) bool{
	"StringEquals":              func(has, wants []string) bool { return any2(has, wants, equal) },
	"StringNotEquals":           func(has, wants []string) bool { return !any2(has, wants, equal) },
	"StringLike":                func(has, wants []string) bool { return any2(has, wants, likeIAM) },
	"StringNotLike":             func(has, wants []string) bool { return !any2(has, wants, likeIAM) },
	"StringEqualsIfExists":      func(has, wants []string) bool { return len(has) == 0 || any2(has, wants, equal) },
	"StringLikeIfExists":        func(has, wants []string) bool { return len(has) == 0 || any2(has, wants, likeIAM) },
	"ForAnyValue:StringEquals":  func(has, wants []string) bool { return any2(has, wants, equal) },
	"ForAnyValue:StringLike":    func(has, wants []string) bool { return any2(has, wants, likeIAM) },
	"ForAllValues:StringEquals": func(has, wants []string) bool { return all2(has, wants, equal) },
	"ForAllValues:StringLike":   func(has, wants []string) bool { return all2(has, wants, likeIAM) },
	"Null": func(has, wants []string) bool {
		return slices.ContainsFunc(wants, func(want string) bool { return (want == "true") == (len(has) == 0) })
	},
}

func equal(want, has string) bool { return want == has }

func likeIAM(want, has string) bool { return like(want, has, 0) }

// any2 reports whether any value matches a wanted one. Without values it is false.
func any2(has, wants []string, match func(want, has string) bool) bool {
	return slices.ContainsFunc(has, func(h string) bool {
		return slices.ContainsFunc(wants, func(want string) bool { return match(want, h) })
	})
}

// all2 reports whether all values match wanted ones. Without values it is true.
func all2(has, wants []string, match func(want, has string) bool) bool {
	return !slices.ContainsFunc(has, func(h string) bool { return !any2([]string{h}, wants, match) })
}

func (s statement) applies(need permission) bool {
	if !slices.ContainsFunc(s.Action, func(a string) bool { return like(strings.ToLower(a), strings.ToLower(need.action), 0) }) ||
		!slices.ContainsFunc(s.Resource, func(r string) bool { return like(r, need.resource, 0) }) {
		return false
	}
	for operator, conditions := range s.Condition {
		for key, wants := range conditions {
			if !operators[operator](need.context.values(key), wants) {
				return false
			}
		}
	}
	return true
}

// allows reports whether the policy allows an action, and if not, why.
func (p *policy) allows(need permission) (ok bool, why string) {
	allowed := false
	for _, s := range p.Statement {
		if s.applies(need) {
			if s.Effect == "Deny" {
				return false, "with an explicit deny in an identity-based policy"
			}
			allowed = true
		}
	}
	return allowed, "because no identity-based policy allows the " + need.action + " action"
}

// authorize refuses a request that the policy does not allow, and then one that is a dry run.
func (f *Front) authorize(r *request, needs func(*request) []permission) error {
	if f.policy != nil && r.caller.instance != "" {
		all := []permission{{action: "ec2:" + r.action, resource: "*"}}
		if needs != nil {
			all = needs(r)
		}
		for _, need := range all {
			if ok, why := f.policy.allows(need); !ok {
				return unauthorized(r.caller, need, why)
			}
		}
	}
	dry, err := r.params.truth("DryRun")
	if err == nil && dry {
		err = refuse("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
	}
	return err
}

// unauthorized returns AWS's error, with an encoded message.
func unauthorized(who identity, need permission, why string) error {
	sum := sha256.Sum256([]byte(who.arn + need.action + need.resource))
	resource := ""
	if need.resource != "*" {
		resource = " on resource: " + need.resource
	}
	return refuse("UnauthorizedOperation", "You are not authorized to perform this operation. User: %s is not authorized to perform: %s%s %s. Encoded authorization failure message: %s",
		who.arn, need.action, resource, why, base64.RawURLEncoding.EncodeToString(sum[:]))
}

// needs is for actions on existing objects named by parameters. Absent parameters are skipped.
func needs(names ...string) func(*request) []permission {
	return func(r *request) (all []permission) {
		for _, name := range names {
			if id := r.params.get(name); id != "" {
				all = append(all, r.on(id))
			}
		}
		return all
	}
}

// on returns the permission for this action on an object.
func (r *request) on(id string) permission {
	kind := "volume"
	switch prefix, _, _ := strings.Cut(id, "-"); prefix {
	case "i":
		kind = "instance"
	case "snap":
		kind = "snapshot"
	}
	return permission{"ec2:" + r.action, r.front.arnOf(kind, id), conditionContext{resourceTags: r.Tags(id)}}
}

// making returns the permissions to create an object and to tag it.
func (r *request) making(kind string) []permission {
	tags := map[string]string{}
	for _, i := range r.params.numbers("TagSpecification") {
		for _, t := range r.params.tags("TagSpecification." + integer(i)[0] + ".Tag") {
			tags[t.key] = t.value
		}
	}
	arn := r.front.arnOf(kind, "*")
	all := []permission{{"ec2:" + r.action, arn, conditionContext{requestTags: tags}}}
	if len(tags) > 0 {
		all = append(all, permission{"ec2:CreateTags", arn, conditionContext{requestTags: tags, createAction: r.action}})
	}
	return all
}

func needsCreateVolume(r *request) []permission {
	all := r.making("volume")
	if id := r.params.get("SnapshotId"); id != "" {
		all = append(all, r.on(id))
	}
	return all
}

func needsCreateSnapshot(r *request) []permission {
	return append(r.making("snapshot"), r.on(r.params.get("VolumeId")))
}

func needsTags(r *request) (all []permission) {
	tags := map[string]string{}
	for _, t := range r.params.tags("Tag") {
		tags[t.key] = t.value
	}
	for _, id := range r.params.list("ResourceId") {
		need := r.on(id)
		need.context.requestTags = tags
		all = append(all, need)
	}
	return all
}
