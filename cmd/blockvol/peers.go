package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/driver/peer"
	"github.com/blockvol/blockvol/providers/secret"
)

// peerSettings are how nodes of a cluster reach each other. Without keys they do not.
type peerSettings struct {
	listen    string
	port      uint16
	keys      []peer.Key
	addresses map[string][]netip.Addr // by node
}

// readPeerSettings returns no keys if nodes are not to ask each other, or have nothing in common to prove themselves with.
func readPeerSettings(getenv func(string) string, listen string, s settings) (p peerSettings, err error) {
	if listen == "off" {
		return p, nil
	}
	_, port, err := net.SplitHostPort(listen)
	number, wrong := strconv.ParseUint(port, 10, 16)
	if err != nil || wrong != nil || number == 0 {
		return p, fmt.Errorf("PEER_LISTEN is %q but must be an address with a port, like :7373, or off", listen)
	}
	p.listen, p.port = listen, uint16(number)
	if p.addresses, err = parseAddresses(getenv("PEER_ADDRESSES")); err != nil {
		return peerSettings{}, err
	}
	text, err := secret.Read(getenv, "PEER_KEY")
	if err != nil {
		return peerSettings{}, err
	}
	if text != "" {
		if p.keys, err = peer.ParseKeys(text, s.cluster); err != nil {
			return peerSettings{}, fmt.Errorf("what PEER_KEY or PEER_KEY_FILE holds cannot be used: %w", err)
		}
		return p, nil
	}
	for _, setting := range constructors[s.provider].settings {
		if !setting.Shared {
			continue
		}
		shared, err := secret.Read(getenv, setting.Name)
		if err != nil || len(shared) < peer.MinKey { // the provider says what is wrong with it; a short one was chosen by somebody, and could be guessed
			continue
		}
		key, err := peer.NewKey(shared, s.cluster)
		p.keys = []peer.Key{key}
		return p, err
	}
	return peerSettings{}, nil
}

func parseAddresses(text string) (map[string][]netip.Addr, error) {
	all := make(map[string][]netip.Addr)
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		node, text, _ := strings.Cut(pair, "=")
		address, err := netip.ParseAddr(strings.TrimSpace(text))
		if node = strings.TrimSpace(node); node == "" || err != nil {
			return nil, fmt.Errorf("PEER_ADDRESSES has %q but must have NODE=ADDRESS, such as i-0abc=10.0.0.5", pair)
		}
		all[node] = append(all[node], address)
	}
	return all, nil
}

// members are the other nodes; nil without a key.
func (p peerSettings) members(self func(context.Context) (string, error), file string, log logrus.FieldLogger) *peer.Members {
	if p.keys == nil {
		return nil
	}
	return peer.NewMembers(self, peer.NewClient(p.keys, p.port, p.addresses), file, log)
}

// leaving is how long a node that stops tells others.
const leaving = time.Second / 2

// finder finds nodes that are not known, by the addresses that the cloud tells.
type finder func(ctx context.Context, known func(node string) bool) (map[string][]netip.Addr, error)

// findNone is for nodes that power off no other one: it is enough that those which do find them.
func findNone(context.Context, func(string) bool) (map[string][]netip.Addr, error) { return nil, nil }

// keepInTouch has the nodes of the cluster say hello to each other, until end, which tells others that this one is stopping. So they do
// whatever TAKEOVER is here: another node may have another policy, and must hear of this one.
func keepInTouch(members *peer.Members, find finder) (end func() error) {
	if members == nil {
		return func() error { return nil }
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		members.Run(ctx, find)
	}()
	return func() error {
		stop()
		<-done
		ctx, cancel := context.WithTimeout(context.Background(), leaving)
		defer cancel()
		members.Leave(ctx)
		return nil
	}
}

// serve answers other nodes. Without a key, or if that cannot be done, the plugin works as if they did not answer it, either.
func (p peerSettings) serve(ctx context.Context, holder peer.Holder, members *peer.Members, log logrus.FieldLogger) (end func() error, deaf error) {
	none := func() error { return nil }
	if p.keys == nil {
		return none, nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.listen)
	if err != nil {
		log.WithError(err).Warn("PEER_LISTEN cannot be listened on: other nodes cannot ask this one to let go of volumes, and ask the cloud")
		return none, err
	}
	log.WithField("address", l.Addr().String()).Info("Other nodes of this cluster are answered")
	s := peer.Serve(l, p.keys, holder, members, log)
	return func() error {
		if err := s.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}, nil
}
