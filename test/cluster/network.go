package cluster

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"

	"github.com/blockvol/blockvol/test/namespace"
)

// Addresses in the cluster's network. It is AWS's default network, which does not overlap with Docker's own.
const (
	router   = "172.31.0.1" // only neighbour of the nodes
	api      = "172.31.0.2" // EC2
	registry = "172.31.0.3"
	observer = "172.31.0.4" // of the test; never cut off
	metadata = "169.254.169.254"
)

// network is a cloud's network as machines see it: each has one link to a router and reaches all others through it. Traffic
// between two addresses can be dropped silently.
type network struct{ namespaces *namespace.Set }

func newNetwork(s *namespace.Set) (*network, error) {
	n := &network{s}
	_, err := n.run("sh", "-ec", `
		echo 1 >/proc/sys/net/ipv4/ip_forward
		for address; do ip address add "$address/32" dev lo; done
		# What is cut is asked first, before the addresses that this host has itself.
		ip rule add preference 100 lookup local
		ip rule delete preference 0`, "sh", router, api, registry, observer, metadata)
	return n, err
}

// connect makes the link of a machine.
func (n *network) connect(tap, address string) error {
	_, err := n.run("sh", "-ec", `
		ip tuntap add dev "$1" mode tap
		ip link set "$1" up
		ip route add "$2" dev "$1"`, "sh", tap, address)
	return err
}

// cut drops all traffic between two addresses.
func (n *network) cut(a, b string) error {
	_, err := n.run("sh", "-ec", `
		ip rule add preference 10 from "$1" to "$2" blackhole
		ip rule add preference 10 from "$2" to "$1" blackhole`, "sh", a, b)
	return err
}

// mute drops what one address sends to another.
func (n *network) mute(from, to string) error {
	_, err := n.run("ip", "rule", "add", "preference", "10", "from", from, "to", to, "blackhole")
	return err
}

// block drops what is sent to these TCP ports of an address: "80", or "7000-7999".
func (n *network) block(address, ports string) error {
	_, err := n.run("ip", "rule", "add", "preference", "20", "to", address, "ipproto", "tcp", "dport", ports, "blackhole")
	return err
}

// heal removes all cuts and blocks of an address.
func (n *network) heal(address string) error {
	_, err := n.run("sh", "-ec", `
		ip rule list preference 10 | while read -r _ from a to b _; do
			case " $a $b " in *" $1 "*) ip rule delete preference 10 from "$a" to "$b" blackhole ;; esac
		done
		while ip rule delete preference 20 to "$1" 2>/dev/null; do :; done`, "sh", address)
	return err
}

// run runs a program in the network and returns its output without the final newline.
func (n *network) run(name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := n.namespaces.Enter(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), err
}
