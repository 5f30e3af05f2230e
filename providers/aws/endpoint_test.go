package aws

import (
	"context"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/internal/pause"
	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
)

// hostile answers in place of EC2, and counts how much of its answers is read.
type hostile struct {
	http.RoundTripper
	answer func(r *http.Request) *http.Response

	mu        sync.Mutex
	requests  int
	elsewhere []string
	read      int
}

func (h *hostile) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Hostname() == "169.254.169.254" {
		return h.RoundTripper.RoundTrip(r)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !strings.HasPrefix(r.URL.Hostname(), "ec2.") {
		h.elsewhere = append(h.elsewhere, r.URL.String())
	}
	h.requests++
	answer := h.answer(r)
	answer.Body = struct {
		io.Reader
		io.Closer
	}{&counted{answer.Body, h}, answer.Body}
	return answer, nil
}

type counted struct {
	io.Reader
	by *hostile
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.by.mu.Lock()
	c.by.read += n
	c.by.mu.Unlock()
	return n, err
}

// endless is a body without an end; if slow, it comes byte by byte.
type endless struct {
	ctx    context.Context //nolint:containedctx // of the request
	slowly bool
}

func (e endless) Read(b []byte) (int, error) {
	if !e.slowly {
		for i := range b {
			b[i] = 'x'
		}
		return len(b), nil
	}
	if err := pause.For(e.ctx, time.Second); err != nil {
		return 0, err
	}
	return copy(b, "x"), nil
}

func (endless) Close() error { return nil }

func TestAnAnswerNotFromEC2IsReportedInASentence(t *testing.T) {
	refusal := func(code, message string) string {
		return "<Response><Errors><Error><Code>" + code + "</Code><Message>" + message + "</Message></Error></Errors><RequestID>x</RequestID></Response>"
	}
	const list = `<DescribeVolumesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><volumeSet>`
	answers := map[string]func(r *http.Request) *http.Response{
		"truncated XML":   func(r *http.Request) *http.Response { return said(r, 200, list+"<item><volumeId>vol-0") },
		"nothing":         func(r *http.Request) *http.Response { return said(r, 200, "") },
		"HTML":            func(r *http.Request) *http.Response { return said(r, 200, "<html><body>Please sign in</body></html>") },
		"HTML of a proxy": func(r *http.Request) *http.Response { return said(r, 502, "<html><body><h1>Bad Gateway</h1></body>") },
		"JSON":            func(r *http.Request) *http.Response { return said(r, 200, `{"message":"no"}`) },
		"not found":       func(r *http.Request) *http.Response { return said(r, 404, "page not found") },
		"garbage":         func(r *http.Request) *http.Response { return said(r, 200, strings.Repeat("\x00\xff<&", 10<<18)) },
		"garbage, as an error": func(r *http.Request) *http.Response {
			return said(r, 400, strings.Repeat("\x00\xff<&", 10<<18))
		},
		"a long message": func(r *http.Request) *http.Response {
			return said(r, 400, refusal("InvalidParameterValue", strings.Repeat("long\n", 1<<20)))
		},
		"a long code": func(r *http.Request) *http.Response { return said(r, 400, refusal(strings.Repeat("Long", 1<<20), "m")) },
		"a body without an end": func(r *http.Request) *http.Response {
			answer := said(r, 200, "")
			answer.Body, answer.ContentLength = endless{r.Context(), false}, -1
			return answer
		},
		"an error without an end": func(r *http.Request) *http.Response {
			answer := said(r, 500, "")
			answer.Body, answer.ContentLength = endless{r.Context(), false}, -1
			return answer
		},
		"an element without an end": func(r *http.Request) *http.Response {
			answer := said(r, 200, "")
			answer.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(strings.NewReader(list+"<item><volumeId>"), endless{r.Context(), false}), io.NopCloser(nil)}
			answer.ContentLength = -1
			return answer
		},
		"a body that drips": func(r *http.Request) *http.Response {
			answer := said(r, 200, "")
			answer.Body, answer.ContentLength = endless{r.Context(), true}, -1
			return answer
		},
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		answers[fmt.Sprint("a redirect, ", status)] = func(r *http.Request) *http.Response {
			answer := said(r, status, "")
			answer.Header.Set("Location", "https://elsewhere.example/")
			return answer
		}
	}
	// Answers that repeat the credentials of the request, in a place that errors quote.
	for where, echo := range map[string]func(string) string{
		"the message": func(text string) string { return refusal("InvalidParameterValue", text) },
		"the code":    func(text string) string { return refusal(text, "m") },
		"a denial": func(text string) string {
			return refusal("UnauthorizedOperation", "You are not authorized to perform: "+text)
		},
		"an error of the server": func(text string) string { return refusal("InternalError", text) },
		"a page":                 func(text string) string { return "<html>" + text + "</html>" },
		"text":                   func(text string) string { return text },
	} {
		for how, escape := range map[string]func(string) string{"plain": html.EscapeString, "escaped twice": func(s string) string { return html.EscapeString(html.EscapeString(s)) }, "in a URL": url.QueryEscape} {
			for _, status := range []int{200, 400, 403, 500} {
				answers[fmt.Sprintf("an echo in %s, %s, %d", where, how, status)] = func(r *http.Request) *http.Response {
					var all []string
					for name, values := range r.Header {
						all = append(all, name+": "+strings.Join(values, " "))
					}
					return said(r, status, echo(escape(r.Header.Get("Authorization")+" "+r.Header.Get("X-Amz-Security-Token")+" "+strings.Join(all, " "))))
				}
			}
		}
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				node := w.node("a")
				link := &hostile{RoundTripper: w.front.Transport(node), answer: answer}
				p := w.onWith(link)
				begin := time.Now()
				_, err := p.Find(t.Context(), "db")
				providertest.Sentence(t, err, "DescribeVolumes")
				keyID, secret, token := w.front.Credentials(node)
				silent(t, w, err, node, html.EscapeString(token), url.QueryEscape(token), url.QueryEscape(secret))
				assert.NotRegexp(t, "[0-9a-f]{64}", err.Error(), "a signature")
				assert.NotContains(t, err.Error(), keyID)
				require.NotErrorIs(t, err, providers.ErrNotFound, "no answer proves nothing")
				assert.LessOrEqual(t, link.requests, attempts)
				assert.LessOrEqual(t, time.Since(begin), attempts*attemptTimeout+5*time.Second)
				assert.LessOrEqual(t, link.read, attempts*(maxAnswer+1<<20))
				assert.Empty(t, link.elsewhere)
			})
		})
	}
}

