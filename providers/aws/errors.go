package aws

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// Refusals of EC2 that only this package handles.
var (
	errWrongState    = errors.New("volume is not in a state for this")
	errNotAttached   = errors.New("volume is not attached there")
	errDeviceTaken   = errors.New("device name is taken")
	errTokenMismatch = errors.New("this ClientToken was used with other options")
	errModifying     = errors.New("an earlier change of the volume is not finished")
	errDenied        = errors.New("the policy does not allow it")
	errNoInstance    = errors.New("EC2 does not know the instance")
	errModifiedNow   = errors.New("the volume was changed within the last hours")
	errNeverStops    = fmt.Errorf("%w: the instance cannot be stopped", providers.ErrInvalid)
	errDryRun        = errors.New("EC2 would have done it")
)

var permission = regexp.MustCompile(`not authorized to perform: ([a-z0-9-]{1,20}:[A-Za-z]{1,60})\b`)

// deniedError is errDenied with a sentence for the operator.
type deniedError struct{ text, lacks string }

func (e *deniedError) Error() string { return e.text }
func (e *deniedError) Is(target error) bool {
	return target == errDenied || target == providers.ErrDenied
}

// credentialsError means that there are no credentials to sign a request with.
type credentialsError struct{ cause error }

func (e *credentialsError) Error() string { return e.cause.Error() }
func (e *credentialsError) Unwrap() error { return e.cause }

// explain translates an error of the SDK into one of the contract, with a sentence for the operator.
func (s *session) explain(ctx context.Context, action string, err error) error {
	var none *credentialsError
	if errors.As(err, &none) {
		text := fmt.Sprintf("there are no AWS credentials (%v): give this instance a role that may use EBS volumes, or set %s and %s or their %s variants",
			s.brief(ctx, none.cause), keyIDSetting, secretSetting, providers.FileSuffix)
		return sanitize.Error(text, errors.Join(providers.ErrCredentials, none.cause))
	}
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() == "" || api.ErrorCode() == "UnknownError" {
		return s.noAnswer(ctx, action, err)
	}
	code, shown := codeOf(err), s.clean(ctx, codeOf(err))
	said := fmt.Sprintf("EC2 refuses %s: %s (%s)", action, s.clean(ctx, api.ErrorMessage()), shown)
	switch code {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException":
		// The message ends with a long code for sts:DecodeAuthorizationMessage.
		lacks := "ec2:" + action // or another action that it includes, as CreateVolume includes CreateTags
		if said := permission.FindStringSubmatch(api.ErrorMessage()); said != nil {
			lacks = said[1]
		}
		return &deniedError{lacks: lacks, text: fmt.Sprintf("the IAM policy of this node does not allow %s, so %s is refused (%s): docs/aws.md has the policy that blockvol needs", lacks, action, shown)}
	case "OperationNotPermitted", "UnsupportedOperation":
		if action == "StopInstances" {
			return refuse(errNeverStops, said+": EC2 stops no instance with stop protection, of a one-time Spot request, or with an instance store as its root disk")
		}
	case "InvalidInstanceID.NotFound":
		return fmt.Errorf("%w: %s: %w", providers.ErrBusy, said, errNoInstance)
	}
	for _, r := range refusals {
		if slices.Contains(strings.Fields(r.codes), code) {
			return refuse(r.err, said+r.advice)
		}
	}
	switch {
	case strings.HasPrefix(code, "InvalidParameterValue") && strings.Contains(api.ErrorMessage(), "already in use"):
		return refuse(errDeviceTaken, said)
	case strings.Contains(strings.ToLower(code), "kms"):
		return refuse(providers.ErrInvalid, said+keyAdvice)
	case strings.HasPrefix(code, "Invalid"), strings.HasPrefix(code, "MissingParameter"), strings.HasPrefix(code, "UnknownParameter"), strings.HasPrefix(code, "Unsupported"):
		return refuse(providers.ErrInvalid, said)
	}
	return errors.New(said)
}

func refuse(sentinel error, said string) error {
	switch {
	case sentinel == nil:
		return errors.New(said)
	case errors.Is(sentinel, providers.ErrCredentials): // which the driver does not handle: what EC2 says is enough
		return sanitize.Error(said, sentinel)
	}
	return fmt.Errorf("%w: %s", sentinel, said)
}

