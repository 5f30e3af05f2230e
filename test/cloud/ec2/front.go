// Package ec2 simulates the Amazon EC2 API for EBS volumes, snapshots, tags and instances, and the instance metadata service.
//
// It implements the query protocol, version 2016-11-15, with the rules and error messages that AWS documents. It verifies
// signatures, evaluates IAM policies, refuses unknown parameters, and its reads can be stale. Where AWS's documentation leaves
// a choice, the stricter one applies: pages can be empty without being the last, and a failed create uses up its client token.
//
// It does not simulate launching instances, other regions and accounts, quotas on volumes and snapshots, encryption,
// Multi-Attach, Outposts, managed resources, fast restore, tag policies, permission boundaries, and requests with the signature
// in the URL.
package ec2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// Config configures a front end.
type Config struct {
	Cloud   *cloud.Cloud
	Region  string
	Account string           // twelve digits; "" for a default
	Policy  []byte           // IAM policy of the instances' role as JSON, see CheckPolicy; nil allows everything
	Now     func() time.Time // clock for signatures; default Cloud.Now
}

// Front is the front end of one region for one account. Pass Limits in cloud.Config for its rate limits.
type Front struct {
	cfg    Config
	cloud  *cloud.Cloud
	policy *policy

	mu       sync.Mutex
	requests int
	tokens   map[string]*token // client tokens of CreateVolume
	keys     map[string]string // instance by access key
}

// New returns a front end. It panics if CheckPolicy refuses the policy.
func New(cfg Config) *Front {
	if cfg.Now == nil {
		cfg.Now = cfg.Cloud.Now
	}
	if cfg.Account == "" {
		cfg.Account = "123456789012"
	}
	f := &Front{cfg: cfg, cloud: cfg.Cloud, tokens: map[string]*token{}, keys: map[string]string{}}
	if cfg.Policy != nil {
		var err error
		if f.policy, err = parsePolicy(cfg.Policy); err != nil {
			panic(fmt.Sprintf("ec2: %v", err))
		}
	}
	return f
}

// Limits returns AWS's documented rate limits per action, account and region. Actions that read without filters or pages have a
// bucket of their own, named by Unfiltered, or else that of the action. See
// https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
func Limits(bucket string) cloud.Bucket {
	switch {
	case strings.HasSuffix(bucket, unfiltered):
		return cloud.Bucket{Size: 50, PerSecond: 10}
	case strings.HasPrefix(bucket, "Describe"):
		return cloud.Bucket{Size: 100, PerSecond: 20}
	default:
		return cloud.Bucket{Size: 50, PerSecond: 5}
	}
}

const unfiltered = "/unfiltered"

// Unfiltered returns the bucket of an action that reads everything at once.
func Unfiltered(action string) string { return action + unfiltered }

// request is a call of one action.
type request struct {
	*cloud.Request
	front  *Front
	action string
	params params
	caller identity
}

// action describes an action: its parameters (in lists, N is any number), the permissions it needs, and its implementation.
type action struct {
	params string
	needs  func(*request) []permission // nil: the action on "*"
	do     func(*request) (answer any, err error)
}

var actions = map[string]action{
	"DescribeVolumes":              {"Filter.N.Name Filter.N.Value.N IncludeManagedResources MaxResults NextToken VolumeId.N", nil, describeVolumes},
	"CreateVolume":                 {"AvailabilityZone ClientToken Encrypted Iops KmsKeyId MultiAttachEnabled Size SnapshotId Throughput VolumeType " + tagSpecification, needsCreateVolume, createVolume},
	"DeleteVolume":                 {"VolumeId", needs("VolumeId"), deleteVolume},
	"AttachVolume":                 {"Device EbsCardIndex InstanceId VolumeId", needs("VolumeId", "InstanceId"), attachVolume},
	"DetachVolume":                 {"Device Force InstanceId VolumeId", needs("VolumeId", "InstanceId"), detachVolume},
	"ModifyVolume":                 {"Iops MultiAttachEnabled Size Throughput VolumeId VolumeType", needs("VolumeId"), modifyVolume},
	"DescribeVolumesModifications": {"Filter.N.Name Filter.N.Value.N IncludeManagedResources MaxResults NextToken VolumeId.N", nil, describeModifications},
	"CreateTags":                   {"ResourceId.N Tag.N.Key Tag.N.Value", needsTags, createTags},
	"DeleteTags":                   {"ResourceId.N Tag.N.Key Tag.N.Value", needsTags, deleteTags},
	"DescribeInstances":            {"Filter.N.Name Filter.N.Value.N IncludeManagedResources InstanceId.N MaxResults NextToken", nil, describeInstances},
	"DescribeInstanceTypes":        {"Filter.N.Name Filter.N.Value.N IncludeUnsupportedInRegion InstanceType.N MaxResults NextToken", nil, describeInstanceTypes},
	"StopInstances":                {"Force Hibernate InstanceId.N SkipOsShutdown", needsInstances, stopInstances},
	"StartInstances":               {"AdditionalInfo InstanceId.N", needsInstances, startInstances},
	"CreateSnapshot":               {"Description VolumeId " + tagSpecification, needsCreateSnapshot, createSnapshot},
	"DeleteSnapshot":               {"SnapshotId", needs("SnapshotId"), deleteSnapshot},
	"DescribeSnapshots":            {"Filter.N.Name Filter.N.Value.N MaxResults NextToken Owner.N RestorableBy.N SnapshotId.N", nil, describeSnapshots},
}

