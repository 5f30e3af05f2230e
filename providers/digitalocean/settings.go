package digitalocean

import "github.com/blockvol/blockvol/providers"

const (
	settingToken    = "DIGITALOCEAN_TOKEN"
	settingRegion   = "DIGITALOCEAN_REGION"
	settingDroplet  = "DIGITALOCEAN_DROPLET_ID"
	settingAPI      = "DIGITALOCEAN_API_URL"
	settingMetadata = "DIGITALOCEAN_METADATA_URL"

	defaultAPI      = "https://api.digitalocean.com"
	defaultMetadata = "http://169.254.169.254"
)

// Settings are those of FromEnv.
var Settings = []providers.Setting{
	{Name: settingToken, Help: "an API token, required", Secret: true, Shared: true},
	{Name: settingRegion, Help: "the region in which volumes are created and looked for", Default: "what the metadata service says"},
	{Name: settingDroplet, Help: "the id of this droplet, where the metadata service does not answer; if it answers with another id, every call fails and says so", Default: "what the metadata service says"},
	{Name: settingAPI, Help: "URL of the API", Default: defaultAPI},
	{Name: settingMetadata, Help: "URL of the metadata service, which is asked without a proxy", Default: defaultMetadata},
}
