package linode

import "github.com/blockvol/blockvol/providers"

const (
	defaultAPI      = "https://api.linode.com/v4"
	defaultMetadata = "http://169.254.169.254"
)

// Settings are those of FromEnv.
var Settings = []providers.Setting{
	{Name: "LINODE_TOKEN", Help: "a personal access token, required", Secret: true, Shared: true},
	{Name: "LINODE_REGION", Help: "the region of this Linode; any other region is refused. With `LINODE_INSTANCE_ID` it saves a request", Default: "what the Metadata service says"},
	{Name: "LINODE_INSTANCE_ID", Help: "the id of this Linode, where the Metadata service does not answer; if it answers with another id, every call fails and says so", Default: "what the Metadata service says"},
	{Name: "LINODE_API_URL", Help: "URL of the API", Default: defaultAPI},
	{Name: "LINODE_METADATA_URL", Help: "URL of the Metadata service, which is asked without a proxy", Default: defaultMetadata},
	{Name: "LINODE_URL", Help: "another name of `LINODE_API_URL`, as Linode's own tools have it", Daemon: true},
}
