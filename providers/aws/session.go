package aws

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/blockvol/blockvol/providers"
)

// session is what is found out once: which instance this is, and how EC2 is spoken to.
type session struct {
	instance, zone, region string

	api         *ec2.Client
	credentials sdk.CredentialsProvider
}

// session returns the one session, and begins it if there is none. Callers that wait share an attempt, and its failure.
func (p *Provider) session(ctx context.Context) (*session, error) {
	if s := p.begun(); s != nil {
		return s, ctx.Err()
	}
	s, _, err := p.sessions.Get(ctx, "")
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("the instance's metadata is still waited for: %w", ctx.Err())
	}
	return s, err
}

func (p *Provider) askSession(ctx context.Context, keys []string) (map[string]*session, error) {
	s := p.begun()
	if s == nil {
		var err error
		if s, err = p.begin(ctx); err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.connected = s
	}
	return map[string]*session{keys[0]: s}, nil
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
		config.WithLogger(logging.Nop{}), // it would write beside the program's log
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
		cfg.HTTPClient = guarded(cfg.HTTPClient)
		metadata = metadataService(cfg)
		// Once more, for a chain of credentials that asks the same way.
		cfg, err = config.LoadDefaultConfig(ctx, append(loading, config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = metadata }))...)
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
			o.APIOptions = append(o.APIOptions, ec2Answer)
			if p.cfg.Endpoint != "" {
				o.BaseEndpoint = &p.cfg.Endpoint
			}
		}),
	}, nil
}

// signer signs each request by itself. The SDK's own keeps what it derives from a secret under the key's id for a day, and so a
// wrong secret after it has been put right.
type signer struct{}

func (signer) SignHTTP(ctx context.Context, keys sdk.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	return v4.NewSigner().SignHTTP(ctx, keys, r, hash, service, region, at, options...)
}

var errNotEC2 = errors.New("it is of another service or page")

// ec2Answer refuses an answer of success that is not EC2's to this very action. To the SDK any other page is an answer in which
// nothing stands: an empty list, and a write that was carried out.
func ec2Answer(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("ec2Answer", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
		out, metadata, err := next.HandleDeserialize(ctx, in)
		answer, is := out.RawResponse.(*smithyhttp.Response)
		if err != nil || !is || answer.StatusCode >= http.StatusMultipleChoices {
			return out, metadata, err
		}
		body := bufio.NewReader(answer.Body)
		if head, err := body.Peek(512); !bytes.Contains(head, []byte("<"+awsmiddleware.GetOperationName(ctx)+"Response")) {
			if err == nil || errors.Is(err, io.EOF) {
				err = errNotEC2
			}
			return out, metadata, &smithy.DeserializationError{Err: err}
		}
		answer.Body = struct {
			io.Reader
			io.Closer
		}{body, answer.Body}
		return out, metadata, nil
	}), middleware.After)
}

// maxAnswer is how much of an answer is read, in bytes: more than EC2 has to say of 500 volumes with all their tags.
const maxAnswer = 16 << 20

// guarded makes a client that is safe with any answer: it reads a bounded part of it, and goes nowhere else with a signed
// request, since EC2 redirects nobody.
func guarded(client sdk.HTTPClient) sdk.HTTPClient {
	guard := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	switch c := client.(type) {
	case *awshttp.BuildableClient: // which has AWS_CA_BUNDLE's certificates
		guard.Transport, guard.Timeout = bounded{c.GetTransport()}, c.GetTimeout()
	case *http.Client:
		guard.Transport, guard.Timeout = bounded{cmp.Or[http.RoundTripper](c.Transport, http.DefaultTransport)}, c.Timeout
	default:
		return client
	}
	return guard
}

// bounded cuts answers short.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{&cutter{answer.Body, maxAnswer}, answer.Body}
	}
	return answer, err
}

var errTooLong = errors.New("the answer has no end")

type cutter struct {
	from io.Reader
	left int
}

func (c *cutter) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooLong
	}
	n, err := c.from.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
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

// fileKeys are static keys of which at least one stands in a file. They are read anew every few minutes, so that a key can
// be replaced without a restart.
type fileKeys struct{ getenv func(string) string }

const keysLife = 5 * time.Minute

// keysFromFiles returns nil if no setting names a file.
func keysFromFiles(getenv func(string) string) (sdk.CredentialsProvider, error) {
	named := false
	for _, name := range []string{keyIDSetting, secretSetting, tokenSetting} {
		file := getenv(name + providers.FileSuffix)
		named = named || file != ""
		if file != "" && getenv(name) != "" {
			return nil, fmt.Errorf("%w: both %s and %s are set: leave one of them out", providers.ErrInvalid, name, name+providers.FileSuffix)
		}
	}
	if !named {
		if (getenv(keyIDSetting) == "") != (getenv(secretSetting) == "") {
			return nil, fmt.Errorf("%w: of %s and %s one is set, and both are needed: set the other, or leave both out", providers.ErrInvalid, keyIDSetting, secretSetting)
		}
		return nil, nil //nolint:nilnil // none is a valid answer
	}
	return sdk.NewCredentialsCache(fileKeys{getenv}), nil
}

func (k fileKeys) read(name string) (string, error) {
	file := k.getenv(name + providers.FileSuffix)
	if file == "" {
		return k.getenv(name), nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s cannot be read: %w: the file must be readable where blockvol runs; the plugin sees the host's state directory as /data/state", name+providers.FileSuffix, err)
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
		return sdk.Credentials{}, fmt.Errorf("%s and %s are both needed, as values or as %s", keyIDSetting, secretSetting, providers.FileSuffix)
	}
	return keys, nil
}

var _ sdk.HTTPClient = (*http.Client)(nil)
