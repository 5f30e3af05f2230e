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

// What an error of a Client shows of the node nevertheless, with errors.Is.
var (
	// ErrAlive: it has proved that it has the key, and answered something else, as one of another version does, or one that is stopping.
	ErrAlive = errors.New("the node is alive")
	// ErrOtherKey: what is there speaks TLS but does not have the key of this cluster, or does not accept this node's.
	ErrOtherKey = errors.New("the node has another key")
)

// shows is an error that shows something as well.
type shows struct {
	error
	what error
}

// Unwrap is for errors.Is.
func (s shows) Unwrap() []error { return []error{s.error, s.what} }

// rank is how much an error shows.
func rank(err error) int {
	switch {
	case errors.Is(err, ErrAlive):
		return 2
	case errors.Is(err, ErrOtherKey):
		return 1
	}
	return 0
}

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
// want.Known, or after ten seconds. Errors: the node has no address, does not answer (also ErrAlive), does not have the key (also
// ErrOtherKey), or is another one.
func (c *Client) Ask(ctx context.Context, addresses []netip.Addr, want volume.Want) (volume.Holding, error) {
	var holding volume.Holding
	if err := c.call(ctx, want.To, addresses, wantPath, longestAnswer+2*reachTimeout, want, &holding); err != nil {
		return volume.Holding{}, err
	}
	return holding, nil
}

// Greet says hello to a node, at these addresses unless others are set for it. Errors: those of Ask.
func (c *Client) Greet(ctx context.Context, to string, addresses []netip.Addr, hello Hello) (answer Hello, err error) {
	limit := 2 * reachTimeout
	if hello.About != "" {
		limit += lookTimeout
	}
	if err := c.call(ctx, to, addresses, helloPath, limit, hello, &answer); err != nil {
		return Hello{}, err
	}
	return answer, nil
}

// call asks the node, until one of its addresses has answered with one of the keys.
func (c *Client) call(ctx context.Context, node string, addresses []netip.Addr, path string, limit time.Duration, say, answer any) error {
	question, err := json.Marshal(say)
	if err != nil {
		return err
	}
	if set := c.known[node]; set != nil {
		addresses = set
	}
	failure := fmt.Errorf("the cloud tells no private address of node %s", node)
	for _, address := range addresses[:min(len(addresses), maxAddresses)] {
		url := "https://" + net.JoinHostPort(address.String(), strconv.Itoa(int(c.port))) + path
		for _, client := range c.clients {
			err := ask(ctx, client, url, limit, question, answer)
			if err == nil {
				return nil
			}
			refused := unproved(err)
			if refused {
				err = shows{err, ErrOtherKey}
			}
			if rank(err) >= rank(failure) {
				failure = fmt.Errorf("node %s does not answer at %s: %w", node, address, err)
			}
			if !refused {
				break
			}
		}
	}
	return failure
}

// unproved tells whether one side has not accepted the other's key: with another key it may.
func unproved(err error) bool {
	var op *net.OpError
	return errors.Is(err, errStranger) || errors.As(err, &op) && op.Op == "remote error"
}

// stay keeps a node from sending those who ask it elsewhere.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func ask(ctx context.Context, client *http.Client, url string, limit time.Duration, question []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(question)) //nolint:gosec // nobody learns anything there, or is believed, without the key
	if err != nil {
		return err
	}
	answer, err := client.Do(r) //nolint:gosec // as above
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	err = read(answer, into)
	if err != nil && answer.StatusCode != http.StatusMisdirectedRequest { // else another node answers there
		err = shows{err, ErrAlive}
	}
	return err
}

// read reads an answer. Errors: it is a refusal, or cannot be understood.
func read(answer *http.Response, into any) error {
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return errors.New(cmp.Or(sanitize.Clip(string(body)), answer.Status))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return err
	}
	if holding, is := into.(*volume.Holding); is {
		return clean(holding)
	}
	return nil
}

// clean makes what another node has said fit for logs. Errors: this version does not know the state.
func clean(holding *volume.Holding) error {
	if !holding.State.IsKnown() {
		return fmt.Errorf("it answers %q, which this version does not know", sanitize.Clip(string(holding.State)))
	}
	holding.Message, holding.By = sanitize.Clip(holding.Message), sanitize.Clip(holding.By)
	return nil
}
