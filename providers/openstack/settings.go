package openstack

import "github.com/blockvol/blockvol/providers"

// Settings are those of FromEnv, under the names that OpenStack's own tools give them.
var Settings = []providers.Setting{
	{Name: "OS_AUTH_URL", Help: "URL of Keystone, with or without `/v3`, required"},
	{Name: "OS_REGION_NAME", Help: "the region", Default: "the first in the catalogue"},
	{Name: "OS_INTERFACE", Help: "which endpoints of the catalogue to use: `public`, `internal`, `admin`", Default: "public"},
	{Name: "OS_APPLICATION_CREDENTIAL_ID", Help: "the id of an application credential"},
	{Name: "OS_APPLICATION_CREDENTIAL_NAME", Help: "the name of an application credential, instead of its id; needs `OS_USERNAME`"},
	{Name: "OS_APPLICATION_CREDENTIAL_SECRET", Help: "the secret of the application credential", Secret: true},
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
