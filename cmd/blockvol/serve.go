package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/blockvol/blockvol/driver"
	"github.com/blockvol/blockvol/driver/controller"
	"github.com/blockvol/blockvol/internal/host"
	"github.com/blockvol/blockvol/mount"
	"github.com/blockvol/blockvol/plugin/admin"
	"github.com/blockvol/blockvol/plugin/docker"
	"github.com/blockvol/blockvol/plugin/metrics"
	"github.com/blockvol/blockvol/providers"
)

// options are the flags: where things are on this machine, as this process sees it, and how long a copy-up probe takes.
type options struct {
	socket, published, state, proc, sysfs string
	probe                                 time.Duration // the longest copy-up probe
}

// dirs are the directories whose paths operators are told as the machine has them. What settings say of files in the state
// directory is meant as the plugin sees it.
func (o options) dirs() []string {
	const images = "/data/volumes" // as config.json has it
	dirs := []string{o.published, images}
	for _, part := range []string{"journal", "jobs", "lock", "node", "staging"} {
		dirs = append(dirs, filepath.Join(o.state, part))
	}
	return dirs
}

func serveCommand() *cobra.Command {
	var p options
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve volumes to the Docker engine",
		Long:  "Serve volumes to the Docker engine, until SIGTERM. What is mounted stays mounted.\n\n" + settingsHelp(),
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			// dockerd splits a managed plugin's args at each space, so no args are one empty argument.
			args = slices.DeleteFunc(args, func(arg string) bool { return arg == "" })
			if len(args) > 0 {
				return serve(cmd.Context(), p, fmt.Errorf("unexpected argument %q", args[0]), os.Getenv)
			}
			return serve(cmd.Context(), p, nil, os.Getenv)
		},
	}
	// dockerd disables a plugin that exits at once. The flags before the wrong one are set, and they say where to listen.
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return serve(cmd.Context(), p, err, os.Getenv) })
	f := cmd.Flags()
	f.StringVar(&p.socket, "socket", "/run/docker/plugins/blockvol.sock", "socket to listen on")
	f.StringVar(&p.published, "published", "/var/lib/blockvol/published", "directory in which volumes are mounted for containers")
	f.StringVar(&p.state, "state", "/var/lib/blockvol/state", "directory for the journal and this node's id, one for each engine")
	f.StringVar(&p.proc, "proc", "/proc", "the host's proc file system")
	const probe = 2 * time.Second
	f.DurationVar(&p.probe, "copy-up-probe", probe, "mounts shorter than this are Docker's copy-up probe: the disk stays attached for 5 s afterwards; 0 disables this")
	f.DurationVar(&p.probe, "glance", probe, "the former name of --copy-up-probe")
	_ = f.MarkHidden("glance") // it is there
	f.StringVar(&p.sysfs, "sysfs", "/sys", "the host's sysfs")
	return cmd
}

// closing is how long the driver's background work may take to stop after the last call is answered. Together with the plugin's
// grace and rollback it is less than the 10 s between dockerd's SIGTERM and SIGKILL.
const closing = time.Second

// serve listens before it does anything else, because dockerd disables a plugin that does not listen. If it cannot serve volumes
// after that, each call is answered with the reason: a wrong command line, wrong settings, or a failure of open.
func serve(ctx context.Context, p options, wrongLine error, getenv func(string) string) error {
	// Losing the reader of the log must not end the process.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	s, wrong := readSettings(getenv)
	paths := host.NewPaths(p.proc, p.dirs()...)
	log := newLogger(s, paths)
	l, err := docker.Listen(ctx, p.socket)
	if err != nil {
		return err
	}
	log.WithFields(logrus.Fields{"version": buildVersion(), "socket": p.socket}).Info("Listening")
	if err := notifyReady(ctx, getenv); err != nil {
		log.Error(err)
	}

	for _, warning := range s.warnings {
		log.Warn(warning + ": the default is used")
	}
	if s.noPeers != nil {
		log.WithError(s.noPeers).Warn("Other nodes are neither asked for volumes nor answered")
	}
	if wrongLine != nil {
		wrong = fmt.Errorf("%w: correct the command line (of a managed plugin, the setting args) and restart blockvol", wrongLine)
	}
	operators := admin.New(admin.About{
		Version: buildVersion(), Provider: s.provider, Cluster: s.cluster, Takeover: string(s.takeover),
	}, paths, log)
	x := &examination{options: p, settings: s, getenv: getenv, wrong: wrong, paths: host.NewPaths(p.proc, p.state)}
	x.addTo(operators)
	m := metrics.New(buildVersion())
	if s.metricsAddress != "" {
		if err := m.Listen(ctx, s.metricsAddress); err != nil {
			log.WithError(err).Warn("METRICS_ADDRESS cannot be listened on: metrics are served on the plugin's socket only")
		}
	}
	opened := make(chan func(), 1)
	volumes := docker.Opening(func() docker.Volumes {
		volumes, release, err := docker.Volumes(nil), func() {}, wrong
		if err == nil {
			volumes, release, err = open(p, s, getenv, stop, operators, m, x, log)
		}
		opened <- release
		switch {
		case err != nil:
			operators.Broken(err)
			m.Broken(err)
			log.WithError(err).Error("No volumes can be served: each call is answered with the reason")
			return docker.Broken(err)
		case s.noCreate != nil:
			log.WithError(s.noCreate).Error("No volumes can be created: existing ones are served")
			return docker.WithoutCreate(volumes, s.noCreate)
		}
		return volumes
	})
	err = docker.New(docker.Config{Volumes: volumes, Published: p.published, Timeout: s.callTimeout, Paths: paths, Other: m.Before(operators), Log: log}).Serve(ctx, l)
	select {
	case release := <-opened:
		release()
	case <-time.After(closing):
		log.Warn("The start was still waiting when the plugin stopped: it is left behind")
	}
	log.Info("Stopped; what is mounted stays mounted")
	return err
}

