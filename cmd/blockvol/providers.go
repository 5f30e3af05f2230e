package main

import (
	"maps"
	"slices"

	"github.com/sirupsen/logrus"

	"github.com/blockvol/blockvol/providers"
	"github.com/blockvol/blockvol/providers/aws"
	"github.com/blockvol/blockvol/providers/digitalocean"
	"github.com/blockvol/blockvol/providers/hetzner"
	"github.com/blockvol/blockvol/providers/linode"
	"github.com/blockvol/blockvol/providers/local"
	"github.com/blockvol/blockvol/providers/openstack"
)

// constructor makes a provider from the environment, without a call to its cloud, and tells which settings it reads there.
type constructor struct {
	fromEnv  func(getenv func(string) string, node, cluster string, log logrus.FieldLogger, observe providers.Observer) (providers.Provider, error)
	settings []providers.Setting
}

// constructors are all providers there are, by the name that PROVIDER gives them.
var constructors = map[string]constructor{
	"aws":          {aws.FromEnv, aws.Settings},
	"digitalocean": {digitalocean.FromEnv, digitalocean.Settings},
	"hetzner":      {hetzner.FromEnv, hetzner.Settings},
	"linode":       {linode.FromEnv, linode.Settings},
	"local":        {local.FromEnv, local.Settings},
	"openstack":    {openstack.FromEnv, openstack.Settings},
}

func providerNames() []string { return slices.Sorted(maps.Keys(constructors)) }
