package openstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
)

// Microversions of Cinder that are asked for where they are needed. A cloud without them is asked as before there were any.
const (
	withAttachments = "3.27" // since 2017: attachments that are on their way, too
	withExtendInUse = "3.42" // since 2017: a volume grows while it is in use
)

// session is a token, and where its catalogue says that the services are. It serves until the token is refused.
type session struct {
	token           string
	volume, compute *gophercloud.ServiceClient
}

// with is the client of Cinder for a microversion.
func (s *session) with(microversion string) *gophercloud.ServiceClient {
	c := *s.volume
	c.Microversion = microversion
	return &c
}

// end forgets a session whose token is refused.
func (p *Provider) end(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session.Drop(s) {
		p.spent = s.token
	}
}

// login asks Keystone for a token. Whether that has expired only the services tell, by refusing it: this node's clock may be
// wrong.
func (p *Provider) login(ctx context.Context) (*session, error) {
	secret, err := p.cfg.Secret.Value()
	if err != nil {
		return nil, err
	}
	options := p.cfg.Auth
	options.Password, options.ApplicationCredentialSecret = secret, ""
	if options.ApplicationCredentialID != "" || options.ApplicationCredentialName != "" {
		options.Password, options.ApplicationCredentialSecret = "", secret
	}
	client, err := openstack.NewClient(p.cfg.Auth.IdentityEndpoint)
	if err != nil {
		return nil, fmt.Errorf("OS_AUTH_URL %q: %w", p.cfg.Auth.IdentityEndpoint, err)
	}
	client.HTTPClient = *p.way.HTTP
	identity, err := openstack.NewIdentityV3(client, gophercloud.EndpointOpts{})
	if err != nil {
		return nil, err
	}
	const action = "the request for a token"
	result := tokens.Create(ctx, identity, &options)
	if result.Err != nil {
		return nil, p.explainLogin(ctx, action, result.Err)
	}
	token, err := result.ExtractTokenID()
	catalogue, listErr := result.ExtractServiceCatalog()
	if err := errors.Join(err, listErr); err != nil {
		return nil, p.way.NoAnswer(ctx, action, err)
	}
	client.TokenID = token
	s := &session{token: token}
	if s.volume, err = p.service(client, catalogue, "Cinder", "block-storage", "volumev3", "block-store", "volume"); err != nil {
		return nil, err
	}
	if s.compute, err = p.service(client, catalogue, "Nova", "compute"); err != nil {
		return nil, err
	}
	return s, nil
}

// service finds a service in the catalogue, under any of its types.
func (p *Provider) service(client *gophercloud.ProviderClient, catalogue *tokens.ServiceCatalog, name string, types ...string) (*gophercloud.ServiceClient, error) {
	regions := map[string]bool{}
	for _, kind := range types {
		for _, entry := range catalogue.Entries {
			if entry.Type != kind {
				continue
			}
			for _, e := range entry.Endpoints {
				if e.Interface != p.cfg.Interface {
					continue
				}
				region := e.RegionID
				if region == "" {
					region = e.Region
				}
				if p.cfg.Region == "" || p.cfg.Region == region || p.cfg.Region == e.Region {
					return &gophercloud.ServiceClient{ProviderClient: client, Endpoint: gophercloud.NormalizeURL(e.URL), Type: kind}, nil
				}
				regions[region] = true
			}
		}
	}
	if len(regions) > 0 {
		return nil, fmt.Errorf("%s has no region %q for %s, only %s: correct OS_REGION_NAME", cloudName, p.cfg.Region, name, strings.Join(sorted(regions), ", "))
	}
	return nil, fmt.Errorf("the catalogue of %s has no %s endpoint of %s (%s): this cloud has no such service, or OS_INTERFACE is not right", cloudName, p.cfg.Interface, name, strings.Join(types, ", "))
}

// secrets are what no text may show.
func (p *Provider) secrets() []string {
	p.mu.Lock()
	all := []string{p.spent}
	if s, is := p.session.Known(); is {
		all = append(all, s.token)
	}
	p.mu.Unlock()
	if secret, err := p.cfg.Secret.Value(); err == nil {
		all = append(all, secret)
	}
	return all
}

// call asks a service, once more with a new token if the one that there is has been refused. The action says what for, as a
// noun: "the request to attach volume …".
func call[T any](ctx context.Context, p *Provider, action string, do func(context.Context, *session) (T, error)) (T, error) {
	for again := true; ; again = false {
		var none T
		s, err := p.session.Get(ctx)
		if err != nil {
			return none, err
		}
		value, err := do(ctx, s)
		if err == nil {
			return value, nil
		}
		if again && gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
			p.end(s)
			continue
		}
		return none, p.explain(ctx, action, err)
	}
}

// done is for calls that answer nothing.
type done struct{}

// repeatable tells of requests that can be carried out twice: for a token, and of metadata, which are set to what they are.
func repeatable(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/auth/tokens") || strings.HasSuffix(r.URL.Path, "/metadata")
}