// refusals translates EC2's error codes.
var refusals = []struct {
	codes  string // separated by spaces
	err    error  // nil: none that the driver handles
	advice string
}{
	{"AuthFailure InvalidClientTokenId UnrecognizedClientException SignatureDoesNotMatch MissingAuthenticationToken IncompleteSignature", providers.ErrCredentials, ": check that the keys are right and active, in " + keyIDSetting + " or this instance's role, and that this node's clock is right"},
	{"RequestExpired ExpiredToken ExpiredTokenException", providers.ErrCredentials, ": this node's clock is wrong, or the session token has expired"},
	{"OptInRequired PendingVerification Blocked", nil, ": the AWS account is not active: its owner must complete the registration, or ask AWS Support"},

	{"DryRunOperation", errDryRun, ""},
	{"InvalidVolume.NotFound", providers.ErrNotFound, ""},
	{"VolumeInUse", managed.ErrAttached, ""},
	{"IncorrectState", errWrongState, ""},
	{"InvalidAttachment.NotFound", errNotAttached, ""},
	{"IdempotentParameterMismatch", errTokenMismatch, ""},
	{"IncorrectModificationState", errModifying, ""},
	{"VolumeModificationRateExceeded", errModifiedNow, ""},

	{"ConcurrentTagAccess InternalError InternalFailure ServerInternal Unavailable ServiceUnavailable", providers.ErrBusy, ""},
	{"IncorrectInstanceState IncorrectInstanceID", providers.ErrBusy, ": the instance is not running, or has just been started"},
	{"InsufficientVolumeCapacity", providers.ErrBusy, ": try again later, or choose another type or zone with -o type=… or -o zone=…"},
	{"ConcurrentSnapshotLimitExceeded PendingSnapshotLimitExceeded SnapshotCreationPerVolumeRateExceeded", providers.ErrBusy, ": wait until other snapshots are complete"},

	{"AttachmentLimitExceeded", providers.ErrAttachLimit, ": run the service on another node, or use an instance type that holds more"},
	{"VolumeLimitExceeded MaxIOPSLimitExceeded VolumeSizeLimitExceeded SnapshotLimitExceeded TagLimitExceeded ResourceLimitExceeded", providers.ErrNoSpace, ": remove what is not needed, or ask AWS for a higher quota"},
	{"VolumeModificationSizeLimitExceeded", providers.ErrNoSpace, ": wait until other volumes' changes are complete, or ask AWS for a higher quota"},

	{"InvalidVolume.ZoneMismatch", providers.ErrInvalid, ": run the service in the volume's zone, or copy the volume to this one by a snapshot"},
	{"UnknownVolumeType UnknownVolumeType.Unsupported VolumeTypeNotAvailableInZone", providers.ErrInvalid, ": choose a type that this zone has with -o type=…, or another zone with -o zone=…"},
	{"VolumeIOPSLimit", providers.ErrInvalid, ": ask for fewer with -o iops=…, or choose a type that has more with -o type=…"},
	{"EncryptedVolumesNotSupported", providers.ErrInvalid, ": run the service on an instance type that supports EBS encryption"},
	{"TagPolicyViolation", providers.ErrInvalid, ": the organization's tag policy must allow the tags given with -o tags=… and those that begin with blockvol:"},
	{"CustomerKeyHasBeenRevoked", providers.ErrInvalid, keyAdvice},
}

const keyAdvice = ": check that the KMS key exists, is enabled, and may be used by this node's role"

// noAnswer is explain for a request without an answer, or without one of EC2.
func (s *session) noAnswer(ctx context.Context, action string, err error) error {
	var bad *smithy.DeserializationError
	var answered interface{ HTTPStatusCode() int }
	if errors.As(err, &bad) || errors.As(err, &answered) && answered.HTTPStatusCode() != 0 {
		return fmt.Errorf("%w: the answer to %s is not EC2's, or is cut short (%w): check AWS_ENDPOINT_URL_EC2, and any proxy on the way", providers.ErrUnavailable, action, s.brief(ctx, err))
	}
	return fmt.Errorf("%w: EC2 in region %s does not answer %s (%w): check the network, AWS_ENDPOINT_URL_EC2 and any proxy on the way", providers.ErrUnavailable, s.region, action, s.brief(ctx, err))
}

// brief returns the innermost cause of an SDK error, without secrets. It matches what err matches.
func (s *session) brief(ctx context.Context, err error) error {
	return sanitize.Error(s.clean(ctx, sanitize.Cause(err)), err)
}

// brief is session.brief before there are credentials.
func brief(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil {
		return sanitize.Error(sanitize.Clip(why.Error()), err)
	}
	return sanitize.Error(sanitize.Clip(sanitize.Cause(err)), err)
}

// signed matches the parts of a request that prove who sent it.
var signed = regexp.MustCompile(`(?i)(Credential|Signature|X-Amz-[A-Z-]*Token)(\s|%20)*(=|:|%3D|%3A)(\s|\+|%20)*[^\s,;&<>"]+|[0-9a-f]{64}`)

// clean makes EC2's text fit for logs: one line, without secrets.
func (s *session) clean(ctx context.Context, text string) string {
	keys, err := s.credentials.Retrieve(ctx)
	if err != nil {
		keys = sdk.Credentials{}
	}
	return sanitize.Clean(text, signed, keys.SecretAccessKey, keys.SessionToken, keys.AccessKeyID)
}
