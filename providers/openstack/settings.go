package openstack

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/secret"
)

// Settings are the settings of FromEnv. OpenStack's own tools have the same names for them.
var Settings = []providers.Setting{
	{Name: "OS_AUTH_URL", Help: "URL of Keystone, with or without `/v3`, required"},
	{Name: "OS_REGION_NAME", Help: "the region", Default: "the first in the catalogue"},
	{Name: "OS_INTERFACE", Help: "which endpoints of the catalogue to use: `public`, `internal`, `admin`", Default: "public"},
	{Name: "OS_APPLICATION_CREDENTIAL_ID", Help: "the id of an application credential"},
	{Name: "OS_APPLICATION_CREDENTIAL_NAME", Help: "the name of an application credential, instead of its id; needs `OS_USERNAME`"},
	{Name: "OS_APPLICATION_CREDENTIAL_SECRET", Help: "the secret of the application credential", Secret: true, Shared: true},
	{Name: "OS_USERNAME", Help: "a user, where there is no application credential"},
	{Name: "OS_PASSWORD", Help: "the user's password", Secret: true},
	{Name: "OS_USER_DOMAIN_NAME", Help: "the user's domain, by name"},
	{Name: "OS_USER_DOMAIN_ID", Help: "the user's domain, by id", Default: "default"},
	{Name: "OS_PROJECT_NAME", Help: "the user's project, by name"},
	{Name: "OS_PROJECT_ID", Help: "the user's project, by id"},
	{Name: "OS_PROJECT_DOMAIN_NAME", Help: "the project's domain, by name"},
	{Name: "OS_PROJECT_DOMAIN_ID", Help: "the project's domain, by id", Default: "default"},
	{Name: "OS_CACERT", Help: "a file with certificate authorities to trust besides the system's"},
	{Name: serverSetting, Help: "the id of this server, where the metadata service does not answer; if it answers with another id, every call fails and says so", Default: "what the metadata service says"},
	{Name: "OS_METADATA_URL", Help: "URL of the metadata service's `meta_data.json`", Default: defaultMetadata},
}

// FromEnv is New with the settings in the environment. The node ID is ignored, since a server has its own.
func FromEnv(getenv func(string) string, _, cluster string, log logrus.FieldLogger, observe providers.Observer) (providers.Provider, error) {
	cfg := Config{
		Cluster: cluster, Region: getenv("OS_REGION_NAME"), Interface: strings.TrimSuffix(getenv("OS_INTERFACE"), "URL"),
		Server: getenv(serverSetting), Metadata: getenv("OS_METADATA_URL"), Log: log, Observe: observe,
	}
	cfg.Auth = gophercloud.AuthOptions{
		IdentityEndpoint: getenv("OS_AUTH_URL"), Username: getenv("OS_USERNAME"),
		ApplicationCredentialID: getenv("OS_APPLICATION_CREDENTIAL_ID"), ApplicationCredentialName: getenv("OS_APPLICATION_CREDENTIAL_NAME"),
	}
	cfg.Auth.DomainID, cfg.Auth.DomainName = domain(getenv("OS_USER_DOMAIN_ID"), getenv("OS_USER_DOMAIN_NAME"))
	var err error
	credential := cfg.Auth.ApplicationCredentialID != "" || cfg.Auth.ApplicationCredentialName != ""
	switch {
	case cfg.Auth.ApplicationCredentialID != "":
		cfg.Auth.ApplicationCredentialName, cfg.Auth.Username, cfg.Auth.DomainID, cfg.Auth.DomainName = "", "", "", ""
	case credential && cfg.Auth.Username == "":
		return nil, fmt.Errorf("%w: OS_APPLICATION_CREDENTIAL_NAME is not unique without OS_USERNAME: set that, or OS_APPLICATION_CREDENTIAL_ID instead", providers.ErrInvalid)
	case !credential && cfg.Auth.Username == "":
		return nil, fmt.Errorf("%w: neither OS_APPLICATION_CREDENTIAL_ID nor OS_USERNAME is set: set one of them", providers.ErrInvalid)
	}
	if credential {
		cfg.settings = "OS_APPLICATION_CREDENTIAL_ID (or _NAME) and OS_APPLICATION_CREDENTIAL_SECRET"
		cfg.Secret, err = secret.From(getenv, "OS_APPLICATION_CREDENTIAL_SECRET")
	} else {
		cfg.settings = "OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME and the domains of both"
		cfg.Auth.Scope, err = scopeFrom(getenv)
		if err == nil {
			cfg.Secret, err = secret.From(getenv, "OS_PASSWORD")
		}
	}
	if err != nil {
		return nil, err
	}
	if file := getenv("OS_CACERT"); file != "" {
		if cfg.Transport, err = trusting(file); err != nil {
			return nil, err
		}
	}
	return providers.AsProvider(New(cfg))
}

// scopeFrom returns the project of a user's token.
func scopeFrom(getenv func(string) string) (*gophercloud.AuthScope, error) {
	scope := gophercloud.AuthScope{ProjectID: getenv("OS_PROJECT_ID"), ProjectName: getenv("OS_PROJECT_NAME")}
	switch {
	case scope.ProjectID != "":
		scope.ProjectName = ""
	case scope.ProjectName == "":
		return nil, fmt.Errorf("%w: neither OS_PROJECT_ID nor OS_PROJECT_NAME is set: set one of them", providers.ErrInvalid)
	default:
		scope.DomainID, scope.DomainName = domain(getenv("OS_PROJECT_DOMAIN_ID"), getenv("OS_PROJECT_DOMAIN_NAME"))
	}
	return &scope, nil
}

// domain returns one of ID and name, as Keystone requires. The ID takes precedence; the default is the ID "default".
func domain(id, name string) (string, string) {
	switch {
	case id != "":
		return id, ""
	case name != "":
		return "", name
	}
	return "default", ""
}

// trusting returns a transport that trusts the certificate authorities in the file besides the system's.
func trusting(file string) (http.RoundTripper, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: OS_CACERT cannot be read: %w: the plugin sees the host's state directory as /data/state", providers.ErrInvalid, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%w: OS_CACERT names %s, which holds no certificate in PEM", providers.ErrInvalid, file)
	}
	transport, is := http.DefaultTransport.(*http.Transport)
	if !is {
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment}
	}
	transport = transport.Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return transport, nil
}
