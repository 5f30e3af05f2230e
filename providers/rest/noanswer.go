package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/sanitize"
)

// NoAnswer explains an error of Client.HTTP, or of the SDK above it, if the cloud gave no answer in time or one that cannot be read.
// action is what was sent, as a noun: "the request to attach volume 12". The result matches what err matches, or ctx.Err() if ctx
// has ended.
// Errors: providers.ErrBusy if the cloud throttles; no sentinel if ctx has ended or there is no token; otherwise
// providers.ErrUnavailable.
func (c *Client) NoAnswer(ctx context.Context, action string, err error) error {
	// An SDK may keep only the text of an error, so this does not rely on err.
	if c.cfg.Token != nil {
		if _, none := c.cfg.Token.Value(); none != nil {
			return fmt.Errorf("%s cannot be sent %s: %w", c.cfg.Cloud, action, none)
		}
	}
	var busy *throttledError
	if errors.As(err, &busy) {
		return busy
	}
	if over := ctx.Err(); over != nil {
		if why := c.pace.Why(); why != "" {
			return c.throttled(why, over)
		}
		return fmt.Errorf("%s has not answered %s: %w", c.cfg.Cloud, action, over)
	}
	cause := sanitize.Error(c.Clean(sanitize.Cause(err)), err)
	where := "the network"
	if c.cfg.Endpoint != "" {
		where += ", " + c.cfg.Endpoint
	}
	var (
		way      *url.Error
		network  net.Error
		syntax   *json.SyntaxError
		kind     *json.UnmarshalTypeError
		format   = "%w: %s has given no answer to %s that can be used (%w): check %s and any proxy on the way"
		unread   = errors.As(err, &syntax) || errors.As(err, &kind) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errForeign)
		unspoken = errors.As(err, &way) || errors.As(err, &network)
	)
	switch {
	case errors.Is(err, errTooLong):
	case unspoken:
		format = "%w: %s does not answer %s (%w): check %s and any proxy on the way"
	case unread:
		format = "%w: the answer of %s to %s is not its own, or is cut short (%w): check %s and any proxy on the way"
	}
	return fmt.Errorf(format, providers.ErrUnavailable, c.cfg.Cloud, action, cause, where)
}

// Foreign is NoAnswer for an answer that cannot be the cloud's to this request, though it looks like one.
func (c *Client) Foreign(ctx context.Context, action string) error {
	return c.NoAnswer(ctx, action, errForeign)
}

// throttledError is providers.ErrBusy for a caller whose context ended before the cloud accepted its request.
type throttledError struct {
	text string
	over error // why the caller's time was over
}

func (c *Client) throttled(why string, over error) error {
	return &throttledError{fmt.Sprintf("%v: %s takes no more requests from this account for now (%s), and the call's time is over: %v", providers.ErrBusy, c.cfg.Cloud, why, over), over}
}

func (e *throttledError) Error() string   { return e.text }
func (e *throttledError) Unwrap() []error { return []error{providers.ErrBusy, e.over} }