const tagSpecification = "TagSpecification.N.ResourceType TagSpecification.N.Tag.N.Key TagSpecification.N.Tag.N.Value"

// version is the version of the protocol.
const version = "2016-11-15"

// ServeHTTP implements http.Handler. It panics with http.ErrAbortHandler to break the connection.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	var answer []byte
	fault, err := f.serve(r, body, &answer)
	id := f.requestID()
	status := http.StatusOK
	if err != nil {
		var refusal *refusal
		switch {
		case errors.As(err, &refusal):
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
			panic(http.ErrAbortHandler)
		default:
			refusal = translate(err)
		}
		status = refusal.status
		answer = refusal.encode(id)
	}
	answer = bytes.Replace(answer, []byte(requestIDHere), []byte(id), 1)

	header := w.Header()
	header.Set("Content-Type", "text/xml;charset=UTF-8")
	header.Set("X-Amzn-Requestid", id)
	header.Set("Date", f.cfg.Now().UTC().Format(http.TimeFormat))
	header.Set("Server", "AmazonEC2")
	httpsim.WriteResponse(w, status, answer, fault)
}

func (f *Front) serve(r *http.Request, body []byte, answer *[]byte) (cloud.Fault, error) {
	form, err := url.ParseQuery(string(body))
	if r.Method != http.MethodPost || err != nil {
		return "", refuse("MalformedQueryString", "The query string is malformed")
	}
	p := newParams(form)
	call := cloud.Call{Action: p.get("Action"), Caller: f.claims(r).instance}
	if strings.HasPrefix(call.Action, "Describe") && !p.narrowed() {
		call.Bucket = Unfiltered(call.Action)
	}
	return f.cloud.Do(r.Context(), call, func(state *cloud.Request) error {
		caller, err := f.authenticate(r, body)
		if err != nil {
			return err
		}
		if p.get("Version") != version {
			return refuse("InvalidParameterValue", "The version %q is not one of this service", p.get("Version"))
		}
		if call.Action == "" {
			return refuse("MissingAction", "The request is missing an action")
		}
		action, ok := actions[call.Action]
		if !ok {
			return refuse("InvalidAction", "The action %s is not valid for this web service.", call.Action)
		}
		if err := p.check(action.params); err != nil {
			return err
		}
		req := &request{state, f, call.Action, p, caller}
		if err := f.authorize(req, action.needs); err != nil {
			return err
		}
		result, err := action.do(req)
		if err != nil {
			return err
		}
		*answer, err = encode(call.Action, result)
		return err
	})
}

// requestID returns an ID that looks like AWS's and is the same in each run.
func (f *Front) requestID() string {
	f.mu.Lock()
	f.requests++
	sum := sha256.Sum256([]byte("request " + strconv.Itoa(f.requests)))
	f.mu.Unlock()
	return httpsim.UUID(sum[:16])
}

// requestIDHere is replaced by the request ID in the encoded response.
const requestIDHere = "00000000-0000-0000-0000-000000000000"

// done is the response of actions that return nothing.
type done struct {
	Return bool `xml:"return"`
}

// encode encodes a response with its request ID.
func encode(action string, result any) ([]byte, error) {
	var b bytes.Buffer
	if err := xml.NewEncoder(&b).EncodeElement(result, xml.StartElement{Name: xml.Name{Local: "r"}}); err != nil {
		return nil, err
	}
	inner := bytes.TrimSuffix(bytes.TrimPrefix(b.Bytes(), []byte("<r>")), []byte("</r>"))
	return fmt.Appendf(nil, "%s<%[2]sResponse xmlns=\"http://ec2.amazonaws.com/doc/%s/\"><requestId>%s</requestId>%s</%[2]sResponse>",
		xml.Header, action, version, requestIDHere, inner), nil
}

// stamp formats a time.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}
