package peer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/blockvol/blockvol/driver/volume"
	"github.com/blockvol/blockvol/providers/sanitize"
)

const (
	// reachTimeout bounds the time in which an address must be reached, and in which it must then prove itself.
	reachTimeout = 2 * time.Second
	// maxAnswer bounds an answer, in bytes.
	maxAnswer = 64 << 10
	// maxAddresses is how many of a node's addresses are tried.
	maxAddresses = 4
)

// Client asks other nodes.
type Client struct {
	port    uint16
	known   map[string][]netip.Addr // by node: addresses that are used in place of the cloud's
	clients []*http.Client          // one for each key
}

// NewClient makes a Client that asks at the port, which is the same on all nodes.
func NewClient(keys []Key, port uint16, known map[string][]netip.Addr) *Client {
	c := &Client{port: port, known: known}
	dialer := &net.Dialer{Timeout: reachTimeout}
	for _, key := range keys {
		c.clients = append(c.clients, &http.Client{Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: key.config(), TLSHandshakeTimeout: reachTimeout,
			MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 8 << 10,
		}, CheckRedirect: stay})
	}
	return c
}

// Ask asks a node for a volume, at these addresses unless others are set for it. It returns what the node has of it, once that is not
// want.Known, or after ten seconds. Errors: the node has no address, does not answer, does not have the key, or is another one.
func (c *Client) Ask(ctx context.Context, addresses []netip.Addr, want volume.Want) (volume.Holding, error) {
	question, err := json.Marshal(want)
	if err != nil {
		return volume.Holding{}, err
	}
	if set := c.known[want.To]; set != nil {
		addresses = set
	}
	failure := fmt.Errorf("the cloud tells no private address of node %s", want.To)
	for _, address := range addresses[:min(len(addresses), maxAddresses)] {
		url := "https://" + net.JoinHostPort(address.String(), strconv.Itoa(int(c.port))) + wantPath
		for _, client := range c.clients {
			var holding volume.Holding
			if holding, err = ask(ctx, client, url, question); err == nil {
				return holding, nil
			}
			failure = fmt.Errorf("node %s does not answer at %s: %w", want.To, address, err)
			if !unproved(err) {
				break
			}
		}
	}
	return volume.Holding{}, failure
}

// unproved tells whether one side has not accepted the other's key: with another key it may.
func unproved(err error) bool {
	var op *net.OpError
	return errors.Is(err, errStranger) || errors.As(err, &op) && op.Op == "remote error"
}

// stay keeps a node from sending those who ask it elsewhere.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func ask(ctx context.Context, client *http.Client, url string, question []byte) (holding volume.Holding, err error) {
	ctx, cancel := context.WithTimeout(ctx, longestAnswer+2*reachTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(question))
	if err != nil {
		return holding, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return holding, err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return holding, err
	}
	if answer.StatusCode != http.StatusOK {
		return holding, errors.New(cmp.Or(sanitize.Clip(string(body)), answer.Status))
	}
	if err := json.Unmarshal(body, &holding); err != nil {
		return volume.Holding{}, err
	}
	if !holding.State.IsKnown() {
		return volume.Holding{}, fmt.Errorf("it answers %q, which this version does not know", sanitize.Clip(string(holding.State)))
	}
	holding.Message = sanitize.Clip(holding.Message)
	for i, user := range holding.Users {
		holding.Users[i] = sanitize.Clip(user)
	}
	return holding, nil
}
