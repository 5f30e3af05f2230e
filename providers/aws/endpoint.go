package aws

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// signer derives the signing key for each request. The SDK's own signer caches it for a day by the ID of the access key, and so
// would go on with a wrong secret after that has been corrected.
type signer struct{}

func (signer) SignHTTP(ctx context.Context, keys sdk.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	return v4.NewSigner().SignHTTP(ctx, keys, r, hash, service, region, at, options...)
}

var errNotEC2 = errors.New("it is of another service or page")

// checkAnswer makes the SDK refuse an answer that does not begin as EC2's answer to the action. The SDK itself takes any page
// for an answer without content: an empty list, or a write that succeeded.
func checkAnswer(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("checkAnswer", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
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
		answer.Body = readCloser{body, answer.Body}
		return out, metadata, nil
	}), middleware.After)
}

type readCloser struct {
	io.Reader
	io.Closer
}

// maxAnswer is the most that is read of an answer, in bytes: more than 500 volumes with all their tags.
const maxAnswer = 16 << 20

// guarded returns the client with limited answers and without redirects: EC2 has none, and a redirect could send a signed request
// to another host.
func guarded(client sdk.HTTPClient) sdk.HTTPClient {
	guard := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	switch c := client.(type) {
	case *awshttp.BuildableClient: // with the certificates of AWS_CA_BUNDLE
		guard.Transport, guard.Timeout = bounded{c.GetTransport()}, c.GetTimeout()
	case *http.Client:
		guard.Transport, guard.Timeout = bounded{cmp.Or[http.RoundTripper](c.Transport, http.DefaultTransport)}, c.Timeout
	default:
		return client
	}
	return guard
}

// bounded limits answers to maxAnswer.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = readCloser{&limitedReader{answer.Body, maxAnswer}, answer.Body}
	}
	return answer, err
}

var errTooLong = errors.New("the answer has no end")

// limitedReader is io.LimitedReader with an error at the limit.
type limitedReader struct {
	from io.Reader
	left int
}

func (c *limitedReader) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooLong
	}
	n, err := c.from.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}
