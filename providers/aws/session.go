package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/logging"

	"github.com/blockvol/blockvol/providers"
)

// session is this instance's identity, and the client of its region's EC2.
type session struct {
	instance, zone, region string

	api         *ec2.Client
	credentials sdk.CredentialsProvider
}

func (p *Provider) connect(ctx context.Context) (*session, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRetryer(func() sdk.Retryer { return sdk.NopRetryer{} }), // call retries
		config.WithEC2IMDSEndpoint(p.cfg.Metadata),
		config.WithLogger(logging.Nop{}), // it would not write to the program's log
	}
	if p.cfg.HTTPClient != nil {
		options = append(options, config.WithHTTPClient(p.cfg.HTTPClient))
	}
	if p.cfg.Credentials != nil {
		options = append(options, config.WithCredentialsProvider(p.cfg.Credentials))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	var metadata *imds.Client
	if err == nil {
		cfg.HTTPClient = guarded(cfg.HTTPClient)
		metadata = metadataClient(cfg)
		// Loaded again, so that the instance's role uses the same client.
		cfg, err = config.LoadDefaultConfig(ctx, append(options, config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = metadata }))...)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the settings of AWS cannot be used: %w", providers.ErrInvalid, err)
	}
	cfg.HTTPClient = guarded(cfg.HTTPClient)
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
		instance: doc.InstanceID, zone: doc.AvailabilityZone, region: region,
		credentials: cfg.Credentials,
		api: ec2.NewFromConfig(cfg, func(o *ec2.Options) {
			o.HTTPSignerV4 = signer{}
			o.APIOptions = append(o.APIOptions, checkAnswer, p.noteClock)
			if p.cfg.Endpoint != "" {
				o.BaseEndpoint = &p.cfg.Endpoint
			}
		}),
	}, nil
}

// metadataClient uses tokens only (IMDSv2), since an instance can have version 1 disabled.
func metadataClient(cfg sdk.Config) *imds.Client {
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
		return imds.InstanceIdentityDocument{}, fmt.Errorf("%w: the instance's metadata service does not tell which instance this is (%w): blockvol must run on an EC2 instance whose metadata endpoint is enabled; blockvol uses IMDSv2, and needs a hop limit of 1 on the host's network",
			providers.ErrUnavailable, brief(ctx, err))
	}
	return answer.InstanceIdentityDocument, nil
}
