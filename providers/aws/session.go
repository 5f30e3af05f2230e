package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/blockvol/blockvol/providers"
)

// session is what is found out once: which instance this is, and how EC2 is spoken to.
type session struct {
	instance, kind, zone, region string

	api         *ec2.Client
	credentials sdk.CredentialsProvider
}

// session returns the one session, and begins it if there is none.
func (p *Provider) session(ctx context.Context) (*session, error) {
	if s := p.begun(); s != nil {
		return s, ctx.Err()
	}
	select {
	case p.connecting <- struct{}{}:
		defer func() { <-p.connecting }()
	case <-ctx.Done():
		return nil, fmt.Errorf("the instance's metadata is still waited for: %w", ctx.Err())
	}
	if s := p.begun(); s != nil {
		return s, nil
	}
	s, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.connected = s
	return s, nil
}

func (p *Provider) begun() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connected
}

func (p *Provider) begin(ctx context.Context) (*session, error) {
	loading := []func(*config.LoadOptions) error{
		// Retries are this package's own: see call.
		config.WithRetryer(func() sdk.Retryer { return sdk.NopRetryer{} }),
		config.WithEC2IMDSEndpoint(p.cfg.Metadata),
	}
	if p.cfg.HTTPClient != nil {
		loading = append(loading, config.WithHTTPClient(p.cfg.HTTPClient))
	}
	if p.cfg.Credentials != nil {
		loading = append(loading, config.WithCredentialsProvider(p.cfg.Credentials))
	}
	cfg, err := config.LoadDefaultConfig(ctx, loading...)
	var metadata *imds.Client
	if err == nil {
		metadata = metadataService(cfg)
		// Once more, for a chain of credentials that asks the same way.
		cfg, err = config.LoadDefaultConfig(ctx, append(loading, config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = metadata }))...)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the settings of AWS cannot be used: %w", providers.ErrInvalid, err)
	}
	doc, err := identity(ctx, metadata)
	if err != nil {
		return nil, err
	}
	region := cmp.Or(p.cfg.Region, doc.Region)
	if region != doc.Region {
		return nil, fmt.Errorf("%w: AWS_REGION is %s, but this instance %s runs in %s, and a disk can be attached in its own region only: set AWS_REGION=%s or leave it out",
			providers.ErrInvalid, region, doc.InstanceID, doc.Region, doc.Region)
	}
	cfg.Region = region
	return &session{
		instance: doc.InstanceID, kind: doc.InstanceType, zone: doc.AvailabilityZone, region: region,
		credentials: cfg.Credentials,
		api: ec2.NewFromConfig(cfg, func(o *ec2.Options) {
			if p.cfg.Endpoint != "" {
				o.BaseEndpoint = &p.cfg.Endpoint
			}
		}),
	}, nil
}

// metadataService speaks with a token (IMDSv2) always: version 1 may be off.
func metadataService(cfg sdk.Config) *imds.Client {
	return imds.NewFromConfig(cfg, func(o *imds.Options) {
		o.EnableFallback = sdk.FalseTernary
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = attempts, time.Second })
	})
}

// identity asks the metadata service which instance this is.
func identity(ctx context.Context, client *imds.Client) (imds.InstanceIdentityDocument, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, attemptTimeout, errors.New("no answer"))
	defer cancel()
	answer, err := client.GetInstanceIdentityDocument(ctx, nil)
	if err == nil && (answer.InstanceID == "" || answer.Region == "" || answer.AvailabilityZone == "") {
		err = errors.New("its identity document names no instance, region or zone")
	}
	if err != nil {
		return imds.InstanceIdentityDocument{}, fmt.Errorf("%w: the instance's metadata service does not tell which instance this is (%w): blockvol must run on an EC2 instance whose metadata options have the endpoint enabled; IMDSv2 is spoken, and with the network of the host a hop limit of 1 is enough",
			providers.ErrUnavailable, brief(ctx, err))
	}
	return answer.InstanceIdentityDocument, nil
}

// Static keys, each in the environment or in a file. Without any the SDK's chain decides.
const (
	keyIDSetting  = "AWS_ACCESS_KEY_ID"
	secretSetting = "AWS_SECRET_ACCESS_KEY" //nolint:gosec // the name of a setting
	tokenSetting  = "AWS_SESSION_TOKEN"     //nolint:gosec // the name of a setting
	fileSuffix    = "_FILE"
)

// fileKeys are static keys of which at least one stands in a file. They are read anew every few minutes, so that a key can
// be replaced without a restart.
type fileKeys struct{ getenv func(string) string }

const keysLife = 5 * time.Minute

// keysFromFiles returns nil if no setting names a file.
func keysFromFiles(getenv func(string) string) (sdk.CredentialsProvider, error) {
	named := false
	for _, name := range []string{keyIDSetting, secretSetting, tokenSetting} {
		file := getenv(name + fileSuffix)
		named = named || file != ""
		if file != "" && getenv(name) != "" {
			return nil, fmt.Errorf("%w: both %s and %s are set: leave one of them out", providers.ErrInvalid, name, name+fileSuffix)
		}
	}
	if !named {
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	return sdk.NewCredentialsCache(fileKeys{getenv}), nil
}

func (k fileKeys) read(name string) (string, error) {
	file := k.getenv(name + fileSuffix)
	if file == "" {
		return k.getenv(name), nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s cannot be read: %w: the file must be readable where blockvol runs; the plugin sees the host's state directory as /data/state", name+fileSuffix, err)
	}
	return strings.TrimSpace(string(content)), nil
}

// Retrieve reads the keys.
func (k fileKeys) Retrieve(context.Context) (sdk.Credentials, error) {
	keys := sdk.Credentials{CanExpire: true, Expires: time.Now().Add(keysLife), Source: "files"}
	var errs [3]error
	keys.AccessKeyID, errs[0] = k.read(keyIDSetting)
	keys.SecretAccessKey, errs[1] = k.read(secretSetting)
	keys.SessionToken, errs[2] = k.read(tokenSetting)
	if err := errors.Join(errs[:]...); err != nil {
		return sdk.Credentials{}, err
	}
	if keys.AccessKeyID == "" || keys.SecretAccessKey == "" {
		return sdk.Credentials{}, fmt.Errorf("%s and %s are both needed, as values or as %s", keyIDSetting, secretSetting, fileSuffix)
	}
	return keys, nil
}

var _ sdk.HTTPClient = (*http.Client)(nil)
