package hetzner

import "github.com/blockvol/blockvol/providers"

const (
	tokenSetting    = "HCLOUD_TOKEN"
	serverSetting   = "HCLOUD_SERVER_ID"
	endpointSetting = "HCLOUD_ENDPOINT"
	metadataSetting = "HCLOUD_METADATA_URL"

	defaultEndpoint = "https://api.hetzner.cloud/v1"
	defaultMetadata = "http://169.254.169.254"
)

// Settings are those of FromEnv.
var Settings = []providers.Setting{
	{Name: tokenSetting, Help: "an API token of the project that may read and write, required", Secret: true, Shared: true},
	{Name: serverSetting, Help: "the id of this server, where the metadata service does not answer (the API then tells the location); if it answers with another id, every call fails and says so", Default: "what the metadata service says"},
	{Name: endpointSetting, Help: "URL of the API", Default: defaultEndpoint},
	{Name: metadataSetting, Help: "URL of the metadata service, which is asked without a proxy", Default: defaultMetadata},
}
