package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/blockvol/blockvol/driver/peer"
)

const peerKey = "0123456789abcdef0123456789abcdef"

func TestWhatNodesProveThemselvesWith(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(file, []byte(peerKey+"\nanother-0123456789abcdef0123456789\n"), 0o600))
	for name, c := range map[string]struct {
		env  map[string]string
		keys int
	}{
		"nothing on one machine":     {nil, 0},
		"a key":                      {map[string]string{"PEER_KEY": peerKey}, 1},
		"two keys in a file":         {map[string]string{"PEER_KEY_FILE": file}, 2},
		"the token of the cloud":     {map[string]string{"PROVIDER": "hetzner", "HCLOUD_TOKEN": peerKey}, 1},
		"the secret key":             {map[string]string{"PROVIDER": "aws", "AWS_SECRET_ACCESS_KEY": peerKey}, 1},
		"the token in a file":        {map[string]string{"PROVIDER": "linode", "LINODE_TOKEN_FILE": file}, 1},
		"no password":                {map[string]string{"PROVIDER": "openstack", "OS_PASSWORD": peerKey}, 0},
		"a role":                     {map[string]string{"PROVIDER": "aws"}, 0},
		"nothing, for it is off":     {map[string]string{"PEER_LISTEN": "off", "PEER_KEY": peerKey}, 0},
		"nothing, of another cloud":  {map[string]string{"PROVIDER": "aws", "HCLOUD_TOKEN": peerKey}, 0},
		"the key, and not the token": {map[string]string{"PROVIDER": "hetzner", "HCLOUD_TOKEN": peerKey, "PEER_KEY_FILE": file}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := readSettings(env(c.env))
			require.NoError(t, err)
			require.NoError(t, s.noPeers)
			assert.Len(t, s.peers.keys, c.keys)
		})
	}
}

func TestWhereNodesAreReached(t *testing.T) {
	s, err := readSettings(env(map[string]string{"PEER_KEY": peerKey, "PEER_LISTEN": "10.0.0.1:99", "PEER_ADDRESSES": "i-1=10.0.0.2, i-1=10.0.1.2,i-2=fd00::1"}))
	require.NoError(t, err)
	assert.Equal(t, "10.0.0.1:99", s.peers.listen)
	assert.Equal(t, uint16(99), s.peers.port)
	assert.Equal(t, map[string][]netip.Addr{
		"i-1": {netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.1.2")}, "i-2": {netip.MustParseAddr("fd00::1")},
	}, s.peers.addresses)
}

// Volumes are served all the same.
func TestAWrongSettingForOtherNodesKeepsThemOut(t *testing.T) {
	for name, c := range map[string]struct{ env, says string }{
		"PEER_LISTEN":    {"7373", `PEER_LISTEN is "7373" but must be an address with a port, like :7373, or off`},
		"PEER_KEY":       {"hunter2", "what PEER_KEY or PEER_KEY_FILE holds cannot be used: a key must have at least 32 random characters, such as those of `openssl rand -hex 32`"},
		"PEER_KEY_FILE":  {"/no/such/file", "PEER_KEY_FILE cannot be read: open /no/such/file: no such file or directory: the file must be readable where blockvol runs; the plugin sees the host's state directory as /data/state"},
		"PEER_ADDRESSES": {"i-1", `PEER_ADDRESSES has "i-1" but must have NODE=ADDRESS, such as i-0abc=10.0.0.5`},
	} {
		t.Run(name, func(t *testing.T) {
			given := map[string]string{"PEER_KEY": peerKey, name: c.env}
			if name == "PEER_KEY_FILE" {
				delete(given, "PEER_KEY")
			}
			s, err := readSettings(env(given))
			require.NoError(t, err)
			require.NoError(t, s.noCreate)
			require.EqualError(t, s.noPeers, c.says)
			assert.Empty(t, s.peers)
		})
	}
}

// The name that is sent in the clear comes from the secret: who sees it could guess a short one, which is the cloud's own.
func TestAShortSecretOfACloudIsNotUsedForOtherNodes(t *testing.T) {
	s, err := readSettings(env(map[string]string{"PROVIDER": "openstack", "OS_APPLICATION_CREDENTIAL_SECRET": "hunter2"}))
	require.NoError(t, err)
	require.NoError(t, s.noPeers)
	assert.Empty(t, s.peers.keys)
}

func TestEachOfTwoKeysIsASecret(t *testing.T) {
	const former = "fedcba9876543210fedcba9876543210"
	x := &examination{getenv: env(map[string]string{"PEER_KEY": peerKey + " " + former})}
	assert.Contains(t, x.secrets(), peerKey)
	assert.Contains(t, x.secrets(), former)
}

// Another node may have TAKEOVER=fence.
func TestNodesAreGreetedAndToldOfAStopWhateverThePolicyIs(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	keys, err := peer.ParseKeys(peerKey, "default")
	require.NoError(t, err)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.2:0")
	require.NoError(t, err)
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	other := peer.NewMembers(func(context.Context) (string, error) { return "i-other", nil }, peer.NewClient(keys, port, nil), "", log)
	s := peer.Serve(l, keys, nil, other, log)
	t.Cleanup(func() { require.NoError(t, s.Close()) })

	m := machine{dir: t.TempDir()}
	require.NoError(t, os.MkdirAll(m.state(), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(m.state(), "peers.json"), []byte(`{"i-other":["127.0.0.2"]}`), 0o600))
	p := m.start(t, "TAKEOVER=stopped", "PEER_KEY="+peerKey, fmt.Sprintf("PEER_LISTEN=127.0.0.1:%d", port))
	require.Eventually(t, func() bool { return len(other.Known()) == 1 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	p.ends()
	assert.NotZero(t, other.Signs(t.Context(), other.Known()[0]).Left)
}