// open creates the driver and what it needs, and lets operators and metrics reach it. release ends their work; stop ends this process.
func open(p options, s settings, getenv func(string) string, stop func(), operators *admin.Server, m *metrics.Metrics, x *examination, log *logrus.Logger) (_ docker.Volumes, release func(), _ error) {
	var undo []func() error
	release = func() {
		for _, u := range slices.Backward(undo) {
			if err := u(); err != nil {
				log.WithError(err).Warn("Stopping did not complete")
			}
		}
	}
	fail := func(err error) (docker.Volumes, func(), error) {
		release()
		return nil, func() {}, err
	}

	// dockerd binds volumes from this directory. Anybody else who got in could run set-uid programs of containers.
	if err := makePrivate(p.published); err != nil {
		return fail(fmt.Errorf("the directory for published volumes cannot be used: %w", err))
	}
	lock, err := lockState(p.state, p.proc)
	if err != nil {
		return fail(err)
	}
	undo = append(undo, lock.Close)
	node, err := nodeID(p.state)
	if err != nil {
		return fail(err)
	}
	provider, err := constructors[s.provider].fromEnv(getenv, node, s.cluster, log, observer{m, operators, log}.Request)
	if err != nil {
		return fail(fmt.Errorf("provider %s: %w", s.provider, err))
	}
	x.set(provider, nil)
	host, err := mount.New(mount.Config{
		Published: p.published, Buses: provider.Buses(), Scratch: filepath.Join(p.state, "staging"), Sysfs: p.sysfs, Proc: p.proc,
	})
	if err != nil {
		return fail(err)
	}
	undo = append(undo, host.Close)
	var peers controller.Peers
	var fencing controller.Fencing
	members := s.peers.members(func(ctx context.Context) (string, error) {
		n, err := provider.Node(ctx)
		return n.ID, err
	}, filepath.Join(p.state, "peers.json"), log)
	if members != nil {
		peers = members
	}
	_, can := provider.(providers.Fencer)
	switch {
	case s.takeover != controller.TakeoverFence:
	case members == nil:
		log.Warn("TAKEOVER=fence powers off no node, and is like stopped: the nodes cannot ask each other, which takes a key; see docs/peers.md")
	case !can:
		log.Warnf("TAKEOVER=fence powers off no node, and is like stopped: provider %s cannot do that", s.provider)
	default:
		fencing = controller.Fencing{Witnesses: members, Reboot: s.reboot}
	}
	d, err := driver.New(driver.Config{
		Peers: peers, Fencing: fencing, Provider: provider, Host: host, StateDir: p.state, PublishedDir: p.published,
		Takeover: s.takeover, Probe: p.probe, DefaultSize: s.defaultSize, DefaultFSType: s.defaultFSType, Restart: stop, Observer: observer{m, operators, log}.Event, Log: log,
	})
	if err != nil {
		return fail(err)
	}
	inTime := func(end func(context.Context) error) func() error {
		return func() error {
			ctx, cancel := context.WithTimeout(context.Background(), closing)
			defer cancel()
			return end(ctx)
		}
	}
	find := finder(findNone)
	if fencing.Witnesses != nil {
		find = d.OtherNodes
	}
	silence, deaf := s.peers.serve(context.Background(), d, members, log)
	undo = append(undo, inTime(d.Close), silence, keepInTouch(members, find))
	x.setPeers(members, deaf)
	if err := operators.Serve(d, filepath.Join(p.state, "jobs")); err != nil {
		return fail(err)
	}
	x.set(provider, d)
	undo = append(undo, inTime(operators.Close))
	m.Serve(d)
	log.WithFields(logrus.Fields{"provider": s.provider, "cluster": s.cluster}).Info("Serving volumes")
	return d, release, nil
}
