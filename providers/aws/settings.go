package aws

import "github.com/blockvol/blockvol/providers"

// Static keys, each in the environment or in a file. Without keys the SDK's chain is used.
const (
	keyIDSetting  = "AWS_ACCESS_KEY_ID"
	secretSetting = "AWS_SECRET_ACCESS_KEY" //nolint:gosec // the name of a setting
	tokenSetting  = "AWS_SESSION_TOKEN"     //nolint:gosec // the name of a setting
	regionSetting = "AWS_REGION"
)

// Settings are those of FromEnv, and those that the SDK reads itself and the managed plugin declares.
var Settings = []providers.Setting{
	{Name: keyIDSetting, Help: "an access key", Default: "the role of the instance", Secret: true},
	{Name: secretSetting, Help: "the secret of the access key", Secret: true, Shared: true},
	{Name: tokenSetting, Help: "the session token of a temporary access key", Secret: true},
	{Name: regionSetting, Help: "the region of this instance; any other region is refused", Default: "what the metadata service says"},
	{Name: "AWS_ENDPOINT_URL_EC2", Help: "URL of the EC2 API, for a VPC endpoint", Default: "the region's own"},
	{Name: "AWS_EC2_METADATA_SERVICE_ENDPOINT", Help: "URL of the instance's metadata service", Default: "http://169.254.169.254"},
	{Name: "AWS_CA_BUNDLE", Help: "a file with the certificate authorities to trust for the EC2 API", Default: "the system's"},
}
