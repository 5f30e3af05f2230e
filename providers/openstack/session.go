package openstack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
)

// Microversions of Cinder, used only where they are needed. Older clouds get requests without a microversion.
const (
	withAttachments = "3.27" // since 2017: lists attachments, also while a volume is being attached
	withExtendInUse = "3.42" // since 2017: extends volumes in use
)

// session is a token and the endpoints of its catalogue. It is used until a service refuses the token.
type session struct {
	token           string
	volume, compute *gophercloud.ServiceClient
}

// with returns the client of Cinder with a microversion, "" for none.
func (s *session) with(microversion string) *gophercloud.ServiceClient {
	c := *s.volume
	c.Microversion = microversion
	return &c
}

// end drops a session whose token has been refused.
func (p *Provider) end(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.session.Drop(s) {
		p.oldToken = s.token
	}
}

// login asks Keystone for a token. Its expiry time is not used, since this node's clock may be wrong: the services refuse an
// expired token.
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
	client.HTTPClient = *p.client.HTTP
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
		return nil, p.client.NoAnswer(ctx, action, err)
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

// service returns the client of a service that the catalogue lists under one of the types.
func (p *Provider) service(client *gophercloud.ProviderClient, catalogue *tokens.ServiceCatalog, name string, types ...string) (*gophercloud.ServiceClient, error) {
	regions := map[string]bool{}
	for _, kind := range types {
		for _, entry := range catalogue.Entries {
			if entry.Type != kind {
				continue
			}
			for _, e := range entry.Endpoints {
				region := cmp.Or(e.RegionID, e.Region)
				switch {
				case e.Interface != p.cfg.Interface:
				case p.cfg.Region == "", p.cfg.Region == region, p.cfg.Region == e.Region:
					return &gophercloud.ServiceClient{ProviderClient: client, Endpoint: gophercloud.NormalizeURL(e.URL), Type: kind}, nil
				default:
					regions[region] = true
				}
			}
		}
	}
	if len(regions) > 0 {
		return nil, fmt.Errorf("%s has no region %q for %s, only %s: correct OS_REGION_NAME", cloudName, p.cfg.Region, name, strings.Join(slices.Sorted(maps.Keys(regions)), ", "))
	}
	return nil, fmt.Errorf("the catalogue of %s has no %s endpoint of %s (%s): this cloud has no such service, or OS_INTERFACE is not right", cloudName, p.cfg.Interface, name, strings.Join(types, ", "))
}

// secrets returns what no error or log line may contain.
func (p *Provider) secrets() []string {
	p.mu.Lock()
	all := []string{p.oldToken}
	if s, is := p.session.Known(); is {
		all = append(all, s.token)
	}
	p.mu.Unlock()
	if secret, err := p.cfg.Secret.Value(); err == nil {
		all = append(all, secret)
	}
	return all
}
