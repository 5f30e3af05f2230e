package linode

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/managed"
	"github.com/blockvol/blockvol/providers/providertest"
	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/cloudtest"
	"github.com/blockvol/blockvol/test/cloud/httpsim"
)

// every calls each method that asks the API, for a volume that is this cluster's.
func every(t *testing.T, p *Provider, id, node string) map[string]error {
	t.Helper()
	errs := map[string]error{
		"Forget": p.Forget(t.Context(), id), "Delete": p.Delete(t.Context(), id), "Attach": providertest.Attach(t.Context(), p, id),
		"Detach": p.Detach(t.Context(), id, node, false), "Mark": p.Mark(t.Context(), id, "layout", "data"),
	}
	_, errs["Find"] = p.Find(t.Context(), "db")
	_, errs["List"] = p.List(t.Context())
	_, errs["Create"] = p.Create(t.Context(), providers.Spec{Name: "db"})
	_, errs["Adopt"] = p.Adopt(t.Context(), id, providers.Spec{Name: "db"})
	_, errs["Modify"] = p.Modify(t.Context(), id, providers.Change{Size: 100 * gib})
	_, errs["NodeState"] = p.NodeState(t.Context(), node)
	return errs
}

func TestAnAnswerThatIsNotLinodesEndsInASentence(t *testing.T) {
	const secret = "0123456789abcdef-my-token"
	json := func(status int, body string) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			return httpsim.Response(r, status, "application/json", body), nil
		}
	}
	html := func(status int, body string) func(*http.Request) (*http.Response, error) {
		return func(r *http.Request) (*http.Response, error) {
			return httpsim.Response(r, status, "text/html", body), nil
		}
	}
	refusal := `{"errors": [{"reason": "` + strings.Repeat("very long ", 1000) + secret + `"}]}`
	answers := map[string]func(*http.Request) (*http.Response, error){
		"HTML":                       html(200, "<html>Please sign in</html>"),
		"HTML of a proxy":            html(502, "<html>Bad Gateway</html>"),
		"HTML, not found":            html(404, "<html>Not Found</html>"),
		"nothing":                    json(200, ""),
		"truncated JSON":             json(200, `{"data": [{"id": 1, "la`),
		"other JSON":                 json(200, `{"message": "welcome to `+secret+`"}`),
		"a list":                     json(200, `[]`),
		"null":                       json(200, `null`),
		"other JSON, not found":      json(404, `{"message": "no such page"}`),
		"other JSON, unavailable":    json(503, `{"message": "maintenance"}`),
		"a success with errors":      json(200, `{"errors": [{"reason": "no"}]}`),
		"an error of the server":     json(500, `{"errors": [{"reason": "An unexpected error occurred `+secret+`"}]}`),
		"errors of an unknown shape": json(400, `{"errors": "no"}`),
		"no answer": func(*http.Request) (*http.Response, error) {
			return nil, errors.New("connection reset by peer, " + secret)
		},
		"a redirect": func(r *http.Request) (*http.Response, error) {
			answer := httpsim.Response(r, 302, "text/html", "")
			answer.Header.Set("Location", "https://elsewhere.example/")
			return answer, nil
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				a := w.node()
				log, lines := logtest.NewNullLogger()
				log.SetLevel(logrus.DebugLevel)
				p := w.on(a, func(cfg *Config) {
					way := cfg.Transport
					cfg.Token, cfg.Log = cloudtest.Token("LINODE_TOKEN", secret), log
					cfg.Transport = httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
						if r.URL.Hostname() == "169.254.169.254" {
							return way.RoundTrip(r)
						}
						assert.Equal(t, "api.linode.com", r.URL.Hostname())
						return answer(r)
					})
				})
				for method, err := range every(t, p, "12", a) {
					if method == "Delete" && name == "other JSON" {
						continue
					}
					require.ErrorIs(t, err, providers.ErrUnavailable, method)
					require.NotErrorIs(t, err, providers.ErrNotFound, method)
					providertest.Sentence(t, err, "Linode")
					assert.NotContains(t, err.Error(), secret)
				}
				for _, entry := range lines.AllEntries() {
					text, err := entry.String()
					require.NoError(t, err)
					assert.NotContains(t, text, secret)
				}
			})
		})
	}
	t.Run("a long refusal", func(t *testing.T) {
		inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
			a := w.node()
			p := w.on(a, func(cfg *Config) {
				way := cfg.Transport
				cfg.Token = cloudtest.Token("LINODE_TOKEN", secret)
				cfg.Transport = httpsim.RoundTripFunc(func(r *http.Request) (*http.Response, error) {
					if r.URL.Hostname() == "169.254.169.254" {
						return way.RoundTrip(r)
					}
					return httpsim.Response(r, 400, "application/json", refusal), nil
				})
			})
			for _, err := range every(t, p, "12", a) {
				providertest.Sentence(t, err, "very long")
				assert.NotContains(t, err.Error(), secret)
			}
		})
	})
}

