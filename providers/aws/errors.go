package aws

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// What EC2 may answer that means something to this package only.
var (
	errInUse         = managed.ErrAttached
	errWrongState    = errors.New("volume is not in a state for this")
	errNotAttached   = errors.New("volume is not attached there")
	errDeviceTaken   = errors.New("device name is taken")
	errTokenMismatch = errors.New("this ClientToken was used for something else")
	errModifying     = errors.New("an earlier change of the volume is not finished")
	errDenied        = errors.New("the policy does not allow it")
	errNoInstance    = errors.New("EC2 does not know the instance")
	errModifiedNow   = errors.New("the volume was changed within the last hours")
)

var permission = regexp.MustCompile(`not authorized to perform: ([a-z0-9-]{1,20}:[A-Za-z]{1,60})\b`)

// deniedError is errDenied as a sentence.
type deniedError struct{ text string }

func (e *deniedError) Error() string        { return e.text }
func (e *deniedError) Is(target error) bool { return target == errDenied }

// credentialsError says that there are no credentials to sign a request with.
type credentialsError struct{ cause error }

func (e *credentialsError) Error() string { return e.cause.Error() }
func (e *credentialsError) Unwrap() error { return e.cause }

// explain turns what EC2 or the way to it answered into the contract's errors and a sentence for the operator.
func (s *session) explain(ctx context.Context, action string, err error) error {
	var none *credentialsError
	if errors.As(err, &none) {
		return fmt.Errorf("there are no AWS credentials (%w): give this instance a role that may use EBS volumes, or set %s and %s or their %s variants",
			s.brief(ctx, none.cause), keyIDSetting, secretSetting, providers.FileSuffix)
	}
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() == "" || api.ErrorCode() == "UnknownError" {
		return s.unanswered(ctx, action, err)
	}
	code, shown := codeOf(err), s.clean(ctx, codeOf(err))
	said := fmt.Sprintf("EC2 refuses %s: %s (%s)", action, s.clean(ctx, api.ErrorMessage()), shown)
	as := func(sentinel error, advice string) error { return fmt.Errorf("%w: %s%s", sentinel, said, advice) }
	switch code {
	case "AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch", "MissingAuthenticationToken", "IncompleteSignature":
		return errors.New(said + ": check that the keys are right and active, in " + keyIDSetting + " or this instance's role, and that this node's clock is right")
	case "RequestExpired", "ExpiredToken", "ExpiredTokenException":
		return errors.New(said + ": this node's clock is wrong, or the session token has expired")
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException":
		// The message ends in a long code that only sts:DecodeAuthorizationMessage can read.
		lacks := "ec2:" + action // or what it takes besides, as CreateVolume takes CreateTags
		if said := permission.FindStringSubmatch(api.ErrorMessage()); said != nil {
			lacks = said[1]
		}
		return &deniedError{fmt.Sprintf("the IAM policy of this node does not allow %s, without which %s is refused (%s): docs/aws.md has the policy that blockvol needs", lacks, action, shown)}
	case "InvalidVolume.NotFound":
		return as(providers.ErrNotFound, "")
	case "VolumeInUse":
		return as(errInUse, "")
	case "IncorrectState":
		return as(errWrongState, "")
	case "InvalidAttachment.NotFound":
		return as(errNotAttached, "")
	case "InvalidInstanceID.NotFound":
		return fmt.Errorf("%w: %s: %w", providers.ErrBusy, said, errNoInstance)
	case "IncorrectInstanceState", "IncorrectInstanceID":
		return as(providers.ErrBusy, ": the instance does not run, or has just been started")
	case "IdempotentParameterMismatch":
		return as(errTokenMismatch, "")
	case "IncorrectModificationState":
		return as(errModifying, "")
	case "VolumeModificationRateExceeded":
		return as(errModifiedNow, "")
	case "ConcurrentTagAccess", "InternalError", "InternalFailure", "ServerInternal", "Unavailable", "ServiceUnavailable":
		return as(providers.ErrBusy, "")
	case "InsufficientVolumeCapacity":
		return as(providers.ErrBusy, ": try again later, or choose another type or zone with -o type=… or -o zone=…")
	case "ConcurrentSnapshotLimitExceeded", "PendingSnapshotLimitExceeded", "SnapshotCreationPerVolumeRateExceeded":
		return as(providers.ErrBusy, ": wait until the snapshots under way are complete")
	case "AttachmentLimitExceeded":
		return as(providers.ErrAttachLimit, ": run the service on another node, or take an instance type that holds more")
	case "VolumeLimitExceeded", "MaxIOPSLimitExceeded", "VolumeSizeLimitExceeded", "SnapshotLimitExceeded", "TagLimitExceeded", "ResourceLimitExceeded":
		return as(providers.ErrNoSpace, ": remove what is not needed, or ask AWS for a higher quota")
	case "VolumeModificationSizeLimitExceeded":
		return as(providers.ErrNoSpace, ": wait until other volumes' changes are complete, or ask AWS for a higher quota")
	case "InvalidVolume.ZoneMismatch":
		return as(providers.ErrInvalid, ": run the service in the volume's zone, or copy the volume to this one by a snapshot")
	case "UnknownVolumeType", "UnknownVolumeType.Unsupported", "VolumeTypeNotAvailableInZone":
		return as(providers.ErrInvalid, ": choose a type that this zone has with -o type=…, or another zone with -o zone=…")
	case "VolumeIOPSLimit":
		return as(providers.ErrInvalid, ": ask for fewer with -o iops=…, or choose a type that has more with -o type=…")
	case "EncryptedVolumesNotSupported":
		return as(providers.ErrInvalid, ": run the service on an instance type that supports EBS encryption")
	case "TagPolicyViolation":
		return as(providers.ErrInvalid, ": the organization's tag policy must allow the tags given with -o tags=… and those that begin with blockvol:")
	case "CustomerKeyHasBeenRevoked":
		return as(providers.ErrInvalid, keyAdvice)
	case "OptInRequired", "PendingVerification", "Blocked":
		return errors.New(said + ": the AWS account is not active: its owner must complete the registration, or ask AWS Support")
	case "InvalidZone.NotFound", "InvalidSnapshot.NotFound":
		return as(providers.ErrInvalid, "")
	}
	switch {
	case strings.HasPrefix(code, "InvalidParameterValue") && strings.Contains(api.ErrorMessage(), "already in use"):
		return as(errDeviceTaken, "")
	case strings.Contains(strings.ToLower(code), "kms"):
		return as(providers.ErrInvalid, keyAdvice)
	case strings.HasPrefix(code, "Invalid"), strings.HasPrefix(code, "MissingParameter"), strings.HasPrefix(code, "UnknownParameter"), strings.HasPrefix(code, "Unsupported"):
		return as(providers.ErrInvalid, "")
	}
	return errors.New(said)
}

