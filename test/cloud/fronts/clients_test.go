package fronts_test

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/fronts"
	"github.com/blockvol/blockvol/test/manual"
)

// client is a cloud's official command line, and a simulated instance whose cloud it uses over loopback.
type client struct {
	*cloud.Cloud
	t        *testing.T
	front    fronts.Front
	instance string
	url      string
	command  []string
	env      []string
}

func newClient(t *testing.T, provider string, command ...string) *client {
	t.Helper()
	t.Parallel()
	kind := fronts.All[slices.IndexFunc(fronts.All, func(k fronts.Kind) bool { return k.Provider == provider })]
	c := &client{t: t, Cloud: cloud.New(kind.Cloud), command: command}
	t.Cleanup(c.Close)
	c.front = kind.New(c.Cloud)
	c.instance = c.AddInstance(kind.Instance).ID
	server := httptest.NewServer(c.front)
	t.Cleanup(server.Close)
	c.url = server.URL
	c.env = append(kind.Settings(c.front, c.instance, c.url, ""), "HOME="+t.TempDir(), "PATH="+os.Getenv("PATH"))
	return c
}

// run runs the client and returns its output.
func (c *client) run(stdin string, args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.command[0], slices.Concat(c.command[1:], args)...)
	cmd.Env, cmd.Stdin = c.env, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(c.t, err, "%v: %s", args, out)
	return string(out)
}

// documented returns the arguments of the one command of the client that the provider's page in docs/ shows, for a volume.
func documented(t *testing.T, provider, command, volume string) []string {
	t.Helper()
	lines, err := manual.Commands("../../../docs/" + provider + ".md")
	require.NoError(t, err)
	lines = slices.DeleteFunc(lines, func(line string) bool { return !strings.HasPrefix(line, command+" ") })
	require.Len(t, lines, 1, "docs/%s.md: %s", provider, command)
	return strings.Fields(strings.ReplaceAll(strings.TrimPrefix(lines[0], command), "VOLUME", volume))
}

// volume returns the only volume.
func (c *client) volume() cloud.Volume {
	c.t.Helper()
	all := fronts.Disks(c.Cloud)
	require.Len(c.t, all, 1)
	return all[0]
}

func TestAWSCommandLineWorks(t *testing.T) {
	c := newClient(t, "aws", "/usr/bin/aws", "--output", "text", "ec2")
	keyID, secret, _ := c.front.(interface {
		Credentials(instance string) (keyID, secret, token string)
	}).Credentials("")
	c.env = append(c.env, "AWS_REGION=eu-test-1", "AWS_ACCESS_KEY_ID="+keyID, "AWS_SECRET_ACCESS_KEY="+secret)
	c.command = append(c.command, "--endpoint-url", c.url) // this version ignores AWS_ENDPOINT_URL_EC2
	c.run("", "create-volume", "--availability-zone", "eu-test-1a", "--size", "1")
	v := c.volume()
	assert.Contains(t, c.run("", "describe-volumes"), v.ID)
	c.run("", "attach-volume", "--volume-id", v.ID, "--instance-id", c.instance, "--device", "/dev/sdf")
	require.Len(t, c.volume().Attachments, 1)
	c.run("", documented(t, "aws", "aws ec2", v.ID)...)
	assert.Equal(t, int64(100<<30), c.volume().Size)
	c.run("", "create-snapshot", "--volume-id", v.ID)
	assert.Len(t, c.Snapshots(), 1)
	c.run("", "detach-volume", "--volume-id", v.ID)
	c.run("", "delete-volume", "--volume-id", v.ID)
	assert.Empty(t, fronts.Disks(c.Cloud))
}

func TestHetznerCommandLineWorks(t *testing.T) {
	c := newClient(t, "hetzner", "hcloud")
	c.run("", "volume", "create", "--name", "db", "--size", "10", "--location", "fsn1")
	assert.Contains(t, c.run("", "volume", "list"), c.volume().ID)
	c.run("", "volume", "attach", "db", "--server", "server-"+c.instance)
	require.Len(t, c.volume().Attachments, 1)
	c.run("", documented(t, "hetzner", "hcloud", "db")...)
	assert.Equal(t, int64(100<<30), c.volume().Size)
	c.run("", "volume", "detach", "db")
	c.run("", "volume", "delete", "db")
	assert.Empty(t, fronts.Disks(c.Cloud))
}

func TestOpenStackCommandLineWorks(t *testing.T) {
	c := newClient(t, "openstack", "openstack")
	c.env = append(c.env, "OS_AUTH_TYPE=v3applicationcredential", "OS_IDENTITY_API_VERSION=3")
	// One process runs all lines, since starting takes the time.
	said := c.run(strings.ReplaceAll(strings.ReplaceAll(`volume create --size 1 db
volume list
RESIZE
server add volume SERVER db
volume snapshot create --force --volume db one
`, "SERVER", c.instance), "RESIZE", "volume "+strings.Join(documented(t, "openstack", "openstack volume", "db"), " ")))
	v := c.volume()
	assert.Equal(t, int64(100<<30), v.Size)
	require.Len(t, v.Attachments, 1, said)
	assert.Contains(t, said, v.ID)
	require.Len(t, c.Snapshots(), 1, said)
	said = c.run(strings.ReplaceAll(`server remove volume SERVER db
volume snapshot delete one
volume delete db
`, "SERVER", c.instance))
	assert.Empty(t, c.Snapshots(), said)
	assert.Empty(t, fronts.Disks(c.Cloud), said)
}