func TestARefusedTokenSaysWhatItLacks(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, token string)
		words  []string
	}{
		"revoked":    {func(w *world, token string) { w.front.Revoke(token) }, []string{"LINODE_TOKEN", "expired", "Invalid Token"}},
		"no volumes": {func(w *world, token string) { w.front.Restrict(token, "domains:read_write") }, []string{"volumes:read_write", "linodes:read_write", "not authorized"}},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
				a := w.node()
				p := w.on(a)
				v := w.create(p, "db")
				c.change(w, w.front.Token(a))
				for method, err := range every(t, p, v.ID, a) {
					providertest.Sentence(t, err, c.words...)
					for _, verdict := range []error{providers.ErrNotFound, providers.ErrHeld, providers.ErrBusy, providers.ErrInvalid} {
						require.NotErrorIs(t, err, verdict, method)
					}
					assert.NotContains(t, err.Error(), w.front.Token(a))
				}
			})
		})
	}
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		a := w.node()
		p := w.on(a)
		v := w.create(p, "db")
		w.front.Restrict(w.front.Token(a), "volumes:read_write", "linodes:read_only")
		providertest.Sentence(t, providertest.Attach(t.Context(), p, v.ID), "linodes:read_write")
	})
}

func TestRefusalsMeanWhatTheySay(t *testing.T) {
	inWorld(t, cloud.Config{}, func(t *testing.T, w *world) {
		p := w.on(w.node())
		for _, c := range []struct {
			action, field, said string
			want                error
		}{
			{"the request to attach volume 1", "", "Linode busy.", providers.ErrBusy},
			{"the request to attach volume 1", "", "Volume 1 is already attached", managed.ErrAttached},
			{"the request to attach volume 1", "", "You have reached the maximum number of volumes", providers.ErrAttachLimit},
			{"the request to attach volume 1", "linode_id", "Too many volumes attached", providers.ErrAttachLimit},
			{"the request to attach volume 1", "", "The Linode must be running", providers.ErrBusy},
			{"the request to create volume db", "label", "Label must be unique", managed.ErrTaken},
			{"the request to create volume db", "", "Account limit reached", providers.ErrNoSpace},
			{"the request to create volume db", "size", "Must be 10-16384, the limit", providers.ErrInvalid},
			{"the request to delete volume 1", "", "Volume must be detached first", managed.ErrAttached},
			{"the request to delete volume 1", "", "Volume is migrating", providers.ErrBusy},
			{"the request to detach volume 1", "", "Volume is not attached", managed.ErrNotAttached},
			{"the request to resize volume 1", "", "Only Volumes with a status of active can be resized", providers.ErrBusy},
			{"the request to resize volume 1", "", "Storage volumes can only be resized up", providers.ErrInvalid},
		} {
			err := p.translate(c.action, outcome{status: 400, reasons: []reason{{c.said, c.field}}})
			require.ErrorIs(t, err, c.want, fmt.Sprint(c))
			providertest.Sentence(t, err, c.said)
		}
	})
}