func TestAWebPageIsNoSuccess(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		node := w.node("a")
		link := &portal{RoundTripper: w.front.Transport(node)}
		p := w.onWith(link)
		v, free := w.create(p, "db"), w.create(p, "free")
		w.attach(p, v)
		ctx := t.Context()
		link.closed = true
		for what, call := range map[string]func() error{
			"attach": func() error { return providertest.Attach(ctx, p, free.ID) },
			"detach": func() error { return p.Detach(ctx, v.ID, node, false) },
			"mark":   func() error { return p.Mark(ctx, free.ID, "formatted", "ext4") },
			"delete": func() error { return p.Delete(ctx, free.ID) },
			"forget": func() error { return p.Forget(ctx, free.ID) },
			"create": func() error { _, err := p.Create(ctx, providers.Spec{Name: "new", Size: gib}); return err },
			"modify": func() error { _, err := p.Modify(ctx, free.ID, providers.Change{Size: 2 * gib}); return err },
			"list":   func() error { _, err := p.List(ctx); return err },
			"state":  func() error { _, err := p.NodeState(ctx, node); return err },
		} {
			require.ErrorIs(t, call(), providers.ErrUnavailable, what)
		}
	})
}

// portal is a network that answers every request with its sign-in page.
type portal struct {
	http.RoundTripper
	closed bool
}

func (p *portal) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.closed {
		return said(r, http.StatusOK, "<html><body>Please sign in</body></html>"), nil
	}
	return p.RoundTripper.RoundTrip(r)
}
