// Command ec2sim serves the simulated EC2 of package ec2 on loopback, to try the AWS CLI or blockvol without costs.
//
// All state is lost when it ends.
//
//	go run ./test/cloud/cmd/ec2sim --instance i-0aaaaaaaaaaaaaaa1=127.0.0.1:1338 --attach 3s --throttle
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/blockvol/blockvol/test/cloud"
	"github.com/blockvol/blockvol/test/cloud/ec2"
	"github.com/blockvol/blockvol/test/cloud/loop"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "ec2sim:", err)
		os.Exit(1)
	}
}

// settings are the values of the flags.
type settings struct {
	cloud     cloud.Config
	front     ec2.Config
	listen    string
	disks     string // directory, "" for none
	kind      string // instance type
	instances []placed
}

// placed is an instance and the address of its metadata service.
type placed struct{ id, address string }

func parse(args []string) (settings, error) {
	var s settings
	var policy string
	var throttle bool
	flags := flag.NewFlagSet("ec2sim", flag.ContinueOnError)
	flags.StringVar(&s.listen, "listen", "127.0.0.1:4566", "where EC2 listens: `address` and port on loopback")
	flags.StringVar(&s.front.Region, "region", "eu-test-1", "the region's `name`; its zones are NAMEa, NAMEb and NAMEc")
	flags.StringVar(&s.kind, "type", "m5.large", "the instances' `type`")
	flags.Func("instance", "an instance in the first zone and the address of its metadata service: `id=address`; may be repeated", func(v string) error {
		id, address, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("use ID=ADDRESS, such as i-0aaaaaaaaaaaaaaa1=127.0.0.1:1338")
		}
		s.instances = append(s.instances, placed{id, address})
		return nil
	})
	flags.DurationVar(&s.cloud.Latency, "latency", 0, "of each call to the API")
	flags.DurationVar(&s.cloud.Times.Create, "create", 0, "how long a volume is creating")
	flags.DurationVar(&s.cloud.Times.Delete, "delete", 0, "how long a volume is deleting")
	flags.DurationVar(&s.cloud.Times.Attach, "attach", 0, "how long a volume is attaching")
	flags.DurationVar(&s.cloud.Times.Detach, "detach", 0, "how long a volume is detaching")
	flags.DurationVar(&s.cloud.Times.Snapshot, "snapshot", 0, "how long a snapshot is pending")
	flags.DurationVar(&s.cloud.Times.Modify, "modify", 0, "how long a modification is modifying and optimizing")
	flags.DurationVar(&s.cloud.Lag, "lag", 0, "reads show the state of up to this long ago")
	flags.BoolVar(&throttle, "throttle", false, "limit calls as AWS does")
	flags.StringVar(&policy, "policy", "", "a `file` with the IAM policy of the instances' role")
	flags.StringVar(&s.disks, "disks", "", "a `directory` for disks; attached volumes are loop devices of this machine")
	flags.Uint64Var(&s.cloud.Seed, "seed", uint64(time.Now().UnixNano()), "of ids and lag; the same `number` makes the same ids")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	for _, zone := range "abc" {
		s.cloud.Zones = append(s.cloud.Zones, s.front.Region+string(zone))
	}
	if throttle {
		s.cloud.Limits = ec2.Limits
	}
	if policy != "" {
		var err error
		if s.front.Policy, err = os.ReadFile(policy); err != nil {
			return s, err
		}
		if err := ec2.CheckPolicy(s.front.Policy); err != nil {
			return s, fmt.Errorf("%s: %w", policy, err)
		}
	}
	return s, nil
}

// run serves until the context ends.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	s, err := parse(args)
	if err != nil {
		return err
	}
	var disks *loop.Backend
	if s.disks != "" {
		if disks, err = loop.New(s.disks); err != nil {
			return fmt.Errorf("--disks: %w", err)
		}
		defer func() { err = errors.Join(err, disks.Close()) }()
		s.cloud.Backend = disks
	}
	c := cloud.New(s.cloud)
	defer c.Close()
	s.front.Cloud = c
	front := ec2.New(s.front)
	log := &log{out: out, callers: map[string]string{}}

	var servers group
	defer servers.close()
	endpoint, err := servers.serve(s.listen, log.calls(front))
	if err != nil {
		return err
	}
	key, secret, _ := front.Credentials("")
	log.know(key, "account")
	log.printf("EC2 of region %s listens at %s. For the AWS CLI:", s.front.Region, endpoint)
	log.printf("  export AWS_ENDPOINT_URL_EC2=%s AWS_REGION=%s AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s", endpoint, s.front.Region, key, secret)
	log.printf("  aws ec2 describe-volumes")
	for _, p := range s.instances {
		i := c.AddInstance(cloud.Instance{ID: p.id, Type: s.kind, RootDevice: "/dev/xvda"})
		key, _, _ := front.Credentials(i.ID)
		log.know(key, i.ID)
		metadata, err := servers.serve(p.address, log.metadata(i.ID, front.Metadata(i.ID, ec2.MetadataOptions{})))
		if err != nil {
			return err
		}
		log.printf("Instance %s in %s. For blockvol on it:", i.ID, i.Zone)
		serve := ""
		if disks != nil {
			tree := filepath.Join(s.disks, "sysfs", i.ID)
			if err := disks.Sysfs(i.ID, tree); err != nil {
				return fmt.Errorf("--disks: %w", err)
			}
			serve = " blockvol serve --sysfs=" + tree
		}
		log.printf("  PROVIDER=aws AWS_ENDPOINT_URL_EC2=%s AWS_EC2_METADATA_SERVICE_ENDPOINT=%s%s", endpoint, metadata, serve)
	}
	<-ctx.Done()
	return nil
}

// group is servers that end together.
type group struct {
	servers []*http.Server
	running sync.WaitGroup
}

// serve starts a server on loopback and returns its URL.
func (g *group) serve(address string, handler http.Handler) (string, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", fmt.Errorf("%s is not a loopback address", address)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	g.servers = append(g.servers, server)
	g.running.Go(func() { server.Serve(listener) }) //nolint:errcheck // returns when the server is closed
	return "http://" + listener.Addr().String(), nil
}

func (g *group) close() {
	for _, server := range g.servers {
		server.Close() //nolint:errcheck // there is nothing to lose
	}
	g.running.Wait()
}