const keyAdvice = ": check that the KMS key exists, is enabled, and may be used by this node's role"

// unanswered explains that no answer came, or none that can be read.
func (s *session) unanswered(ctx context.Context, action string, err error) error {
	var bad *smithy.DeserializationError
	var answered interface{ HTTPStatusCode() int }
	if errors.As(err, &bad) || errors.As(err, &answered) && answered.HTTPStatusCode() != 0 {
		return fmt.Errorf("%w: the answer to %s is not EC2's, or is cut short (%w): check AWS_ENDPOINT_URL_EC2, and any proxy on the way", providers.ErrUnavailable, action, s.brief(ctx, err))
	}
	return fmt.Errorf("%w: EC2 in region %s does not answer %s (%w): check the network, AWS_ENDPOINT_URL_EC2 and any proxy on the way", providers.ErrUnavailable, s.region, action, s.brief(ctx, err))
}

// brief is the innermost cause of an error of the SDK, in a few clean words. It still matches what it was.
func (s *session) brief(ctx context.Context, err error) error {
	return sanitize.Error(s.clean(ctx, sanitize.Cause(err)), err)
}

// brief is session.brief before there are credentials that could show.
func brief(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil {
		return sanitize.Error(sanitize.Clip(why.Error()), err)
	}
	return sanitize.Error(sanitize.Clip(sanitize.Cause(err)), err)
}

// signed are the parts of a request by which it proves who sent it.
var signed = regexp.MustCompile(`(?i)(Credential|Signature|X-Amz-[A-Z-]*Token)(\s|%20)*(=|:|%3D|%3A)(\s|\+|%20)*[^\s,;&<>"]+|[0-9a-f]{64}`)

// clean makes a text from outside fit for logs.
func (s *session) clean(ctx context.Context, text string) string {
	keys, err := s.credentials.Retrieve(ctx)
	if err != nil {
		keys = sdk.Credentials{}
	}
	return sanitize.Clean(text, signed, keys.SecretAccessKey, keys.SessionToken, keys.AccessKeyID)
}
