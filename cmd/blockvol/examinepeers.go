package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/blockvol/blockvol/driver"
)

// mostNodes is how many nodes a finding names.
const mostNodes = 5

// checkPeers checks whether this node and the others of its cluster can ask each other.
func (x *examination) checkPeers(ctx context.Context) []driver.Finding {
	x.mu.Lock()
	members, deaf := x.members, x.deaf
	x.mu.Unlock()
	if members == nil {
		return nil // there is no key, or no volumes are served; what is wrong with either is told elsewhere
	}
	var found []driver.Finding
	if deaf != nil {
		found = append(found, driver.Finding{
			Severity: driver.Warning, Check: "peers", Code: "peers-deaf", Message: fmt.Sprintf("other nodes cannot ask this one: %s", deaf),
			Remedy: "free the port, or set PEER_LISTEN to another one on all nodes",
		})
	}
	answering, silent := members.Reach(ctx)
	if len(silent) > 0 {
		named := strings.Join(silent[:min(len(silent), mostNodes)], ", ")
		if more := len(silent) - mostNodes; more > 0 {
			named += fmt.Sprintf(" and %d more", more)
		}
		found = append(found, driver.Finding{
			Severity: driver.Warning, Check: "peers", Code: "peers-silent",
			Message: fmt.Sprintf("of %d other nodes that were heard of in the last day %d do not answer: %s", len(answering)+len(silent), len(silent), named),
			Remedy:  fmt.Sprintf("if they run, let TCP port %d through between the nodes, and give all the same key; see docs/peers.md", x.settings.peers.port),
		})
	}
	if len(found) == 0 {
		message := fmt.Sprintf("all %d other nodes that are known answer", len(answering))
		if len(answering) == 0 {
			message = "no other node has been met yet"
		}
		found = append(found, driver.Finding{Severity: driver.OK, Check: "peers", Message: message})
	}
	return found
}
